"""How values become text: bodies become JSON; stored str and int stay as they are, and other stored values become JSON.

This module takes the types that msgspec knows (Structs, dataclasses, TypedDicts, builtins and containers of them), and
pydantic models.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from types import UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from mesh.errors import UsageError

T = TypeVar("T")

_ENCODER = msgspec.json.Encoder()
#: How a message of msgspec ends: with the JSON path of the wrong value.
_ERROR_PATH = re.compile(r" - at `(.+)`$", re.DOTALL)
_INTEGER = re.compile(r"-?[0-9]+")


#: The exceptions that `Codec.decode` raises; RecursionError for JSON with too many levels.
DECODE_ERRORS = (ValueError, RecursionError)


class NotOfType(ValueError):
    """The error for a text that is no value of the type. `path` says where, such as `$.items[2].name`, or is ""."""

    def __init__(self, detail: str, path: str = "") -> None:
        super().__init__(f"{detail} (at {path})" if path else detail)
        self.path = path


class Codec(Generic[T]):
    """Writes and reads the JSON of one type.

    `encode` raises TypeError or ValueError. `decode` raises one of DECODE_ERRORS; `explain` makes a NotOfType of it.
    `decode` is the decoder's own method. A function around it, which raises NotOfType, would cost each request time.
    """

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        self._classes = _classes_of(kind)
        self.encode: Callable[[T], bytes]
        self.decode: Callable[[str], T]
        if _has_model(kind):
            adapter: TypeAdapter[T] = TypeAdapter(kind)
            self.encode = adapter.dump_json
            self.decode = adapter.validate_json
        else:
            _check_known(kind)
            self.encode = _ENCODER.encode
            self.decode = msgspec.json.Decoder(kind).decode
        #: the class of most values, or None: callers compare with it first, because `accepts` costs more
        self.usual_class = self._classes[0] if self._classes else None

    def explain(self, error: Exception) -> NotOfType:
        """Return the NotOfType for an error that `decode` raised."""
        if isinstance(error, ValidationError):
            first_error = error.errors(include_url=False, include_input=False)[0]
            return NotOfType(str(first_error["msg"]), _json_path(first_error["loc"]))
        message = str(error)
        path_match = _ERROR_PATH.search(message)
        return NotOfType(_ERROR_PATH.sub("", message), path_match[1] if path_match else "")

    def accepts(self, value: object) -> bool:
        """Return whether the class of a value fits the type. The elements of a container are not checked."""
        return self._classes is None or isinstance(value, self._classes)


def _classes_of(kind: Any) -> tuple[type, ...] | None:
    """Return the classes that the values of a type have; None if the class of a value does not show whether it fits."""
    origin = get_origin(kind) or kind
    if origin in (Union, UnionType):
        member_classes = [_classes_of(member) for member in get_args(kind)]
        return (
            None
            if None in member_classes
            else tuple(member_class for classes in member_classes if classes for member_class in classes)
        )
    if origin is Any or not isinstance(origin, type):
        return None
    if is_typeddict(origin):
        return (dict,)
    # Type checkers, too, accept an int where a float is wanted.
    return (float, int) if origin is float else (origin,)


def class_and_value(value: object) -> str:
    """Return the class of a value and the value, as text. An awaitable gets the hint that `await` was forgotten."""
    text = f"{type(value).__name__}: {value!r:.100}"
    return f"{text}; write `await` before it" if inspect.isawaitable(value) else text


def type_name_of(kind: Any) -> str:
    """Return the name of a type as a program writes it, such as `list[int]`."""
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _has_model(kind: Any) -> bool:
    """Return whether a type is a pydantic model or a container of one, however deep the containers are."""
    if any(map(_has_model, get_args(kind))):
        return True
    # The attribute shows a dataclass of pydantic.
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or hasattr(kind, "__pydantic_validator__"))


def _check_known(kind: Any) -> None:
    """Raise UsageError for a type that msgspec does not know."""
    try:
        type_info = msgspec.inspect.type_info(kind)
    except (TypeError, NameError) as error:
        raise UsageError(f"{type_name_of(kind)} cannot be JSON: {error}") from error
    if isinstance(type_info, msgspec.inspect.CustomType):  # msgspec can write it only with the help of a function
        raise UsageError(
            f"{type_name_of(kind)} cannot be JSON; "
            "write a msgspec Struct, a dataclass, a pydantic model or a builtin type"
        )


def _json_path(steps: tuple[int | str, ...]) -> str:
    parts = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return "$" + "".join(parts) if steps else ""


def is_object_type(kind: Any) -> bool:
    """Return whether the values of a type are JSON objects, as every body of a request is."""
    kind = get_origin(kind) or kind
    if not isinstance(kind, type):
        return False
    return is_typeddict(kind) or issubclass(kind, msgspec.Struct | BaseModel | dict) or dataclasses.is_dataclass(kind)


def schema_of(kind: Any, *, for_writing: bool) -> dict[str, Any]:
    """Return the JSON schema of a type, with the schemas of its parts in `$defs`.

    With `for_writing` the schema describes the JSON that the mesh writes, else the JSON that the mesh accepts.
    For a type without a schema, return {}, which allows every JSON.
    """
    try:
        if _has_model(kind):
            return TypeAdapter(kind).json_schema(mode="serialization" if for_writing else "validation")
        return msgspec.json.schema(kind)
    except (TypeError, ValueError, PydanticUserError):
        return {}


def field_names_of(kind: Any) -> frozenset[str]:
    """Return the names of a type's fields; none for a plain dict. The values of the type must be JSON objects."""
    kind = get_origin(kind) or kind
    if issubclass(kind, msgspec.Struct):
        return frozenset(kind.__struct_fields__)
    if issubclass(kind, BaseModel):
        return frozenset(kind.model_fields)
    if dataclasses.is_dataclass(kind):
        return frozenset(field.name for field in dataclasses.fields(kind))
    return frozenset(get_type_hints(kind)) if is_typeddict(kind) else frozenset()


