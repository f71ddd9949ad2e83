"""The paper index as code: every named method is a composition of parts with a card that says what it is and needs."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pilotfish.errors import InputError

__all__ = ["Card", "Needs", "cards", "find", "method"]

Needs = Literal["black box", "token probabilities", "weights", "training"]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Card:
    """What a method is.

    Parameters
    ----------
    slug : str
        Its name.
    paper : str
        What it comes from.
    group : str
        Its place in the taxonomy: the module it lives in.
    needs : str
        Least access to the models: black box, token probabilities, weights, or training.
    command : str
        A command that runs it.
    summary : str
        One line: the first of its docstring.
    make : callable
        The composition.
    """

    slug: str
    paper: str
    group: str
    needs: Needs
    command: str
    summary: str
    make: Callable[..., Any]


_CARDS: dict[str, Card] = {}


def method(slug: str, *, paper: str, group: str, needs: Needs, command: str) -> Callable[[F], F]:
    """Register a composition under its name.

    Raises
    ------
    InputError
        When another function has the name already, or the function has no docstring.
    """

    def register(function: F) -> F:
        summary = (function.__doc__ or "").strip().split("\n")[0]
        if not summary:
            raise InputError(f"Method {slug!r} has no docstring: say in one line what it does.")
        known = _CARDS.get(slug)
        if known is not None and known.make.__qualname__ != function.__qualname__:
            raise InputError(f"Method {slug!r} is registered twice: give each its own name.")
        _CARDS[slug] = Card(slug, paper, group, needs, command, summary, function)
        return function

    return register


def cards(group: str | None = None) -> list[Card]:
    """List the cards of every method, or of one group, by group and name.

    Examples
    --------
    >>> "frugal_gpt" in [card.slug for card in cards("cascades")]
    True
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    found = [card for card in _CARDS.values() if group is None or card.group == group]
    return sorted(found, key=lambda card: (card.group, card.slug))


def find(slug: str) -> Card:
    """Find a method's card by its name.

    Raises
    ------
    InputError
        When there is none of that name.
    """
    known = {card.slug: card for card in cards()}
    if slug not in known:
        raise InputError(f"There is no method {slug!r}: 'pilotfish methods' lists them.")
    return known[slug]
