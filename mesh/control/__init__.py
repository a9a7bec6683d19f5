"""What an operator does to a running mesh, and how one looks at its requests."""

from mesh.control.control import Control, PausedOperation
from mesh.control.journeys import SEARCHED, Journeys, JourneyStep, lanes

__all__ = ["SEARCHED", "Control", "JourneyStep", "Journeys", "PausedOperation", "lanes"]
