"""Reads a phone number in any usual notation and returns the key of its record.

The `phonenumbers` library reads the number. The library was made to find numbers in prose, so it ignores text before a
number, a stray letter, or a second extension. Here such text could lead to another person's record, so it is refused.
This check comes after the library has read the number, and allows everything that the library reads as part of a
number.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import phonenumbers
from phonenumbers import NumberParseException, PhoneNumber, PhoneNumberFormat

#: Longest text that is read, in characters. `phonenumbers` refuses a longer one, too.
MAX_PHONE_LENGTH = 250

#: Words that `phonenumbers` reads as the label of an extension.
EXTENSION_LABELS = {"ext", "extn", "extension", "extensión", "xt", "xtn", "x", "anexo", "int", "доб"}
#: Letters that `phonenumbers` reads as punctuation: 0xx11 in Brazil (xx is any carrier), the long dash of Japan.
PUNCTUATION_LETTERS = {"x", "ー"}

#: A Cyrillic х is read as the Latin x that it looks like, because x is the label of an extension.
_CYRILLIC_X = str.maketrans("х", "x")
#: The label before a number, such as "tel:" or "Тел.:".
_TEL_PREFIX = re.compile(r"^(?:tel|тел)(?:\.:?|:)?\s*")
#: Labels of an extension that `phonenumbers` does not know. "доб", which it knows, takes their place.
_UNKNOWN_EXTENSION_LABELS = re.compile(r"\b(?:добавочный|внутренний|внутр|вн)\b")
#: `phonenumbers` ignores a subaddress and all text after it, even an extension. So the subaddress is removed first.
_SUBADDRESS = re.compile(r";isub=[^;]*")
#: `phonenumbers` takes a slash and an x as the beginning of a second number, and ignores what follows.
_SECOND_NUMBER = re.compile(r"[\\/]\s*x")
#: Letters side by side, such as a word.
_LETTERS = re.compile(r"[^\W\d_]+")
#: An x at the end, with no letter directly before it.
_ENDS_WITH_LONE_X = re.compile(r"(?<![^\W\d_])x[^\w+]*$")


class NotAPhone(ValueError):
    """The text is not a phone number. The message never repeats the text, so that no log can contain a number.

    For the same reason the error of `phonenumbers` is not its cause (`from None`).
    """


@dataclass(frozen=True, slots=True)
class Phone:
    """A phone number. Two notations of one number are equal."""

    #: RFC 3966 without separators: `tel:+79111234567;ext=12`
    key: str
    #: RFC 3966 with separators, for people: `tel:+7-911-123-45-67;ext=12`
    shown: str


@dataclass(frozen=True, slots=True)
class PhoneReader:
    """Reads phone numbers. A number without a country code belongs to `region`, or is refused if `region` is None."""

    region: str | None = None

    def for_writing(self, text: str) -> Phone:
        """Return a number that the numbering plan of its country allows. Raises NotAPhone."""
        number = self._parsed(text)
        if not phonenumbers.is_valid_number(number):
            raise NotAPhone("no such phone number can exist; check the country code, the area code and the length")
        return _phone_of(number)

    def for_finding(self, text: str) -> Phone:
        """Return a number of a possible length, to read or delete a record. Raises NotAPhone.

        Numbering plans change, and a record that was written under an old plan must stay reachable.
        """
        number = self._parsed(text)
        if not phonenumbers.is_possible_number(number):
            raise NotAPhone("the number is too long or too short for its country")
        return _phone_of(number)

    def _parsed(self, text: str) -> PhoneNumber:
        if len(text) > MAX_PHONE_LENGTH:
            raise NotAPhone("the text is too long for a phone number")
        normalised = _normalised(text)
        try:
            number = phonenumbers.parse(normalised, self.region)
        except NumberParseException as error:
            raise NotAPhone(_why_unreadable(error)) from None
        _refuse_leftovers(normalised, number)
        return number


def _normalised(text: str) -> str:
    """Return the text as `phonenumbers` reads it best: with ASCII digits and small letters.

    Invisible characters, a subaddress and a label before the number are removed. A label of an extension is replaced
    if `phonenumbers` does not know it. The prefix of a URI (`tel:`) stays.
    """
    # NFKC turns full-width and similar characters into plain ones. The category Cf has the invisible ones, such as the
    # mark of right-to-left text.
    visible = (
        character for character in unicodedata.normalize("NFKC", text) if unicodedata.category(character) != "Cf"
    )
    readable = "".join(str(unicodedata.decimal(character, character)) for character in visible).strip().lower()
    readable = _SUBADDRESS.sub("", readable).translate(_CYRILLIC_X)
    readable = _UNKNOWN_EXTENSION_LABELS.sub("доб", readable)
    return readable if readable.startswith("tel:") else _TEL_PREFIX.sub("", readable)


def _refuse_leftovers(normalised: str, number: PhoneNumber) -> None:
    """Raise NotAPhone unless every letter is punctuation, the label of an extension, or a digit (1-800-FLOWERS)."""
    # `_normalised` leaves the prefix of a URI, and a URI has parameters after a semicolon, such as the extension.
    number_text = _TEL_PREFIX.sub("", normalised).partition(";")[0]
    letter_runs = set(_LETTERS.findall(number_text))
    punctuation_runs = {letters for letters in letter_runs if set(letters) <= PUNCTUATION_LETTERS}
    letters_stand_for_digits = phonenumbers.is_alpha_number(number_text)
    if _SECOND_NUMBER.search(number_text):
        raise NotAPhone("the text looks like two numbers; give one")
    # An x inside the number is punctuation, so it announces an extension only at the end.
    if not number.extension and (
        letter_runs & (EXTENSION_LABELS - punctuation_runs) or _ENDS_WITH_LONE_X.search(number_text)
    ):
        raise NotAPhone("the text announces an extension, but no extension follows")
    # Letters at the beginning: the library ignores them.
    if _LETTERS.match(number_text) or (
        letter_runs - EXTENSION_LABELS - punctuation_runs and not letters_stand_for_digits
    ):
        raise NotAPhone("the text contains words beside the number")
    if punctuation_runs - EXTENSION_LABELS and letters_stand_for_digits:
        # The library reads three letters x as the digits 999, but people write x in place of digits that they hide.
        raise NotAPhone("the number contains x in place of digits; write all digits")


def _why_unreadable(error: NumberParseException) -> str:
    if error.error_type == NumberParseException.INVALID_COUNTRY_CODE:
        return "the country code is missing or unknown; write the number with + and its country code"
    if error.error_type == NumberParseException.TOO_LONG:
        return "the text is too long for a phone number"
    return "the text is not a phone number"


def _phone_of(number: PhoneNumber) -> Phone:
    extension = f";ext={number.extension}" if number.extension else ""
    return Phone(
        key=f"tel:{phonenumbers.format_number(number, PhoneNumberFormat.E164)}{extension}",
        shown=phonenumbers.format_number(number, PhoneNumberFormat.RFC3966),
    )
