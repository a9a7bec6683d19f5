"""Reading the phone in a query string: plus signs and spaces."""

from __future__ import annotations

import pytest

from quart_app.addresses.phone import NotAPhone
from quart_app.addresses.query import phone_in


@pytest.mark.parametrize(
    ("query", "text"),
    [
        (b"phone=+79111234567", "+79111234567"),
        (b"phone=%2B79111234567", "+79111234567"),
        (b"phone=%2B7+911+123-45-67", "+7 911 123-45-67"),
        (b"phone=+7+911+123-45-67", "+7 911 123-45-67"),
        (b"phone=+7%20911", "+7 911"),
        (b"phone=8+911+123+45+67", "8 911 123 45 67"),
        (b"phone=+%2B7911", " +7911"),
        (b"phone=tel:+7911;ext=12", "tel:+7911;ext=12"),
        (b"phone=tel%3A+7911", "tel:+7911"),
        (b"phone=tel:253-0000;phone-context=+1-650", "tel:253-0000;phone-context=+1-650"),
        (b"phone=(+7)+911", "(+7) 911"),
        (b"phone=%2B%D9%A7%D9%A9", "+٧٩"),
        (b"phone=+%D9%A7%D9%A9", "+٧٩"),
        (b"phone=7911+ext+12", "7911 ext 12"),
        (b"a=1&phone=+7911&b=2", "+7911"),
        (b"phone=+", " "),
        (b"phone=", ""),
    ],
)
def test_a_plus_is_a_sign_before_the_number_and_a_space_elsewhere(query: bytes, text: str) -> None:
    """People paste a raw plus, and forms encode spaces as pluses. Both forms are read."""
    assert phone_in(query) == text


@pytest.mark.parametrize("query", [b"", b"phon=+7911", b"phone=1&phone=2", b"phone=%FF", b"phone=%ED%A0%80"])
def test_a_query_without_one_readable_phone_is_refused(query: bytes) -> None:
    """A phone that is missing, repeated or not UTF-8 is an error."""
    with pytest.raises(NotAPhone):
        phone_in(query)
