from quart_app.messages.service import create

__all__ = ["create"]
