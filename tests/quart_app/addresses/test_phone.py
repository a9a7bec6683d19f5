"""Each notation of a number leads to its one record; other text leads to none."""

from __future__ import annotations

import re
import unicodedata

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phonenumbers import PhoneNumberFormat, phonenumberutil

from quart_app.addresses.phone import PUNCTUATION_LETTERS, NotAPhone, PhoneReader

MOBILE = "tel:+79111234567"
LONDON = "tel:+442079460958"
FLOWERS = "tel:+18003569377"
CALIFORNIA = "tel:+16502530000"

#: notation, default region, the record it reaches
NOTATIONS = [
    # international
    ("+79111234567", None, MOBILE),
    ("+7 911 123-45-67", None, MOBILE),
    ("+7 (911) 123-45-67", None, MOBILE),
    ("(+7) 911 1234567", None, MOBILE),
    ("+7.911.123.45.67", None, MOBILE),
    ("+7 [911] 123 45 67", None, MOBILE),
    ("  +7 911 123 45 67  ", None, MOBILE),
    ("++79111234567", None, MOBILE),
    ("+7\u2011911\u2011123\u201345\u201467", None, MOBILE),
    ("+7\u00a0911\u00a0123\u00a045\u00a067", None, MOBILE),
    ("+7911\u200b1234567", None, MOBILE),
    ("\u202a+7 911 123 45 67\u202c", None, MOBILE),
    ("\u2066+79111234567\u2069", None, MOBILE),
    ("+44 20 7946 0958", None, LONDON),
    ("+44 (0)20 7946 0958", None, LONDON),
    ("+49 30/123456", None, "tel:+4930123456"),
    ("+39 06 698 12345", None, "tel:+390669812345"),
    ("+54 9 11 2345 6789", None, "tel:+5491123456789"),
    ("+800 1234 5678", None, "tel:+80012345678"),
    ("+86 138 0013 8000", None, "tel:+8613800138000"),
    # national, or dialled from another country
    ("8 (911) 123-45-67", "RU", MOBILE),
    ("8911 123 45 67", "RU", MOBILE),
    ("89111234567", "RU", MOBILE),
    ("911 123 45 67", "RU", MOBILE),
    ("7 911 123 45 67", "RU", MOBILE),
    ("+7 911 123 45 67", "DE", MOBILE),
    ("8 10 44 20 7946 0958", "RU", LONDON),
    ("8~10 44 20 7946 0958", "RU", LONDON),
    ("00 44 20 7946 0958", "DE", LONDON),
    ("011 44 20 7946 0958", "US", LONDON),
    ("020 7946 0958", "GB", LONDON),
    ("030/123456", "DE", "tel:+4930123456"),
    ("011 15-2345-6789", "AR", "tel:+5491123456789"),
    ("0 15 21 2345 6789", "BR", "tel:+552123456789"),
    ("(650) 253-0000", "US", CALIFORNIA),
    # extensions
    ("+7 911 123-45-67 ext. 12", None, MOBILE + ";ext=12"),
    ("+7 911 123-45-67 EXT 12", None, MOBILE + ";ext=12"),
    ("+7 911 123-45-67 extension 12", None, MOBILE + ";ext=12"),
    ("+7 911 123-45-67x12", None, MOBILE + ";ext=12"),
    ("+7 911 123-45-67 x１２", None, MOBILE + ";ext=12"),
    ("+7 911 123-45-67 х12", None, MOBILE + ";ext=12"),
    ("+7 911 123-45-67 ext ١٢", None, MOBILE + ";ext=12"),
    ("+7 911 123-45-67 #12", None, MOBILE + ";ext=12"),
    ("+7 911 123-45-67,12", None, MOBILE + ";ext=12"),
    ("+7 911 123-45-67,,12#", None, MOBILE + ";ext=12"),
    ("+7 911 123-45-67 anexo 12", None, MOBILE + ";ext=12"),
    ("+7 911 123-45-67 int. 12", None, MOBILE + ";ext=12"),
    ("+7 911 123-45-67 доб. 12", None, MOBILE + ";ext=12"),
    ("+7 911 123-45-67 (доб. 12)", None, MOBILE + ";ext=12"),
    ("+7 911 123-45-67 добавочный 12", None, MOBILE + ";ext=12"),
    ("+7 911 123-45-67 вн. 12", None, MOBILE + ";ext=12"),
    ("8 911 123-45-67 доб 012", "RU", MOBILE + ";ext=012"),
    # tel: URIs
    ("tel:+79111234567", None, MOBILE),
    ("tel:+7-911-123-45-67", None, MOBILE),
    ("TEL:+7-911-123-45-67;EXT=12", None, MOBILE + ";ext=12"),
    ("tel:+7-911-123-45-67;ext=12", None, MOBILE + ";ext=12"),
    ("tel:+79111234567;isub=7", None, MOBILE),
    ("tel:+79111234567;isub=7;ext=12", None, MOBILE + ";ext=12"),
    ("tel:253-0000;phone-context=+1-650", None, CALIFORNIA),
    ("TEL:253-0000;phone-context=+1-650", None, CALIFORNIA),
    ("tel. +7 911 123-45-67", None, MOBILE),
    ("Тел.: 8 911 123-45-67", "RU", MOBILE),
    # letters and signs that are punctuation: any carrier in Brazil, the long dash of Japan
    ("+55 (0xx11) 96123-4567", None, "tel:+5511961234567"),
    ("+55 (0XX11) 96123-4567", None, "tel:+5511961234567"),
    ("(0xx11) 96123-4567", "BR", "tel:+5511961234567"),
    ("+55 0x11 96123-4567 ext 5", None, "tel:+5511961234567;ext=5"),
    ("+81ー90ー1234ー5678", None, "tel:+819012345678"),
    ("０９０ｰ１２３４ｰ５６７８", "JP", "tel:+819012345678"),
    # other digits
    ("+٧٩١١١٢٣٤٥٦٧", None, MOBILE),
    ("+۷۹۱۱۱۲۳۴۵۶۷", None, MOBILE),
    ("+७९१११२३४५६७", None, MOBILE),
    ("＋７９１１１２３４５６７", None, MOBILE),
    ("٨٩١١١٢٣٤٥٦٧", "RU", MOBILE),
    # letters
    ("+1-800-FLOWERS", None, FLOWERS),
    ("1-800-flowers", "US", FLOWERS),
    ("1 800 FLOWERS ext 5", "US", FLOWERS + ";ext=5"),
    ("1-800-GO-FEDEX", "US", "tel:+18004633339"),
]

