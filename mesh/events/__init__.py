"""Events whose effect is outside of Redis. Each is delivered until its effect is done, or until it is given up."""

from mesh.events.consumer import Events
from mesh.events.reader import DeliveredEvent

__all__ = ["DeliveredEvent", "Events"]
