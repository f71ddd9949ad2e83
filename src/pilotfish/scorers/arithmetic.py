"""Numbers that contradict themselves, found and mended by exact arithmetic: sums, products and comparisons."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from pilotfish.protocols import FloatArray
from pilotfish.scorers.answers import equations, is_stated, worked_out
from pilotfish.types import Exchange

__all__ = ["ArithmeticCheck", "Statement", "mended", "statements"]

# Looked for from its first digit alone, and given back in no part: a reply may repeat a number without end.
_N = r"((?:-|(?<!\d)(?<!\d,))\d[\d,]*+(?:\.\d+)?+)"
_SIGN = re.compile(rf"{_N}[ \t]*([<>])[ \t]*{_N}(?![\d.]*\s*[-+*/=])")
_WORDS = re.compile(
    rf"{_N}\s+(is\s+(?:greater|larger|bigger|more|higher|less|smaller|lower|fewer)\s+than)\s+{_N}", re.IGNORECASE
)
_OPERATORS = r"+*/^\u00d7\u00f7\u2013\u2212-"
_BULLET = re.compile(r"\s*(?:[-*+\u2013\u2022]|\d+[.)])[ \t]+")
# What stands before or after a match that is only a part of what is meant: "4 hours * 2 / 3 = 6", "2(3 + 4) = 14",
# "1 1/2 + 2 = 3.5", ".5 * 4 = 2", "1 - 3/5 = 2/5", "2 + 2 > 3", "10:30 + 1 = 11:30".
_GOES_BEFORE = re.compile(rf"(?:[\w.)%\u00bc-\u00be{_OPERATORS}]|\d:|(?:[\d)%\u00bc-\u00be{_OPERATORS}]|\bx)[ \t]+)$")
_GOES_ON = re.compile(rf"[ \t]*[x{_OPERATORS}][ \t]*\$?[\d(]|[ \t]+\d|:\d")
# What the other side of a comparison does not have: "0.5 > 20%", "900,000 < 1 million", "100 < 2e3".
_SCALED = re.compile(
    r"[^\W\d_]|[ \t]?(?:%|(?:dozen|hundred|thousand|million|billion|trillion|percent)\b)", re.IGNORECASE
)
_LOOKED_AT = 40
_PERCENT = re.compile(r" ?%")
_LESS = re.compile(r"less|smaller|lower|fewer", re.IGNORECASE)
_OPPOSITE = {"greater": "less", "larger": "smaller", "bigger": "smaller", "more": "less", "higher": "lower"}
_OPPOSITE |= {"less": "greater", "smaller": "larger", "lower": "higher", "fewer": "more"}


@dataclass(frozen=True, slots=True)
class Statement:
    """A checked statement about numbers.

    Parameters
    ----------
    start, end : int
        Its characters.
    holds : bool
        Whether it is true.
    mended : str
        The statement as it should be.
    """

    start: int
    end: int
    holds: bool
    mended: str


def statements(text: str) -> list[Statement]:
    """Find equations and comparisons of numbers, and check them; what is part of a longer one is left out.

    Examples
    --------
    >>> [(s.holds, s.mended) for s in statements("9.11 > 9.9, and 3 * 4 = 13.")]
    [(False, '9.11 < 9.9'), (False, '3 * 4 = 12')]
    """
    found = []
    for e in equations(text):
        value, said = worked_out(e.expression), e.stated
        if value is None or not math.isfinite(value) or _is_part(text, e.start, e.end):
            continue
        holds = is_stated(value, said)
        if not holds and _PERCENT.match(text, e.end) and ("%" in e.expression or abs(value) <= 1):
            value *= 100
            holds = is_stated(value, said)
        end = e.end - (1 if said.endswith(".") else 0)
        right = f"{text[e.start : e.stated_at]}{_written(value)}"
        found.append(Statement(e.start, end, holds, text[e.start : end] if holds else right))
    for pattern in (_SIGN, _WORDS):
        for m in pattern.finditer(text):
            a, b = (Decimal(m.group(k).replace(",", "")) for k in (1, 3))
            if a == b or _is_part(text, m.start(), m.end()) or _SCALED.match(text, m.end()):
                continue
            less = m.group(2) == "<" or bool(_LESS.search(m.group(2)))
            holds, shown = (a < b) == less, m.group()
            at = m.start(2) - m.start(), m.end(2) - m.start()
            found.append(
                Statement(
                    m.start(), m.end(), holds, shown if holds else shown[: at[0]] + _turned(m.group(2)) + shown[at[1] :]
                )
            )
    return sorted(found, key=lambda s: s.start)


def _is_part(text: str, start: int, end: int) -> bool:
    """Whether what stands around an equation or a comparison on its line belongs to it."""
    line = text[max(0, start - _LOOKED_AT) : start].rpartition("\n")[2]
    before = _BULLET.sub("", line, count=1) if _BULLET.fullmatch(line) else line
    return bool(_GOES_BEFORE.search(before) or _GOES_ON.match(text, end))


def _written(value: float) -> str:
    short = f"{value:.10g}"
    return f"{value:.10f}".rstrip("0").rstrip(".") if "e" in short else short


def _turned(word: str) -> str:
    if word in "<>":
        return "<" if word == ">" else ">"
    return " ".join(_OPPOSITE.get(w.casefold(), w) for w in word.split())


def mended(text: str) -> str:
    """The text with every false statement about numbers put right; statements that lie within another are left.

    Examples
    --------
    >>> mended("9.11 is greater than 9.9 because 2 + 2 = 5.")
    '9.11 is less than 9.9 because 2 + 2 = 4.'
    """
    out, at = [], 0
    for s in statements(text):
        if not s.holds and s.start >= at:
            out += [text[at : s.start], s.mended]
            at = s.end
    return "".join([*out, text[at:]])


class ArithmeticCheck:
    """Share of an answer's statements about numbers that hold; NaN where it makes none.

    Examples
    --------
    >>> from pilotfish.types import Reply, Request
    >>> ArithmeticCheck().score([Exchange(Request.of("?"), Reply("2 + 2 = 4 and 9.11 > 9.9"))])
    array([0.5])
    """

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Score answers, (n,), in [0, 1]."""
        checked = [[s.holds for s in statements(e.reply.text)] for e in items]
        return np.array([float(np.mean(row)) if row else math.nan for row in checked])
