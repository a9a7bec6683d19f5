"""The HTTP routes of the address service."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from quart import Blueprint, Response, jsonify, request
from quart_schema import document_querystring, document_request, document_response, tag

from quart_app.addresses.models import Created, CustomerAddress, NewAddress, PhoneQuery, Updated
from quart_app.addresses.phone import NotAPhone, Phone, PhoneReader
from quart_app.addresses.query import phone_in
from quart_app.addresses.settings import AddressSettings
from quart_app.addresses.store import Addresses
from quart_app.http.body import read_json
from quart_app.http.problems import Problem
from quart_app.service import Context

_CUSTOMER_ADDRESS = TypeAdapter(CustomerAddress)
_NEW_ADDRESS = TypeAdapter(NewAddress)
_tagged = tag(["addresses"])
#: About how many bytes Redis takes for one record (a phone and its address), without the text of the address. Too small
#: an estimate lets Redis fill up, too large a one refuses records early.
RECORD_BYTES = 150


class AddressRoutes:
    """The routes of one replica, one method each."""

    def __init__(self, context: Context, settings: AddressSettings) -> None:
        self._context = context
        self._phone_reader = PhoneReader(settings.default_region or None)
        self.blueprint = Blueprint("addresses", __name__, url_prefix=settings.endpoint_prefix)
        # "/<path:phone>", not "/<phone>": a phone may contain a slash.
        for path, method, view in (
            ("", "POST", self.create),
            ("", "GET", self.read),
            ("", "PUT", self.update),
            ("", "DELETE", self.delete),
            ("/<path:phone>", "GET", self.read_at),
            ("/<path:phone>", "PUT", self.update_at),
            ("/<path:phone>", "DELETE", self.delete_at),
        ):
            self.blueprint.add_url_rule(path, view.__name__, view, methods=[method], strict_slashes=False)

    @_tagged
    @document_request(CustomerAddress)
    @document_response(Created, 201)
    async def create(self) -> tuple[Response, int]:
        """Store an address for a phone that has none; 409 if the phone has one."""
        given = await read_json(_CUSTOMER_ADDRESS)
        phone = self._phone_to_write(given.phone)
        self._require_room(given.address)
        if not await self._addresses.create(phone, given.address):
            raise Problem(409, "this phone already has an address; use PUT to replace it")
        return jsonify(_answer_body(Created, phone, given.address)), 201

    @_tagged
    @document_querystring(PhoneQuery)
    @document_response(CustomerAddress)
    async def read(self) -> Response:
        """Return the address of a phone."""
        return await self._address_response(self._phone_in_query())

    @_tagged
    @document_response(CustomerAddress)
    async def read_at(self, phone: str) -> Response:
        """Return the address of the phone in the path."""
        return await self._address_response(self._phone_to_find(phone))

    @_tagged
    @document_request(CustomerAddress)
    @document_response(Updated)
    async def update(self) -> Response:
        """Replace the address of a phone."""
        given = await read_json(_CUSTOMER_ADDRESS)
        return await self._replaced_response(self._phone_to_write(given.phone), given.address)

    @_tagged
    @document_request(NewAddress)
    @document_response(Updated)
    async def update_at(self, phone: str) -> Response:
        """Replace the address of the phone in the path."""
        phone_in_path = self._phone_to_write(phone, pointer="")
        given = await read_json(_NEW_ADDRESS)
        if given.phone is not None and self._phone_to_write(given.phone) != phone_in_path:
            raise _invalid_field("/phone", "the phone in the body is not the phone in the path")
        return await self._replaced_response(phone_in_path, given.address)

    @_tagged
    @document_querystring(PhoneQuery)
    async def delete(self) -> tuple[str, int]:
        """Delete the address of a phone."""
        return await self._deleted_response(self._phone_in_query())

    @_tagged
    async def delete_at(self, phone: str) -> tuple[str, int]:
        """Delete the address of the phone in the path."""
        return await self._deleted_response(self._phone_to_find(phone))

    @property
    def _addresses(self) -> Addresses:
        # Made for each request, because the next membership has another client.
        return Addresses(self._context.mesh.shared)

    async def _address_response(self, phone: Phone) -> Response:
        address = await self._addresses.read(phone)
        if address is None:
            raise _not_found()
        return jsonify({"phone": phone.shown, "address": address})

    async def _replaced_response(self, phone: Phone, address: str) -> Response:
        self._require_room(address)
        if not await self._addresses.update(phone, address):
            raise _not_found()
        return jsonify(_answer_body(Updated, phone, address))

    def _require_room(self, address: str) -> None:
        """Count the bytes of a record that is about to be stored. Raises Busy if Redis has no room for them."""
        self._context.mesh.memory.store(RECORD_BYTES + len(address.encode()))

    async def _deleted_response(self, phone: Phone) -> tuple[str, int]:
        if not await self._addresses.delete(phone):
            raise _not_found()
        return "", 204

    def _phone_in_query(self) -> Phone:
        try:
            return self._phone_reader.for_finding(phone_in(request.query_string))
        except NotAPhone as error:
            raise _invalid_field("", str(error)) from None

    def _phone_to_find(self, text: str) -> Phone:
        try:
            return self._phone_reader.for_finding(text)
        except NotAPhone as error:
            raise _invalid_field("", str(error)) from None

    def _phone_to_write(self, text: str, pointer: str = "/phone") -> Phone:
        try:
            return self._phone_reader.for_writing(text)
        except NotAPhone as error:
            raise _invalid_field(pointer, str(error)) from None


def _answer_body(model: type[Created] | type[Updated], phone: Phone, address: str) -> dict[str, Any]:
    return model(customer_addr=CustomerAddress(phone=phone.shown, address=address)).model_dump()


def _not_found() -> Problem:
    return Problem(404, "this phone has no address")


def _invalid_field(pointer: str, message: str) -> Problem:
    """Return a 422 for one field. The message never repeats the phone, so that no log can contain it.

    `pointer` is the JSON pointer to the field in the body; "": the phone is not in the body.
    """
    return Problem(422, message, errors=[{"pointer": pointer, "message": message}])
