"""What operations keep in Redis, as typed names: values, hashes, sets, sorted sets.

A typed name has a key and the type of the value, but not the value itself: transactions and queries read it.
"""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

from mesh.errors import UsageError
from mesh.operations.codec import NotOfType, StoredCodec

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
K = TypeVar("K", str, int)

#: Types whose values cannot change, so that all readers may get the same object as the default.
_IMMUTABLE = (str, int, float, bool, bytes, type(None))


class Readable(Protocol[R_co]):
    """What `get` takes: reading a `Key[T]` gives T; reading a `Field[T]` gives T or None.

    `read` sends no command: `get` has fetched the text, and `read` makes the value of it.
    """

    def read(self, text: str | None, /) -> R_co:
        """Return the value that a stored text stands for. The text is None if nothing is stored."""


class KeyOrField(Generic[T]):
    """A key, or one field of a hash. `location` is (whether the key is shared, key, field), with None for no field."""

    __slots__ = ("codec", "location")

    def __init__(self, name: str, codec: StoredCodec[T], shared: bool, field: str | None = None) -> None:
        self.location = (shared, name, field)
        self.codec = codec

    def __str__(self) -> str:
        _, name, field = self.location
        return name if field is None else f"{name} {field}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def decode(self, text: str) -> T:
        """Return the value that a stored text stands for. Raises ValueError."""
        try:
            return self.codec.decode(text)
        except NotOfType as error:
            raise ValueError(f"{self} holds something else: {error}") from error

    def encode(self, value: T) -> str:
        """Return the text that is stored for a value. Raises UsageError for a value of another type."""
        try:
            return self.codec.encode(value)
        except UsageError as error:
            raise UsageError(f"{self}: {error.detail}") from error


class Field(KeyOrField[T]):
    """A key without a default, or a field of a hash, which never has one: reading it gives T or None."""

    __slots__ = ()

    def read(self, text: str | None) -> T | None:
        """Return the value that a stored text stands for; None if nothing is stored."""
        return None if text is None else self.decode(text)


class Key(KeyOrField[T]):
    """A key with a default: reading it gives T."""

    __slots__ = ("_default_text", "default")

    def __init__(self, name: str, codec: StoredCodec[T], shared: bool, default: T) -> None:
        super().__init__(name, codec, shared)
        self.default = default
        text = self.encode(default)
        #: The default as text, if readers could change the object: then each read decodes a new object from this text.
        self._default_text = None if isinstance(default, _IMMUTABLE) else text

    def read(self, text: str | None) -> T:
        """Return the value that a stored text stands for; the default if nothing is stored."""
        if text is None:
            if self._default_text is None:
                return self.default
            text = self._default_text
        return self.decode(text)


class _Collection:
    """A key with many elements."""

    __slots__ = ("name", "shared")

    def __init__(self, name: str, shared: bool) -> None:
        self.name = name
        self.shared = shared

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"


class Hash(_Collection, Generic[K, T]):
    """A hash: `seen[name]` is one of its fields."""

    __slots__ = ("_codec", "_field_type")

    def __init__(self, name: str, field_type: type[K], codec: StoredCodec[T], shared: bool) -> None:
        super().__init__(name, shared)
        #: the type of the names of its fields: str or int
        self._field_type: type[K] = field_type
        self._codec = codec

    def __getitem__(self, field: K) -> Field[T]:
        # `isinstance` would accept True as an int, and its name in Redis would be "True".
        if type(field) is not self._field_type:
            raise UsageError(f"a field of {self.name} is named by {self._field_type.__name__}, not by {field!r:.100}")
        return Field(self.name, self._codec, self.shared, str(field))

    def read(self, flat: list[str]) -> dict[K, T]:
        """Return the hash as a dict. `flat` is the answer to HGETALL: field, value, field, value, ..."""
        # `self[...]` is the Field, whose `decode` names itself in its error.
        return {
            self._field_type(name): self[self._field_type(name)].decode(text)
            for name, text in zip(flat[::2], flat[1::2], strict=True)
        }


class Values(_Collection, Generic[K, T]):
    """Values of one type, each with a key of its own: `stored[7]` is one of them, and may have a ttl."""

    __slots__ = ("_codec", "_id_type")

    def __init__(self, name: str, id_type: type[K], codec: StoredCodec[T], shared: bool) -> None:
        super().__init__(name, shared)
        #: the type of the ids: str or int
        self._id_type: type[K] = id_type
        self._codec = codec

    def __getitem__(self, id: K) -> Field[T]:
        if type(id) is not self._id_type:
            raise UsageError(f"a value of {self.name} is named by {self._id_type.__name__}, not by {id!r:.100}")
        return Field(f"{self.name}:{id}", self._codec, self.shared)


class _Members(_Collection, Generic[T]):
    """A set or a sorted set."""

    __slots__ = ("_codec",)

    def __init__(self, name: str, codec: StoredCodec[T], shared: bool) -> None:
        super().__init__(name, shared)
        self._codec = codec

    def encode(self, member: T) -> str:
        """Return the text that is stored for a member. Raises UsageError for a member of another type."""
        try:
            return self._codec.encode(member)
        except UsageError as error:
            raise UsageError(f"a member of {self.name}: {error.detail}") from error

    def decode(self, text: str) -> T:
        """Return the member that a stored text stands for. Raises ValueError."""
        try:
            return self._codec.decode(text)
        except NotOfType as error:
            raise ValueError(f"a member of {self.name} is something else: {error}") from error


class Set(_Members[T]):
    """A set."""

    __slots__ = ()


class SortedSet(_Members[T]):
    """A sorted set: members in the order of their scores."""

    __slots__ = ()


#: What `Transaction.delete` takes.
Deletable = KeyOrField[Any] | Hash[Any, Any] | Set[Any] | SortedSet[Any]
