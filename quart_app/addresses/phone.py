"""From any usual notation of a phone number to the one record it stands for.

`phonenumbers` does the reading. It was made to find numbers in prose, though, and so forgives what would lead to
somebody else's record here: text before the number, a stray letter, a second extension. Those are refused.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import phonenumbers
from phonenumbers import NumberParseException, PhoneNumber, PhoneNumberFormat

#: Longer than any number with extension and context.
MAX_LENGTH = 250

#: Words that may stand before an extension, as `phonenumbers` reads them.
EXTENSION_WORDS = {"ext", "extn", "extension", "extensión", "xtn", "x", "х", "anexo", "int", "доб"}

_HEAD = re.compile(r"^(?:tel|тел)(?:\.:?|:)?\s*")
_OTHER_EXTENSION_WORDS = re.compile(r"\b(?:добавочный|внутренний|внутр|вн)\b")
_SUBADDRESS = re.compile(r";isub=[^;]*")
_SECOND_NUMBER = re.compile(r"[\\/]\s*[xх]")
_WORD = re.compile(r"[^\W\d_]+")


class NotAPhone(ValueError):
    """This is no phone number; the text of the error never repeats what was given."""


@dataclass(frozen=True, slots=True)
class Phone:
    """A number that was understood. Two notations of one number are equal."""

    #: RFC 3966 without separators: `tel:+79111234567;ext=12`
    key: str
    #: RFC 3966 as people write it: `tel:+7-911-123-45-67;ext=12`
    shown: str


@dataclass(frozen=True, slots=True)
class PhoneReader:
    """Reads numbers; one without a country code is taken for one of `region`, if there is a region."""

    region: str | None = None

    def strictly(self, text: str) -> Phone:
        """The number, which must be one that can have been given out. For writing. Raises NotAPhone."""
        number = self._number(text)
        if not phonenumbers.is_valid_number(number):
            raise NotAPhone("no such phone number can exist: check the country, the area and the length")
        return _phone(number)

    def loosely(self, text: str) -> Phone:
        """The number, if its length is possible; numbering plans change after a record is written.

        For reading and deleting. Raises NotAPhone.
        """
        number = self._number(text)
        if not phonenumbers.is_possible_number(number):
            raise NotAPhone("too long or too short for a phone number of its country")
        return _phone(number)

    def _number(self, text: str) -> PhoneNumber:
        if len(text) > MAX_LENGTH:
            raise NotAPhone("too long for a phone number")
        plain = _tidy(text)
        try:
            number = phonenumbers.parse(plain, self.region)
        except NumberParseException as error:
            raise NotAPhone(_reason(error)) from None
        _refuse_leftovers(plain, number)
        return number


def _tidy(text: str) -> str:
    """The same notation in plain characters: no invisible ones, ASCII digits, small letters."""
    visible = (each for each in unicodedata.normalize("NFKC", text) if unicodedata.category(each) != "Cf")
    plain = "".join(str(unicodedata.decimal(each, each)) for each in visible).strip().lower()
    plain = _SUBADDRESS.sub("", plain)
    plain = _OTHER_EXTENSION_WORDS.sub("доб", plain)
    return plain if plain.startswith("tel:") else _HEAD.sub("", plain)


def _refuse_leftovers(plain: str, number: PhoneNumber) -> None:
    """Every letter must have had a part in the number: as an extension's name or as a digit (1-800-FLOWERS)."""
    written = _HEAD.sub("", plain).partition(";")[0]
    words = set(_WORD.findall(written))
    if _SECOND_NUMBER.search(written):
        raise NotAPhone("this looks like two numbers; give one")
    if words & EXTENSION_WORDS and not number.extension:
        raise NotAPhone("an extension is announced, yet none follows")
    if words - EXTENSION_WORDS and (_WORD.match(written) or not phonenumbers.is_alpha_number(written)):
        raise NotAPhone("there is text beside the number")


def _reason(error: NumberParseException) -> str:
    if error.error_type == NumberParseException.INVALID_COUNTRY_CODE:
        return "the country is missing or unknown: write the number with + and its country code"
    if error.error_type == NumberParseException.TOO_LONG:
        return "too long for a phone number"
    return "not a phone number"


def _phone(number: PhoneNumber) -> Phone:
    extension = f";ext={number.extension}" if number.extension else ""
    return Phone(
        key=f"tel:{phonenumbers.format_number(number, PhoneNumberFormat.E164)}{extension}",
        shown=phonenumbers.format_number(number, PhoneNumberFormat.RFC3966),
    )
