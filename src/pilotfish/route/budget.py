"""What may be spent on a query, as people write it."""

from __future__ import annotations

import math
import re

from pilotfish.errors import InputError

__all__ = ["parse_budget"]

_BUDGET = re.compile(r"^\s*\$?\s*([0-9.eE+-]+)\s*(usd)?\s*(?:/\s*([0-9.]+)\s*(k|m)?)?\s*$", re.IGNORECASE)


def parse_budget(given: str | float) -> float:
    """Read a budget as dollars per query: a number of them, or text such as ``0.002``, ``2usd/1k`` and ``$5/1k``.

    Raises
    ------
    InputError
        When a text is something else, or not above 0.

    Examples
    --------
    >>> parse_budget("2usd/1k"), parse_budget("0.5"), parse_budget(0.5)
    (0.002, 0.5, 0.5)
    """
    if not isinstance(given, str):
        return float(given)
    found = _BUDGET.match(given)
    try:
        value = float(found.group(1)) if found else float("nan")
        per = float(found.group(3) or 1) if found else 1.0
    except ValueError:
        value, per = float("nan"), 1.0
    scale = {"k": 1e3, "m": 1e6}.get((found.group(4) or "").lower() if found else "", 1.0)
    if not (math.isfinite(value) and value > 0 and per > 0):
        raise InputError(f"budget is {given!r}: give dollars per queries, such as 2usd/1k.")
    return value / (per * scale)
