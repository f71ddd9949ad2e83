"""Personal data is masked where its check digits hold, and other numbers stay."""

from __future__ import annotations

import time

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.traffic.masking import PatternMasker, is_card_number, is_iban, mask_body


def masked(text: str) -> str:
    return next(PatternMasker()([text]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mail jo.doe+x@mail.example.co.uk, please.", "Mail [EMAIL], please."),
        ("IBAN DE89 3704 0044 0532 0130 00 THEN more", "IBAN [IBAN] THEN more"),
        ("GB82WEST12345698765432", "[IBAN]"),
        ("DE88 3704 0044 0532 0130 00", "DE88 3704 0044 0532 0130 00"),
        ("card 4111 1111 1111 1111.", "card [CARD]."),
        ("card 4111-1111-1111-1112", "card 4111-1111-1111-1112"),
        ("from 192.168.0.17 and 2001:db8::1", "from [IP] and [IP]"),
        ("version 1.2.3 at 12:30:45, 300.1.1.1", "version 1.2.3 at 12:30:45, 300.1.1.1"),
        ("call +49 30 901820 or (020) 7946 0958", "call [PHONE] or [PHONE]"),
        ("I paid 1,250.00 on 2024 for 3 items in 10115", "I paid 1,250.00 on 2024 for 3 items in 10115"),
        ("no numbers", "no numbers"),
    ],
)
def test_patterns(text, expected):
    assert masked(text) == expected


def test_check_digits():
    # Examples of the ISO 13616 registry and of card schemes' test numbers.
    assert all(map(is_iban, ["NO9386011117947", "FR1420041010050500013M02606", "MT84MALT011000012345MTLCAST001S"]))
    assert not is_iban("NO9386011117948")
    assert all(map(is_card_number, ["378282246310005", "5555555555554444", "6011111111111117"]))
    assert not is_card_number("0000000000000000")


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.text() | st.integers(-(2**53), 2**53) | st.none() | st.booleans(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_a_masked_body_keeps_its_shape(data):
    def shape(value):
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        if isinstance(value, list):
            return [shape(item) for item in value]
        return type(value)

    assert shape(orjson.loads(mask_body(orjson.dumps(data), PatternMasker()))) == shape(data)


def test_bodies_that_are_no_json():
    assert mask_body(b"", PatternMasker()) == b""
    assert mask_body(b"to jo@example.org", PatternMasker()) == b"to [EMAIL]"


@pytest.mark.parametrize("text", ["1" * 50_000, "a" * 50_000 + "@", "a:" * 25_000, "1 2 " * 12_000, "DE12" * 12_000])
def test_long_texts_take_no_long_time(text):
    start = time.perf_counter()
    masked(text)
    assert time.perf_counter() - start < 2
