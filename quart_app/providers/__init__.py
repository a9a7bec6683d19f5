from quart_app.providers.launch import commands, environment, running

__all__ = ["commands", "environment", "running"]
