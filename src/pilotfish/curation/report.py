"""The report of a run as a page: what was kept and dropped, why, with examples."""

from __future__ import annotations

from pilotfish.curation.steps import Rules
from pilotfish.curation.tally import Tally
from pilotfish.page import Series, cards, chart, page, section, table

__all__ = ["to_html"]


def to_html(tally: Tally, title: str = "Curation", subtitle: str = "") -> str:
    """Write the report of a run.

    Examples
    --------
    >>> "Dropped" in to_html(Tally(n_in=2, n_out=1))
    True
    """
    n_in, n_out = tally.n_in, tally.n_out
    n_bad = sum(tally.rejected.values())
    head = cards(
        [
            ("documents read", f"{n_in:,}", f"{tally.characters_in:,} characters"),
            ("kept", f"{n_out:,}", f"{_share(n_out, n_in)} of documents"),
            ("characters kept", f"{tally.characters_out:,}", _share(tally.characters_out, tally.characters_in)),
            ("rejected", f"{n_bad:,}", "records that are no documents"),
        ]
    )
    left, points = n_in, [n_in]
    rows = []
    for step, rules in tally.dropped.items():
        n_step = sum(n for n, _ in rules.values())
        left -= n_step
        points.append(left)
        for rule, (n, size) in sorted(rules.items(), key=lambda item: (-item[1][0], item[0])):
            rows.append([step, rule, _PAPERS.get(rule, ""), f"{n:,}", _share(n, n_in), f"{size:,}"])
    parts = [section("Kept", head)]
    if rows:
        flow = chart(
            [Series("documents left", list(range(len(points))), points)],
            x_label="steps that dropped anything, in order",
            y_label="documents",
            y_range=(0, max(points)),
        )
        what = table(["step", "rule", "paper", "documents", "share", "characters"], rows, numeric=(3, 4, 5))
        parts.append(section("Dropped", flow, what, note="A document counts for the first rule that drops it."))
    else:
        parts.append(section("Dropped", "<p>Nothing was dropped.</p>"))
    if tally.rejected:
        bad = [[reason, f"{n:,}"] for reason, n in sorted(tally.rejected.items())]
        parts.append(section("Rejected", table(["reason", "records"], bad, numeric=(1,))))
    shown = [
        [title, item["id"], "" if "score" not in item else f"{item['score']:g}", item["text"]]
        for title, items in tally.examples.items()
        for item in items
    ]
    if shown:
        parts.append(
            section("Examples", table(["fate", "document", "score", "beginning"], shown, numeric=(2,)), note=_EXAMPLES)
        )
    return page(title, subtitle, *parts)


_EXAMPLES = "The first few documents of each fate, cut short."
_PAPERS = {
    rule.name: rule.paper.split(",")[0]
    for rules in (Rules.gopher(), Rules.c4(), Rules.fineweb(), Rules.block_list(()))
    for rule in rules.rules
}


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0.0%"
