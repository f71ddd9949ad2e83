"""The form in which answers are compared."""

from __future__ import annotations

__all__ = ["normalise"]

_EDGE = " \t\r\n\"'`.,;:!*"


def normalise(answer: str) -> str:
    """Bring an answer to the form in which answers are compared: case, outer quotes, full stops, underscores aside.

    Examples
    --------
    >>> normalise(' "Card_Arrival." ')
    'card arrival'
    >>> normalise("**")
    '**'
    """
    words = answer.replace("_", " ").strip(_EDGE).casefold().split()
    return " ".join(words or answer.split())
