"""A test kit: a whole mesh in one process, with its time and its faults under control. See docs/testing.md."""

from mesh.testing.kit import MeshKit
from mesh.testing.record import Buried, Committed, Sent

__all__ = ["Buried", "Committed", "MeshKit", "Sent"]
