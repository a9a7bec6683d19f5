"""An AsyncAPI 3 document of a mesh: its streams as channels, its operations with their replies.

The document is made from the definitions in `mesh:operations`, without the code of the services. A request goes to the
stream of a class or of a database, so each operation is listed twice. AsyncAPI reads schemas as JSON Schema draft 7.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mesh import keys

#: A JSON schema.
Schema = dict[str, Any]

#: What the name of a component cannot have: "_" takes its place.
_FORBIDDEN_CHARACTER = re.compile(r"[^\w.-]")
#: How a schema refers to one of its own definitions.
_DEFS_PREFIX = "#/$defs/"
#: Keywords whose value is an object: name -> schema. The user chose these names, so they are not read as keywords.
_KEYWORDS_OF_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_STRING: Schema = {"type": "string"}

#: Fields that the entry of each request has beside its body.
_REQUEST_FIELDS: Mapping[str, str] = {
    "request": "the sender's key for the request; the reply carries the same key",
    "from": "the replica, or client without a lease, that sent the request",
    "reply_to": "the stream for the reply; empty when no caller waits",
    "deadline": "ms of Redis's clock; no replica begins the request later; 0 means no deadline",
}
#: Fields of the entry that only some requests have.
_OPTIONAL_FIELDS: Mapping[str, str] = {
    "call": "the X-Request-Id of the HTTP request, or another name that the caller set; only where there is one",
    "traceparent": "the W3C trace context; only where there is one",
    "limit": "the place of the request in a lane, or the rate that has let it through; only where there is a limit",
    "once": "the idempotency key; only where there is one",
    "sha": "the SHA-1 of the body; only where there is an idempotency key",
    "keep": "how long the answer is kept for later calls, in ms; only where there is an idempotency key",
    "first": "the time at which the request was sent, as an id; only where it has waited",
    "try": "how many tries have failed; only where one has",
    "error": "the error of the last try; only where one has failed",
    "read": "a shared key that the sender has named, to spare the handler a read; only where there is one",
    "found": "what that key had when the request was sent; empty for nothing",
}
_REPLY_FIELDS: Mapping[str, str] = {
    "request": "the sender's key for the request",
    "from": "the replica that answered",
    "forwards": "how many more replies follow, because the request was passed on",
}


def make_document(
    definitions: Mapping[str, Mapping[str, Any]], *, title: str, version: str, classes: str, database_count: int
) -> dict[str, Any]:
    """Return the AsyncAPI document of these operations, on the streams of these classes and databases."""
    schemas, messages, operations = _Schemas(), dict[str, Any](), dict[str, Any]()
    request_refs, reply_refs = dict[str, Any](), dict[str, Any]()
    for component, op in _component_names(definitions):
        definition = definitions[op]
        messages[f"{component}.request"] = _request_message(op, definition, schemas)
        request_refs[component] = _ref("components", "messages", f"{component}.request")
        reply_messages = {
            f"{component}.reply": _reply_message(op, definition, schemas),
            **_error_messages(definition, schemas),
        }
        messages |= reply_messages
        reply_refs |= {name: _ref("components", "messages", name) for name in reply_messages}
        for channel in ("class", "database"):
            operation_name = component if channel == "class" else f"{component}.database"
            operations[operation_name] = _make_operation(channel, component, list(reply_messages), definition)
    return {
        "asyncapi": "3.0.0",
        # AsyncAPI demands a version; "0" stands for an unknown one.
        "info": {"title": title, "version": version or "0", "description": _DESCRIPTION},
        "defaultContentType": "application/json",
        "channels": _make_channels(request_refs, reply_refs, classes, database_count),
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas.by_name},
    }


_DESCRIPTION = (
    "Requests and replies are entries of Redis streams. The headers of a message are fields of the entry; its payload "
    "is the field `body`, as JSON."
)


def _ref(*path: str) -> dict[str, str]:
    return {"$ref": "#/" + "/".join(path)}


def _component_names(definitions: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield for each operation the name of its components, which no other operation has, and the operation's name.

    AsyncAPI allows only letters, digits, "_", "." and "-" in the name of a component.
    """
    taken_names: set[str] = set()
    for op in sorted(definitions):
        component = base_name = _FORBIDDEN_CHARACTER.sub("_", op) or "_"
        suffix = 2
        while component in taken_names:
            component, suffix = f"{base_name}-{suffix}", suffix + 1
        taken_names.add(component)
        yield component, op


