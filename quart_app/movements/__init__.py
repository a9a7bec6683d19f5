from quart_app.movements.service import create

__all__ = ["create"]
