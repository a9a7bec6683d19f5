from quart_app.grades.service import create

__all__ = ["create"]
