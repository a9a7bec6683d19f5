"""Events whose effect is outside of Redis, each delivered until it is done."""

from mesh.events.consumer import Events
from mesh.events.reader import DeliveredEvent

__all__ = ["DeliveredEvent", "Events"]
