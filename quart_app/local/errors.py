"""The error that a mesh cannot run on this machine."""


class LocalError(Exception):
    """A mesh cannot run here; the text is the sentence that the user reads."""
