from quart_app.addresses.service import create

__all__ = ["create"]
