"""Which operations there are, which replicas serve them, and what each release understands."""

from mesh.discovery.asyncapi import document
from mesh.discovery.directory import LATER, LIMITS, ONCE, READS, SERVED, SERVES, Directory, nearest
from mesh.discovery.publishing import PUBLISH, Publication

__all__ = [
    "LATER",
    "LIMITS",
    "ONCE",
    "PUBLISH",
    "READS",
    "SERVED",
    "SERVES",
    "Directory",
    "Publication",
    "document",
    "nearest",
]
