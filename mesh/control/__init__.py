"""What an operator does to a running mesh, and how one looks at its requests."""

from mesh.control.control import Control, PausedOperation
from mesh.control.journeys import MOST_REPLIES_SEARCHED, Journeys, JourneyStep, grouped, percentile_ms
from mesh.control.operations import OperationState, OperationStates, read_definitions, read_states
from mesh.control.waiting import LaterRequest, ScheduledOperation, Waiting, read_waiting

__all__ = [
    "MOST_REPLIES_SEARCHED",
    "Control",
    "JourneyStep",
    "Journeys",
    "LaterRequest",
    "OperationState",
    "OperationStates",
    "PausedOperation",
    "ScheduledOperation",
    "Waiting",
    "grouped",
    "percentile_ms",
    "read_definitions",
    "read_states",
    "read_waiting",
]
