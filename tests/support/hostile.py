"""Bodies that cost a parser the most, each in a form of its own."""

from __future__ import annotations

#: What is repeated until the body is large: (begin, repeated, end, status)
LARGE = {
    "open brackets": ("", "[", "", 400),
    "open objects": ("", '{"a":', "", 400),
    "empty strings": ("[", '"",', '""]', 422),
    "numbers": ("[", "1,", "1]", 422),
    "long numbers": ("[", "9" * 3999 + ",", "1]", 422),
    "lists": ("[", "[],", "[]]", 422),
    "deep lists": ("[", "[" * 30 + "]" * 30 + ",", "1]", 422),
    "empty objects": ("[", "{},", "{}]", 422),
    "empty objects and an escape": ("[", "{},", '{"\\n":1}]', 422),
    "objects of lists": ("[", '{"a":[[],[],[]]},', "{}]", 422),
    "objects of many keys": ("[", "{" + ",".join(f'"k{n}":1' for n in range(99)) + "},", "{}]", 422),
    "ends of objects in a string": ("[", '{"a":"' + "}," * 6000 + '"},', "{}]", 400),
    "an object of numbers": ("{", '"a":1,', '"b":1}', 422),
    "an object of long numbers": ("{", '"a":' + "9" * 3999 + ",", '"b":1}', 422),
    "backslashes": ('"', "\\\\", '"', 422),
    "quotes": ("", '"', "", 422),
    "spaces": ("[", " ", "]", 422),
    "spaces after objects": ("[", "{}" + " " * 300 + ",", "{}]", 422),
    "commas": ("{", ",", "}", 422),
}


def large(name: str, size: int) -> bytes:
    """Return a body of this form, of about this many bytes."""
    begin, repeated, end, _ = LARGE[name]
    return (begin + repeated * ((size - len(begin) - len(end)) // len(repeated)) + end).encode()
