"""Masking of personal data before it is written to the log."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from pilotfish.protocols import Transform
from pilotfish.traffic.calls import Call

__all__ = ["PatternMasker", "mask_body", "mask_call", "mask_text"]

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[A-Za-z]{2,24}(?![\w-])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?![A-Za-z0-9])")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")
_IP = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:\.\d{1,3}){0,3})(?![\w:]|\.\d)"
)
_PHONE = re.compile(
    r"(?<![\w.,/-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){2,4}(?![\w/-]|[.,]\d)"
)


class PatternMasker:
    """Replace e-mail addresses, phone numbers, IBANs, card numbers and IP addresses by their kind in brackets.

    IBANs and card numbers are masked only when their check digits hold (ISO 13616 modulo 97, ISO/IEC 7812 Luhn);
    phone numbers when they have 9 to 15 digits, or 7 and more after an international prefix. Names and places stay.

    Examples
    --------
    >>> list(PatternMasker()(["Write to jo@example.org or call +44 20 7946 0958."]))
    ['Write to [EMAIL] or call [PHONE].']
    """

    def __call__(self, items: Iterable[str]) -> Iterator[str]:
        """Yield each text with what was found masked."""
        for text in items:
            yield self._masked(text)

    def _masked(self, text: str) -> str:
        if "@" in text:
            text = _EMAIL.sub("[EMAIL]", text)
        if not any(character.isdigit() for character in text) and ":" not in text:
            return text
        text = _IBAN.sub(_mask_iban, text)
        text = _CARD.sub(lambda m: "[CARD]" if is_card_number(m[0]) else m[0], text)
        text = _IP.sub(lambda m: "[IP]" if _is_ip(m[0]) else m[0], text)
        return _PHONE.sub(lambda m: "[PHONE]" if _is_phone(m[0]) else m[0], text)


def is_iban(text: str) -> bool:
    """Whether the check digits of an IBAN hold (ISO 13616)."""
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    digits = "".join(str(int(character, 36)) for character in compact[4:] + compact[:4])
    return int(digits) % 97 == 1


def is_card_number(text: str) -> bool:
    """Whether the Luhn digit of a card number holds (ISO/IEC 7812)."""
    digits = [int(character) for character in text if character.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def mask_body(body: bytes, mask: Transform[str, str]) -> bytes:
    """Mask every text inside a JSON body, keys excepted; a body that is not JSON is masked as text."""
    if not body:
        return body
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return mask_text(body.decode("utf-8", "replace"), mask).encode()
    return orjson.dumps(_walk(data, mask))


def mask_call(call: Call, mask: Transform[str, str]) -> Call:
    """Mask every text that users or models said in a call."""
    texts = {
        name: mask_text(text, mask)
        for name in ("prediction", "audit", "gold")
        if (text := getattr(call, name)) is not None
    }
    return call.replace(request=mask_body(call.request, mask), reply=mask_body(call.reply, mask), **texts)


def mask_text(text: str, mask: Transform[str, str]) -> str:
    """Mask one text."""
    return next(iter(mask([text])))


def _walk(value: Any, mask: Transform[str, str]) -> Any:
    if isinstance(value, str):
        return mask_text(value, mask)
    if isinstance(value, list):
        return [_walk(item, mask) for item in value]
    if isinstance(value, dict):
        return {key: _walk(item, mask) for key, item in value.items()}
    return value


def _mask_iban(found: re.Match[str]) -> str:
    # The pattern may have run on into capital words that follow the number.
    groups = found[0].split(" ")
    for n_groups in range(len(groups), 0, -1):
        if is_iban("".join(groups[:n_groups])):
            return " ".join(["[IBAN]", *groups[n_groups:]])
    return found[0]


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_phone(text: str) -> bool:
    n_digits = sum(character.isdigit() for character in text)
    return (7 if text.startswith("+") else 9) <= n_digits <= 15
