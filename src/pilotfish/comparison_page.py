"""The report page of a comparison: which system is better by what, and the pairs on which they differ most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pilotfish import page
from pilotfish.evaluation_page import shortened, spread

if TYPE_CHECKING:
    from pilotfish.comparison import Comparison

__all__ = ["comparison_page"]

_N_SHOWN = 5


def comparison_page(done: Comparison, first: str, second: str) -> str:
    """Make the page of two systems, by their names.

    Examples
    --------
    >>> from pilotfish.comparison import compare_outputs
    >>> from pilotfish.evaluate import Outputs
    >>> from pilotfish.types import Exchange, Reply, Request
    >>> a, b = (Outputs.of([Exchange(Request.of("2 + 2?"), Reply(text))]) for text in ("4", "four"))
    >>> "no difference shown" in comparison_page(compare_outputs(a, b, {}), "one", "two")
    True
    """
    names = sorted(done.tests, key=lambda name: name == "length")
    drawn = "".join(spread(f"{name}: {first} minus {second}", done.differences[name]) for name in names)
    parts = [
        page.section("At a glance", page.cards([_card(done, name) for name in names])),
        _table(done, names),
        page.section("Differences", f'<div class="two">{drawn}</div>', note=f"Above 0, {first} is better on a prompt."),
    ]
    parts += [_extremes(done, name, first, second) for name in names if name != "length"]
    said = " ".join([f"first: {first}, second: {second}; {done.n:,} prompts that both answered.", *done.warnings()])
    return page.page(f"{first} against {second}", said, *parts)


def _card(done: Comparison, name: str) -> tuple[str, str, str]:
    d = done.tests[name].difference
    label = f"{name} (baseline)" if name == "length" else name
    return label, f"{d.value:+.3g}", f"{d.low:+.3g} to {d.high:+.3g}: {done.verdict(name)}"


def _table(done: Comparison, names: list[str]) -> str:
    rows = []
    for name in names:
        test, agreed = done.tests[name], done.agreement.get(name)
        d = test.difference
        shown = name + (" (baseline)" if name == "length" else "")
        counts = map(str, (test.wins, test.ties, test.losses, done.n_left_out[name]))
        people = "-" if agreed is None else f"{agreed.value:.0%} [{agreed.low:.0%}, {agreed.high:.0%}]"
        gap = f"{d.value:+.3g} [{d.low:+.3g}, {d.high:+.3g}]"
        rows.append([shown, gap, f"{test.p_value:.4f}", *counts, people, done.verdict(name)])
    headers = ["metric", "difference", "p", "wins", "ties", "losses", "no score", "agrees with people", "says"]
    note = (
        f"First minus second, with {done.level:.0%} bootstrap intervals; p is of a sign-flip test. Pairs without both "
        "scores are counted and left out. A metric or judge that agrees with people no more than length does may only "
        "have seen which output is longer; length is the logarithm of the number of characters."
    )
    return page.section("Comparison", page.table(headers, rows, numeric=range(1, 8)), note=note)


def _extremes(done: Comparison, name: str, first: str, second: str) -> str:
    gaps = done.differences[name]
    order = [int(i) for i in np.argsort(gaps) if np.isfinite(gaps[i])]
    shown = [i for i in order[:_N_SHOWN] if gaps[i] < 0] + [i for i in order[::-1][:_N_SHOWN] if gaps[i] > 0]
    if not shown:
        return ""
    rows = []
    for i in shown:
        label, a, b = done.pairs[i]
        texts = (a.request.prompt, a.reply.text, b.reply.text)
        rows.append([label, f"{gaps[i]:+.3g}", *map(shortened, texts)])
    note = f"Where {first} is worst, then where {second} is."
    listed = page.table(["id", "difference", "prompt", first, second], rows, numeric=[1])
    return page.section(f"Widest apart by {name}", listed, note=note)
