"""Which operations there are, which replicas serve them, and what each release understands."""

from mesh.discovery.asyncapi import document
from mesh.discovery.directory import LATER, ONCE, READS, SERVED, Directory, nearest
from mesh.discovery.publishing import PUBLISH, Publication

__all__ = ["LATER", "ONCE", "PUBLISH", "READS", "SERVED", "Directory", "Publication", "document", "nearest"]