class StoredCodec(Generic[T]):
    """Writes and reads the stored text of one type: str and int as they are, all other types as JSON."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        self.encode: Callable[[T], str]
        self.decode: Callable[[str], T]
        if kind in (str, int):
            self.encode = _plain_encoder(kind)
            # The ignored error: mypy cannot see that T is this `kind`.
            self.decode = _decode_integer if kind is int else str  # type: ignore[assignment]
        else:
            codec: Codec[T] = Codec(kind)
            self.encode = _json_encoder(codec)
            self.decode = _json_decoder(codec)


def _decode_integer(text: str) -> int:
    # `int` alone would also accept spaces, underscores and the digits of other scripts.
    if not _INTEGER.fullmatch(text):
        raise NotOfType(f"expected an integer, got {text!r:.100}")
    return int(text)


def _plain_encoder(kind: type) -> Callable[[Any], str]:
    """Return the encoder of a kind whose values are stored as plain text, such as int."""

    def encode(value: Any) -> str:
        # `isinstance` would accept True as an int.
        if type(value) is not kind:
            raise UsageError(f"expected {kind.__name__}, got {class_and_value(value)}")
        return str(value)

    return encode


def _json_decoder(codec: Codec[Any]) -> Callable[[str], Any]:
    """Return a decoder of stored JSON. It raises NotOfType for a text that is not of the codec's type."""

    def decode(text: str) -> Any:
        try:
            return codec.decode(text)
        except DECODE_ERRORS as error:
            raise codec.explain(error) from None

    return decode


def _json_encoder(codec: Codec[Any]) -> Callable[[Any], str]:
    """Return an encoder that makes JSON of a value of the codec's type. It raises UsageError for any other value."""

    def encode(value: Any) -> str:
        if not codec.accepts(value):
            raise UsageError(f"expected {type_name_of(codec.kind)}, got {class_and_value(value)}")
        try:
            return codec.encode(value).decode()
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"the value cannot be written as JSON: {error}") from error

    return encode
