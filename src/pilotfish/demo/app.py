"""A small app that sorts riders' messages with a large language model, and the messages it gets."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

__all__ = ["INTENTS", "Ticket", "conversation", "tickets"]

INTENTS = (
    "unlock problem",
    "wrong charge",
    "lost item",
    "damaged bike",
    "station full",
    "account access",
    "price question",
    "refund status",
    "something else",
)
_N_EXAMPLES = 8


def _instruction(intents: tuple[str, ...]) -> str:
    return (
        f"You sort messages that riders send to a bike-hire company. The intents are: {', '.join(intents)}. "
        "Reply with exactly one intent from this list and nothing else."
    )


@dataclass(frozen=True, slots=True)
class Ticket:
    """One message with its right intent; ``new`` when it is about something the company did not offer before."""

    message: str
    intent: str
    new: bool


def _all() -> list[Ticket]:
    text = files("pilotfish.demo").joinpath("messages.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [Ticket(row["message"], row["intent"], row["topic"] == "new") for row in rows]


def _examples() -> list[Ticket]:
    known = [ticket for ticket in _all() if not ticket.new]
    by_intent = [[t for t in known if t.intent == intent][:_N_EXAMPLES] for intent in INTENTS]
    return [group[i] for i in range(_N_EXAMPLES) for group in by_intent]


def conversation(message: str, *, with_scooters: bool = False) -> list[dict[str, Any]]:
    """The messages of one call: the instruction, worked examples, and the rider's message.

    With scooters, the instruction has one more intent, as the company's developers write it after a while.
    """
    intents = (*INTENTS, "scooter") if with_scooters else INTENTS
    turns: list[dict[str, Any]] = [{"role": "system", "content": _instruction(intents)}]
    for example in _examples():
        turns += [{"role": "user", "content": example.message}, {"role": "assistant", "content": example.intent}]
    return [*turns, {"role": "user", "content": message}]


def tickets(seed: int = 0) -> tuple[list[Ticket], list[Ticket]]:
    """The messages of ordinary days in a seeded order, and those of the day the company also hires out scooters."""
    shown = {ticket.message for ticket in _examples()}
    rest = [ticket for ticket in _all() if ticket.message not in shown]
    ordinary = [ticket for ticket in rest if not ticket.new]
    fresh = [ticket for ticket in rest if ticket.new]
    random.Random(seed).shuffle(ordinary)  # noqa: S311 - an order of messages is no secret
    return ordinary, fresh
