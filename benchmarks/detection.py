"""Machine-text detection by a small language model, beside published figures of larger ones.

What the model makes of each text is kept: a run goes on where the last one stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from benchmarks.figures import Run
from benchmarks.kept import Kept
from pilotfish.errors import PilotfishError
from pilotfish.models.reading import CausalReader, Reading
from pilotfish.models.transformers import TransformersModel
from pilotfish.protocols import FloatArray
from pilotfish.scorers.likelihood import MachineText
from pilotfish.scorers.reference import Length
from pilotfish.statistics import auroc, auroc_interval
from pilotfish.types import Exchange, Reply, Request

SCORER = "smollm2-135m-instruct"
_AT_ONCE = 10
KINDS = ("curvature", "likelihood", "log_rank", "rank")
# By a fixed larger scorer, or else by the model that wrote the text.
_PUBLISHED = {
    "curvature": (
        "gpt-j-6B_gpt-neo-2.7B.sampling_discrepancy_analytic",
        "gpt-j-6B_gpt-neo-2.7B.sampling_discrepancy",
    ),
    "likelihood": ("gpt-neo-2.7B.likelihood", "likelihood"),
    "log_rank": ("gpt-neo-2.7B.logrank", "logrank"),
    "rank": ("gpt-neo-2.7B.rank", "rank"),
}


def main(run: Run) -> None:
    n_pairs = 6 if run.quick else 25
    published = {r["run"]: float(r["roc_auc"]) for r in run.rows("mgt_fastdetect/published_metrics.jsonl.gz")}
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in run.rows("mgt_fastdetect/pairs.jsonl.gz"):
        groups.setdefault((row["domain"], row["model"]), []).append(row)
    reader, rows = CausalReader(TransformersModel(SCORER, dtype="bfloat16"), max_length=256), []
    kept = Kept(run, "detection", "texts")
    for (domain, model), pairs in sorted(groups.items()):
        if run.quick and domain != "xsum":
            continue
        part = pairs[:n_pairs]
        items = [Exchange(Request.of("Write."), Reply(r[side][:900])) for side in ("human", "machine") for r in part]
        labels = np.repeat([0.0, 1.0], len(part))
        try:
            found = _scores(items, reader, kept)
        except PilotfishError as error:
            print(f"no language model: {error}")
            return
        length = auroc(Length().score(items), labels)
        theirs = {
            kind: next((published[k] for name in names if (k := f"{domain}_{model}.{name}") in published), None)
            for kind, names in _PUBLISHED.items()
        }
        rows.append((model, found, labels, theirs, max(length, 1 - length)))
        shown = ", ".join(f"{k} {auroc(s, labels):.3f} (published {_text(theirs[k])})" for k, s in found.items())
        print(f"{domain}/{model}: {shown}; length {rows[-1][-1]:.3f}", flush=True)
    by_writer: dict[str, list[list[float]]] = {}
    for name, found, labels, _, _ in rows:
        by_writer.setdefault(name, []).append([auroc(found[kind], labels) for kind in KINDS])
    values = [auroc_interval(found["curvature"], labels, n_resamples=200) for _, found, labels, _, _ in rows]
    run.figure(
        "detection_auroc",
        float(np.mean([v.value for v in values])),
        unit="mean AUROC of curvature",
        better="higher",
        n=sum(v.n for v in values),
        low=float(np.mean([v.low for v in values])),
        high=float(np.mean([v.high for v in values])),
        peer="Fast-DetectGPT with 6B and 2.7B models, whole texts",
        peer_value=_mean([t["curvature"] for _, _, _, t, _ in rows]),
        peer_source="published (Bao et al. 2024, recorded with the data)",
        **{kind: float(np.mean([auroc(found[kind], labels) for _, found, labels, _, _ in rows])) for kind in KINDS[1:]},
        **{f"{kind}_published": _mean([t[kind] for _, _, _, t, _ in rows]) for kind in KINDS[1:]},
        length_alone=float(np.mean([length for *_, length in rows])),
        by_writer={
            name: dict(zip(KINDS, (round(float(v), 3) for v in np.mean(found, axis=0)), strict=True))
            for name, found in sorted(by_writer.items())
        },
        scorer=SCORER,
        note="the first 900 characters of each text",
    )


def _scores(items: Sequence[Exchange], reader: CausalReader, kept: Kept) -> dict[str, FloatArray]:
    """Scores of each kind, (n,); a text that was read before, in this run or another, is not read again."""
    known = {row["text"]: row for row in kept.rows}
    # Generators of one domain were given the same texts by people.
    new = list({_name(e): e for e in items if _name(e) not in known}.values())
    for at in range(0, len(new), _AT_ONCE):
        some = new[at : at + _AT_ONCE]
        seen = _Known(reader.read([e.reply.text for e in some]))
        columns = {kind: MachineText(seen, kind).score(some) for kind in KINDS}
        for i, item in enumerate(some):
            kept.add(text=_name(item), **{kind: float(columns[kind][i]) for kind in KINDS})
    known = {row["text"]: row for row in kept.rows}
    return {kind: np.array([known[_name(e)][kind] for e in items]) for kind in KINDS}


def _name(item: Exchange) -> str:
    return hashlib.sha256(f"{SCORER}\0{item.reply.text}".encode()).hexdigest()[:24]


class _Known:
    """Readings that are there already."""

    def __init__(self, readings: list[Reading]) -> None:
        self.readings = readings

    def read(self, texts: Sequence[str], prefixes: Sequence[str] | None = None) -> list[Reading]:  # noqa: ARG002
        return self.readings


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
