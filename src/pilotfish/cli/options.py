"""Options that are given as NAME=VALUE, any number of times."""

from __future__ import annotations

from typing import Any

from pilotfish.errors import InputError

__all__ = ["options", "pairs"]


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """Names and texts of the values of what was given as ``option``."""
    found = dict(text.partition("=")[::2] for text in given or ())
    for name, value in found.items():
        if not name or not value:
            raise InputError(f"{option} is {name!r} without a value: give NAME=VALUE.")
    return found


def options(given: list[str] | None) -> dict[str, Any]:
    """Names and values of ``--option``: JSON where it is, else text."""
    import json

    def read(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    return {name: read(value) for name, value in pairs(given, "--option").items()}