def _make_channels(request_refs: Schema, reply_refs: Schema, classes: str, database_count: int) -> dict[str, Any]:
    """Return the channels of the document: a class, a database, and the replies."""
    database_numbers = [str(number) for number in range(database_count)]
    return {
        "class": {
            "address": keys.class_requests("{class}"),
            "title": "Requests to any one replica of a class",
            "parameters": {"class": {"enum": list(classes), "description": "the class"}},
            "messages": request_refs,
        },
        "database": {
            "address": f"{keys.REQUESTS}db{{database}}",
            "title": "Requests to the replica that holds a database; a gather puts one on each",
            "parameters": {"database": {"enum": database_numbers, "description": "the number of the database"}},
            "messages": request_refs,
        },
        # The address is null, because each request names it: AsyncAPI demands that.
        "replies": {
            "address": None,
            "title": "Replies to one replica or client",
            "description": f"The stream {keys.replies('{replica}')}; the field `reply_to` of the request names it.",
            "messages": reply_refs,
        },
    }


def _make_operation(
    channel: str, component: str, reply_names: Sequence[str], definition: Mapping[str, Any]
) -> dict[str, Any]:
    """Return one operation of the document, whose requests a replica receives on `channel` and answers."""
    return {
        "action": "receive",
        "summary": definition.get("summary", ""),
        "channel": _ref("channels", channel),
        "messages": [_ref("channels", channel, "messages", component)],
        "reply": {
            "address": {"location": "$message.header#/reply_to"},
            "channel": _ref("channels", "replies"),
            "messages": [_ref("channels", "replies", "messages", name) for name in reply_names],
        },
        "tags": [{"name": name} for name in (definition.get("service"), definition.get("kind")) if name],
    }


def _request_message(op: str, definition: Mapping[str, Any], schemas: _Schemas) -> dict[str, Any]:
    """Return the message that describes the requests of an operation."""
    no_body_schema = {"type": "object", "description": "no body"}
    schema = definition.get("request")  # None: the operation takes no body
    return _make_message(
        f"{op}: request",
        _make_headers(op, _REQUEST_FIELDS, optional_fields=_OPTIONAL_FIELDS),
        no_body_schema if schema is None else schemas.add(f"{op}.request", schema),
    )


def _reply_message(op: str, definition: Mapping[str, Any], schemas: _Schemas) -> dict[str, Any]:
    headers = _make_headers(op, _REPLY_FIELDS, {"const": "ok"})
    return _make_message(f"{op}: reply", headers, schemas.add(f"{op}.reply", definition.get("reply") or {}))


def _error_messages(definition: Mapping[str, Any], schemas: _Schemas) -> dict[str, Any]:
    """Return the messages of the service's own errors, and one for all other failures."""
    errors: Mapping[str, Any] = definition.get("errors") or {}
    messages = {}
    for code, error in errors.items():
        facts = {name: schemas.add(f"{code}.{name}", schema) for name, schema in error["facts"].items()}
        payload = {"type": "object", "properties": {"detail": _STRING, **facts}, "required": ["detail", *facts]}
        # None: the replies with this error may belong to any operation.
        headers = _make_headers(None, _REPLY_FIELDS, {"const": code})
        messages[_FORBIDDEN_CHARACTER.sub("_", code)] = {
            **_make_message(code, headers, payload),
            "summary": error["detail"],
        }
    # The message for all other failures excludes the codes of the service's own errors. So each service with errors
    # needs a message of its own.
    other_status = {"not": {"enum": ["ok", *errors]}, **_STRING}
    payload = {"type": "object", "properties": {"detail": _STRING}, "required": ["detail"]}
    service = _FORBIDDEN_CHARACTER.sub("_", str(definition.get("service") or "")) if errors else ""
    messages[f"{service}.failure" if service else "failure"] = {
        **_make_message("another failure", _make_headers(None, _REPLY_FIELDS, other_status), payload),
        "summary": "`status` is the code of an error, `detail` says what happened, and further fields are its facts.",
    }
    return messages


def _make_message(title: str, headers: Schema, payload: Schema) -> dict[str, Any]:
    """Return a message of the document. The field `request` of its entry links a reply to its request."""
    return {
        "title": title,
        "contentType": "application/json",
        "correlationId": {"location": "$message.header#/request"},
        "headers": headers,
        "payload": payload,
    }


