"""The HTTP routes of the movements service."""

from __future__ import annotations

from uuid import UUID

from pydantic import BaseModel, TypeAdapter, ValidationError
from quart import Blueprint, Response, request
from quart_schema import document_querystring, document_response, tag

from quart_app.http.problems import Problem
from quart_app.movements.ledger import Ledger
from quart_app.movements.models import Movement, MovementQuery, Stock

_UUID = TypeAdapter(UUID)
_movements_tag = tag(["movements"])


class MovementRoutes:
    """The routes of one replica, one method each."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.blueprint = Blueprint("movements", __name__, url_prefix="/api")
        for path, view in (
            ("/movements/<movement_id>", self.movement),
            ("/warehouses/<warehouse_id>/products/<product_id>", self.stock),
        ):
            self.blueprint.add_url_rule(path, view.__name__, view, methods=["GET"])

    @_movements_tag
    @document_querystring(MovementQuery)
    @document_response(Movement)
    async def movement(self, movement_id: str) -> Response:
        """Return a movement: its sender and receiver, how long it took, and how many items are missing."""
        product_id_text = request.args.get("product_id")
        product_id = None if product_id_text is None else _parse_uuid(product_id_text, "product_id")
        movement = await self._ledger.movement(_parse_uuid(movement_id, "movement_id"), product_id)
        return _found_or_404(movement, "no event names this movement, or this product in it")

    @_movements_tag
    @document_response(Stock)
    async def stock(self, warehouse_id: str, product_id: str) -> Response:
        """Return how many items of a product a warehouse has."""
        stock = await self._ledger.stock(
            _parse_uuid(warehouse_id, "warehouse_id"), _parse_uuid(product_id, "product_id")
        )
        return _found_or_404(stock, "no event names this product in this warehouse")


def _parse_uuid(text: str, name: str) -> UUID:
    """Return the id that a parameter holds. Raises Problem (422); a converter in the route would answer 404."""
    try:
        return _UUID.validate_python(text)
    except ValidationError:
        raise Problem(422, f"{name} is not a UUID", errors=[{"pointer": f"/{name}", "message": "not a UUID"}]) from None


def _found_or_404(model: BaseModel | None, not_found_detail: str) -> Response:
    if model is None:
        raise Problem(404, not_found_detail)
    return Response(model.model_dump_json(), content_type="application/json")
