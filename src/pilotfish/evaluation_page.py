"""The report page of an evaluation: what was found, how it is spread, and the worst outputs first."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from pilotfish import page
from pilotfish.scorers.calibration import reliability

if TYPE_CHECKING:
    from pilotfish.evaluate import Evaluation, MetricRow
    from pilotfish.protocols import FloatArray
    from pilotfish.scorers.passages import Support
    from pilotfish.statistics import Interval

__all__ = ["evaluation_page", "shortened", "spread"]

_N_WORST = 10
_N_SHOWN = 280
_N_BINS = 24


def evaluation_page(done: Evaluation, title: str) -> str:
    """Make the page."""
    outputs, rows = done.outputs, done.rows
    labelled = np.isfinite(outputs.labels)
    headline = [("outputs", f"{len(outputs.items):,}", f"{int(labelled.sum()):,} with a label")]
    if done.majority is not None:
        headline.append(("right", f"{np.nanmean(outputs.labels):.1%}", f"majority baseline {done.majority:.1%}"))
    ranked = [row for row in rows if row.auroc is not None and row.name != "length"]
    if ranked:
        best = max(ranked, key=lambda r: r.auroc.value if r.auroc else 0.0)
        length = next(r for r in rows if r.name == "length")
        note = f"length alone, either way {length.auroc.value:.3f}" if length.auroc else "length tells nothing"
        headline.append((f"best AUROC: {best.name}", f"{best.auroc.value:.3f}" if best.auroc else "-", note))
    parts = [page.section("At a glance", page.cards(headline)), _table(rows)]
    spreads = [spread(row.name, done.scores[row.name]) for row in rows if row.mean is not None]
    parts.append(page.section("Distributions", f'<div class="two">{"".join(spreads)}</div>'))
    drawn = [row for row in rows if row.probabilities is not None and row.name != "length"]
    if drawn:
        parts.append(_reliability(drawn, outputs.labels))
    parts += [_worst(done, row.name) for row in rows if row.mean is not None and row.name != "length"]
    if done.failures:
        listed = page.table(["metric", "why it is missing"], [[k, v] for k, v in done.failures.items()])
        parts.append(page.section("Not measured", listed))
    said = f"{len(outputs.items):,} outputs, {len(rows) - 1} metrics; intervals are of 95 %, means of 0 and 1 exact"
    return page.page(title, said, *parts)


def _interval(found: Interval | None) -> str:
    # Two lines, since eight columns of one line are wider than the page.
    return "-" if found is None else page.Markup(f"{found.value:.3g}<br>[{found.low:.3g}, {found.high:.3g}]")


def _table(rows: list[MetricRow]) -> str:
    headers = [
        "metric",
        "mean",
        "no score",
        "AUROC of being right",
        "same length",
        "calibration error",
        "human (Spearman)",
        "grouping loss",
    ]
    body = [
        [
            row.name + (" (baseline)" if row.name == "length" else ""),
            _interval(row.mean),
            str(row.n_missing),
            _interval(row.auroc),
            _interval(row.auroc_matched),
            _interval(row.error),
            _interval(row.human),
            "-" if row.grouping is None else page.Markup("{:.4f}<br>\u2192 {:.4f}".format(*row.grouping)),
        ]
        for row in rows
    ]
    note = (
        "Outputs without a score are counted and left out. A metric that is not above the length baseline has "
        "learned how long answers are; length, the logarithm of the number of characters, counts in its better "
        "direction. Calibration errors are measured on "
        "halves that the calibration has not seen, and few labels drive them up; grouping loss is how far the truth "
        "differs between groups of equal confidence, before and after confidences are calibrated by group."
    )
    # What no metric has, such as a correlation without human scores, would only push the rest off the page.
    told = [k for k in range(len(headers)) if any(line[k] != "-" for line in body)]
    shown = page.table([headers[k] for k in told], [[line[k] for k in told] for line in body], numeric=range(1, 8))
    return page.section("Metrics", shown, note=note)


def spread(name: str, scores: FloatArray) -> str:
    """Draw how one metric's numbers are spread; those that are NaN are left out."""
    known = scores[np.isfinite(scores)]
    head = f"<div><h3>{escape(name)}</h3>"
    # Means that differ by rounding alone are one value, and no histogram has bins so narrow.
    if np.ptp(known) <= 1e-9 * np.abs(known).max():
        return head + page.table(["all outputs score"], [[f"{known[0]:.4g}"]]) + "</div>"
    counts, edges = np.histogram(known, bins=min(_N_BINS, max(4, known.size // 4)))
    x = np.repeat(edges, 2)
    y = np.concatenate([[0], np.repeat(counts, 2), [0]]).astype(float)
    line = page.Series("outputs", x.tolist(), y.tolist())
    marks = [page.Mark(float(np.median(known)), "median")]
    return head + page.chart([line], x_label="score", y_label="outputs", marks=marks) + "</div>"


def _reliability(rows: list[MetricRow], labels: FloatArray) -> str:
    series = [page.Series("perfect", [0, 1], [0, 1])]
    ordered = sorted(rows, key=lambda r: -(r.auroc.value if r.auroc else 0.0))
    for row in ordered[:4]:
        p = row.probabilities
        at = np.isfinite(p) & np.isfinite(labels)  # type: ignore[arg-type]
        found = reliability(p[at], labels[at])  # type: ignore[index]
        band = (found.low.tolist(), found.high.tolist()) if row is ordered[0] else (None, None)
        series.append(page.Series(row.name, found.claimed.tolist(), found.true.tolist(), *band))
    drawn = page.chart(series, x_label="claimed", y_label="right", percent_x=True, percent_y=True, y_range=(0, 1))
    note = (
        "The four best metrics as probabilities, each calibrated on the other half of the labels; the band is the best "
        "one's 95 % interval."
    )
    return page.section("Reliability", drawn, note=note)


def _worst(done: Evaluation, name: str) -> str:
    scores = done.scores[name]
    order = [int(i) for i in np.argsort(scores) if np.isfinite(scores[i])][:_N_WORST]
    rows, places = [], done.sentences.get(name)
    for i in order:
        item, label = done.outputs.items[i], done.outputs.labels[i]
        right = "" if not np.isfinite(label) else ("right" if label else "wrong")
        reference = item.references[0] if item.references else ""
        said = _marked(item.reply.text, places[i]) if places else shortened(item.reply.text)
        asked = shortened(item.request.prompt)
        rows.append([done.outputs.ids[i], f"{scores[i]:.4g}", right, asked, said, shortened(reference)])
    headers = ["id", "score", "label", "prompt", "output", "reference"]
    note = "The least supported sentence of each output is marked." if places else ""
    return page.section(f"Worst by {name}", page.table(headers, rows, numeric=[1]), note=note)


def _marked(text: str, sentences: Sequence[Support]) -> str:
    """The output around its least supported sentence, which is marked."""
    if not sentences:
        return shortened(text)
    worst = min(sentences, key=lambda s: s.support)
    start = 0 if worst.end <= _N_SHOWN else worst.start
    stop = max(worst.start, min(worst.end, start + _N_SHOWN))
    before, inside = text[start : worst.start], text[worst.start : stop]
    after = text[stop : max(stop, start + _N_SHOWN)]
    ends = ("... " if start else "", " ..." if stop + len(after) < len(text) else "")
    marked = f"{page.wrapped(before)}<mark>{page.wrapped(inside)}</mark>{page.wrapped(after)}"
    return page.Markup(ends[0] + marked + ends[1])


def shortened(text: str) -> str:
    """The beginning of a text, as a table shows it."""
    return text if len(text) <= _N_SHOWN else text[:_N_SHOWN] + " ..."