def _make_headers(
    op: str | None,
    fields: Mapping[str, str],
    status: Schema | None = None,
    optional_fields: Mapping[str, str] | None = None,
) -> Schema:
    """Return the schema of an entry's fields but the body. `fields` and `optional_fields` are name -> description.

    `op` is None for an error, which several operations can answer. `status` is the schema of that field; None for a
    request, which has no status.
    """
    properties: Schema = {"op": {"const": op, **_STRING} if op else _STRING}
    properties |= {name: {**_STRING, "description": text} for name, text in fields.items()}
    if status is not None:
        properties["status"] = status
    required = [*properties]
    properties |= {name: {**_STRING, "description": text} for name, text in (optional_fields or {}).items()}
    return {"type": "object", "properties": properties, "required": required}


class _Schemas:
    """The schemas of a document by name. Equal schemas are stored once, if all that they refer to is equal, too."""

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}
        #: name -> the JSON of the definition that has it, and of all definitions that this one refers to
        self._content_of: dict[str, str] = {}

    def add(self, owner: str, schema: Mapping[str, Any]) -> Schema:
        """Move the definitions of a schema here, and return the rest of the schema, which refers to them.

        If a definition has the name of a different definition that is here already, its new name begins with `owner`.
        No other call has this owner.
        """
        definitions: Mapping[str, Any] = schema.get("$defs", {})
        new_names = {name: self._choose_name(owner, name, definitions) for name in definitions}
        for name, named_schema in definitions.items():
            self.by_name[new_names[name]] = _translate_to_draft_7(named_schema, new_names)
        without_defs = {keyword: value for keyword, value in schema.items() if keyword != "$defs"}
        rest_of_schema: Schema = _translate_to_draft_7(without_defs, new_names)
        return rest_of_schema

    def _choose_name(self, owner: str, name: str, definitions: Mapping[str, Any]) -> str:
        """Return a name for a schema: its own, unless a different schema has it. Then the name begins with `owner`."""
        # Two definitions are equal only if all that they refer to is equal, too.
        content = json.dumps(
            {reached: definitions[reached] for reached in sorted(_reachable_names(name, definitions))}, sort_keys=True
        )
        new_name = _FORBIDDEN_CHARACTER.sub("_", name)
        if self._content_of.setdefault(new_name, content) != content:
            new_name = f"{_FORBIDDEN_CHARACTER.sub('_', owner)}.{new_name}"
            self._content_of[new_name] = content
        return new_name


def _reachable_names(name: str, definitions: Mapping[str, Any]) -> set[str]:
    """Return the names of a definition and of all that it refers to, directly or through others."""
    reached_names, unvisited = {name}, [name]
    while unvisited:  # each name is visited once, so definitions that refer to each other end this, too
        for target in re.findall(r'"#/\$defs/([^"]*)"', json.dumps(definitions[unvisited.pop()])):
            if target in definitions and target not in reached_names:
                reached_names.add(target)
                unvisited.append(target)
    return reached_names


def _translate_to_draft_7(schema: Any, new_names: Mapping[str, str]) -> Any:
    """Return a JSON Schema of version 2020-12 as one of draft 7. `new_names` are the new names of its definitions.

    This goes down into each part, but follows no `$ref`. So it ends, even if a definition refers to itself.
    """
    if isinstance(schema, list):
        return [_translate_to_draft_7(part, new_names) for part in schema]
    if not isinstance(schema, dict):
        return schema
    translated: Schema = {}
    for keyword, value in schema.items():
        if keyword in _KEYWORDS_OF_NAMED_SCHEMAS and isinstance(value, dict):
            translated[keyword] = {name: _translate_to_draft_7(part, new_names) for name, part in value.items()}
        elif keyword == "$ref" and isinstance(value, str) and value.startswith(_DEFS_PREFIX):
            target = value.removeprefix(_DEFS_PREFIX)
            translated[keyword] = f"#/components/schemas/{new_names.get(target, target)}"
        elif keyword in ("const", "enum", "default", "examples"):
            translated[keyword] = value  # data, not a schema
        # `discriminator` is left out: it means something else in AsyncAPI, and `anyOf` suffices without it.
        elif keyword != "discriminator":
            translated[keyword] = _translate_to_draft_7(value, new_names)
    # Draft 7 calls the schemas of the first elements `items`, and that of all further elements `additionalItems`.
    if "prefixItems" in translated:
        other_items = translated.pop("items", True)  # True: any further element is valid
        translated["items"], translated["additionalItems"] = translated.pop("prefixItems"), other_items
    return translated
