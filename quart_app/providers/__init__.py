from quart_app.providers.launch import commands, environment

__all__ = ["commands", "environment"]