#: text, default region: none of them is a phone number
REFUSED = [
    ("", None),
    ("   ", None),
    ("hello", None),
    ("+", None),
    ("tel:", None),
    ("-", "RU"),
    ("8911 123 45 67", None),
    ("1-800-FLOWERS", None),
    ("+8 911 123 45 67", None),
    ("+999 123456789", None),
    ("+0 911 123 45 67", None),
    ("+7 911", None),
    ("+7 911 123-45-67-89-01-23-45", None),
    ("112", "RU"),
    ("0", "RU"),
    ("+7+9111234567", None),
    ("address +79111234567", None),
    ("+79111234567a", None),
    ("+7911a1234567", None),
    ("+79111234567 p12", None),
    ("+49 30 123456 ext.", None),
    ("+79111234567 ext", None),
    ("+79111234567;ext=", None),
    ("+79111234567 x", None),
    ("+79111234567 (x.)", None),
    ("+1 800 xxx 1234", None),
    ("+1 80x 123-4x6x", None),
    ("xx+79111234567", None),
    ("+79111234567;foo=bar", None),
    ("+79111234567 ext 12345678901234567890123", None),
    ("530 583-6985 x302/x2303", "US"),
    ("+1 650 253 0000 / +1 650 253 0001", None),
    ("tel:253-0000;phone-context=", None),
    ("tel:253-0000;phone-context=example.com", None),
    ("<script>+79111234567</script>", None),
    ("+7911\x001234567", None),
    ("9" * 251, "RU"),
    ("٩" * 240, "RU"),
    ("😀", None),
    ("\ud800", None),
]


def test_the_table_is_as_large_as_it_should_be() -> None:
    """The table has at least 60 notations, each once."""
    assert len({(text, region) for text, region, _ in NOTATIONS}) == len(NOTATIONS) >= 60


