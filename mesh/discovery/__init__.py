"""Which operations there are, which replicas serve them, and what each release understands."""

from mesh.discovery.asyncapi import make_document
from mesh.discovery.directory import (
    ASK_SERVES,
    HIGHEST_LEVEL,
    LATER,
    LIMITS,
    ONCE,
    READ_SERVED,
    Directory,
    suggestion_for,
)
from mesh.discovery.publishing import PUBLISH, Publication

__all__ = [
    "ASK_SERVES",
    "HIGHEST_LEVEL",
    "LATER",
    "LIMITS",
    "ONCE",
    "PUBLISH",
    "READ_SERVED",
    "Directory",
    "Publication",
    "make_document",
    "suggestion_for",
]
