"""Which operations there are, which replicas serve them, and what each release understands."""

from mesh.discovery.directory import LATER, READS, SERVED, Directory, nearest
from mesh.discovery.publishing import PUBLISH, Publication

__all__ = ["LATER", "PUBLISH", "READS", "SERVED", "Directory", "Publication", "nearest"]