@pytest.mark.parametrize(("text", "region", "key"), NOTATIONS)
def test_a_notation_reaches_its_record(text: str, region: str | None, key: str) -> None:
    """Writing and finding give the same key for every notation."""
    reader = PhoneReader(region)
    assert reader.for_writing(text).key == reader.for_finding(text).key == key


def test_the_letters_of_the_library_s_punctuation_are_known() -> None:
    """A new release may read further letters as punctuation."""
    punctuation = unicodedata.normalize("NFKC", phonenumberutil._VALID_PUNCTUATION)
    assert {each.lower() for each in punctuation if each.isalpha()} == PUNCTUATION_LETTERS


#: Every sign that the library reads as punctuation; `\\u2010-\\u2015` and the like are ranges.
SIGNS = sorted(
    each
    for each in map(chr, range(0x10000))
    if re.fullmatch(f"[{phonenumberutil._VALID_PUNCTUATION}]", each) and unicodedata.category(each) != "Cs"
)


@pytest.mark.parametrize("sign", SIGNS)
def test_every_sign_that_the_library_reads_as_punctuation_is_one(sign: str) -> None:
    """The record is the one that the library reads, with any such sign between the digits."""
    for text in (f"+7{sign}911{sign}123-45-67", f"+7 {sign}911{sign} 123-45-67", f"+55 {sign}0{sign}11 961234567"):
        read = phonenumbers.parse(text)
        assert phonenumbers.is_possible_number(read) and not read.extension
        assert PhoneReader().for_finding(text).key == f"tel:{phonenumbers.format_number(read, PhoneNumberFormat.E164)}"


@pytest.mark.parametrize(("text", "region"), REFUSED)
def test_other_text_is_refused(text: str, region: str | None) -> None:
    """It can be neither written nor found, and the message does not repeat it."""
    for read in (PhoneReader(region).for_writing, PhoneReader(region).for_finding):
        with pytest.raises(NotAPhone) as refused:
            read(text)
        digits = [each for each in text if each.isdigit()]
        assert not digits or "".join(digits) not in str(refused.value)


def test_a_number_outside_the_numbering_plan_is_found_but_not_written() -> None:
    """Numbering plans change, and a record of an old plan must stay reachable."""
    assert PhoneReader().for_finding("+7 000 000 00 00").key == "tel:+70000000000"
    with pytest.raises(NotAPhone, match="no such phone number can exist"):
        PhoneReader().for_writing("+7 000 000 00 00")


def test_an_extension_is_another_record() -> None:
    """An extension has a record of its own, apart from the main number."""
    reader = PhoneReader()
    assert reader.for_writing("+79111234567") != reader.for_writing("+79111234567 ext 12")
    assert reader.for_writing("+79111234567 ext 12") != reader.for_writing("+79111234567 ext 012")


def test_a_number_is_shown_in_the_usual_hyphenated_form() -> None:
    """The shown form leads back to the same record."""
    phone = PhoneReader("RU").for_writing("8911 123 45 67 доб. 12")
    assert phone.shown == "tel:+7-911-123-45-67;ext=12"
    assert PhoneReader().for_writing(phone.shown) == phone


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.from_regex(r"[-+()0-9a-z;=., ]{0,40}", fullmatch=True))
def test_any_text_is_a_number_or_is_refused(text: str) -> None:
    """Any text gives a key or NotAPhone, and a key gives itself again."""
    for region in (None, "RU", "US"):
        try:
            phone = PhoneReader(region).for_finding(text)
        except NotAPhone:
            continue
        assert PhoneReader().for_finding(phone.key) == phone
        assert phone.key.isascii()


@pytest.mark.parametrize("region", sorted(phonenumbers.SUPPORTED_REGIONS))
def test_every_country_s_example_is_read_in_each_of_its_forms(region: str) -> None:
    """The national, international, E.164 and RFC 3966 forms give one key."""
    number = phonenumbers.example_number(region)
    if number is None or not phonenumbers.is_valid_number(number):
        pytest.skip("no example in the metadata")
    forms = phonenumbers.PhoneNumberFormat
    keys = {
        PhoneReader(region).for_writing(phonenumbers.format_number(number, form)).key
        for form in (forms.NATIONAL, forms.INTERNATIONAL, forms.E164, forms.RFC3966)
    }
    assert len(keys) == 1
