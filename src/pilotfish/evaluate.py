"""Score given outputs by any scorers, with intervals and honest baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pilotfish.errors import InputError, PilotfishError
from pilotfish.files import json_lines
from pilotfish.protocols import FloatArray, Scorer
from pilotfish.scorers.calibration import GroupCalibration, calibration_error, grouping_loss
from pilotfish.scorers.confidence import calibrator_for
from pilotfish.scorers.passages import Support
from pilotfish.scorers.reference import Length
from pilotfish.statistics import (
    Interval,
    auroc,
    auroc_interval,
    bootstrap_interval,
    length_matched,
    mean_interval,
    spearman_interval,
)
from pilotfish.types import Exchange, Message, Reply, Request, TokenLogProb

__all__ = ["Evaluation", "MetricRow", "Outputs", "evaluate", "read_outputs"]

_FIELDS = "id prompt messages output reference references samples context log_probs label human group"
_KNOWN = frozenset(_FIELDS.split())
_FEW_LABELS = 20


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """Texts to score, with what is known of them.

    Parameters
    ----------
    items : list of Exchange
        What was asked and answered, with references, samples and context.
    ids : list of str
        Names of the rows.
    labels : ndarray (n,)
        1 where an answer is right, 0 where wrong, NaN where unknown.
    human : ndarray (n,)
        Human scores, NaN where unknown.
    groups : list of str
        Kind of each output, such as its topic; empty where there are none.
    """

    items: list[Exchange]
    ids: list[str]
    labels: FloatArray
    human: FloatArray
    groups: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, items: Sequence[Exchange], labels: FloatArray | None = None) -> Outputs:
        """Wrap exchanges.

        Examples
        --------
        >>> Outputs.of([Exchange(Request.of("2 + 2?"), Reply("4"))]).ids
        ['0']
        """
        unknown = np.full(len(items), np.nan)
        known = unknown if labels is None else np.asarray(labels, dtype=np.float64)
        if known.shape != unknown.shape:
            raise InputError(f"labels have shape {known.shape} for {len(items)} items: give one per item.")
        return cls(list(items), [str(i) for i in range(len(items))], known, unknown)


def read_outputs(path: str | Path) -> Outputs:
    """Read outputs from JSON lines.

    Each line has ``output`` (the text to score) and, where known, ``id``, ``prompt`` or ``messages``, ``reference`` or
    ``references``, ``samples`` (other outputs to the same prompt, or objects of ``output`` and ``log_probs``),
    ``context`` (documents), ``log_probs`` (numbers, or the ``content`` list of an OpenAI reply), ``label`` (1 right, 0
    wrong), ``human`` (a score) and ``group`` (its kind, such as a topic; on every line or none).

    Raises
    ------
    InputError
        When the file cannot be read, is empty, or a line is wrong; the sentence names the line and the field.
    """
    items, ids, labels, human, groups = [], [], [], [], []
    for number, row in json_lines(path):
        try:
            items.append(_exchange(row))
            labels.append(_number(row, "label"))
            human.append(_number(row, "human"))
            if row.get("group") is not None:
                groups.append(_text(row["group"], "group"))
            if np.isfinite(labels[-1]) and labels[-1] not in (0.0, 1.0):
                raise InputError(f"label is {labels[-1]:g}: give 0 or 1")
        except (ValueError, PilotfishError) as error:
            raise InputError(f"{path} line {number}: {str(error).rstrip('.')}.") from error
        # By the place among the outputs, not the line: blank lines must not shift two files against each other.
        ids.append(str(len(items) if row.get("id") is None else row["id"]))
    if not items:
        raise InputError(f"{path} has no outputs: give one JSON object a line.")
    if groups and len(groups) != len(items):
        raise InputError(f"{path} has 'group' on {len(groups)} of {len(items)} lines: give it on every line or none.")
    repeated = [name for name, n in Counter(ids).items() if n > 1]
    if repeated:
        raise InputError(
            f"{path} has {len(repeated)} repeated values of 'id', such as {repeated[0]!r}: give each line its own."
        )
    return Outputs(items, ids, np.array(labels), np.array(human), groups)


def _exchange(row: Mapping[str, Any]) -> Exchange:
    unknown = sorted(set(row) - _KNOWN)
    if unknown:
        raise InputError(f"field {unknown[0]!r} is unknown: use {', '.join(sorted(_KNOWN))}")
    output = row.get("output")
    if not isinstance(output, str):
        raise InputError(f"field 'output' is {output!r}: give the text to score")
    messages = row.get("messages")
    if messages is None:
        request = Request.of("" if row.get("prompt") is None else _text(row["prompt"], "prompt"))
    elif isinstance(messages, list) and all(isinstance(m, dict) for m in messages):
        request = Request(tuple(Message.from_json(m) for m in messages))
    else:
        raise InputError(f"field 'messages' is a {type(messages).__name__}: give a list of objects of role and content")
    references = _texts(row, "references") or _texts(row, "reference")
    samples = tuple(map(_sample, _listed(row, "samples")))
    reply = Reply(output, log_probs=_log_probs(row.get("log_probs")))
    return Exchange(request, reply, references, samples, _texts(row, "context"))


def _sample(value: Any) -> Reply:
    known: Mapping[str, Any] = value if isinstance(value, dict) else {"output": value}
    return Reply(_text(known.get("output"), "samples"), log_probs=_log_probs(known.get("log_probs")))


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"field {name!r} is a {type(value).__name__}: give text")
    return value


def _texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    return tuple(_text(text, name) for text in _listed(row, name))


def _listed(row: Mapping[str, Any], name: str) -> list[Any]:
    """The values of a field that may hold one, several or none."""
    value = row.get(name)
    return [] if value is None else value if isinstance(value, list) else [value]


def _log_probs(value: Any) -> tuple[TokenLogProb, ...]:
    if value is None:
        return ()
    from pilotfish.models.completions import log_probs_of

    try:
        found = (
            tuple(TokenLogProb("", float(v)) for v in value)
            if all(isinstance(v, int | float) for v in value)
            else log_probs_of({"content": value})
        )
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"field 'log_probs' cannot be read ({error}): give numbers or an OpenAI content list"
        ) from None
    if any(not t.log_prob <= 1e-6 for t in found):
        raise InputError("field 'log_probs' has a number above 0 or NaN: give natural log-probabilities")
    return found


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    if value is None:
        return float("nan")
    if isinstance(value, bool | int | float):
        return float(value)
    raise InputError(f"field {name!r} is {value!r}: give a number")


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric over all outputs.

    Parameters
    ----------
    name : str
        The metric.
    mean : Interval or None
        Mean over the outputs that have a score; None where none has.
    n_missing : int
        Outputs without a score, left out of everything in this row.
    auroc : Interval or None
        Chance to rank a right answer above a wrong one, where labels of both classes are known; length counts in its
        better direction.
    auroc_matched : Interval or None
        The same among right and wrong answers of like length.
    error : Interval or None
        Expected calibration error of the score as a probability, calibrated on other halves of the labelled answers.
    probabilities : ndarray (n,) or None
        Those probabilities, NaN where there are none.
    human : Interval or None
        Spearman correlation with the human scores.
    grouping : tuple of two floats, or None
        Grouping loss of the probabilities over the outputs' groups, before and after re-confidencing by them.
    """

    name: str
    mean: Interval | None
    n_missing: int
    auroc: Interval | None = None
    auroc_matched: Interval | None = None
    error: Interval | None = None
    probabilities: FloatArray | None = None
    human: Interval | None = None
    grouping: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Scores of outputs by several metrics, the length of the outputs always among them.

    Parameters
    ----------
    outputs : Outputs
        What was scored.
    scores : dict of str to ndarray (n,)
        By metric; NaN where an output has no score.
    rows : list of MetricRow
        One a metric, ``length`` last.
    majority : float or None
        Share of right answers of the class seen most: what saying the same of every answer would reach.
    failures : dict of str to str
        Metrics that could not be run, and why.
    sentences : dict of str to list of list of Support
        By metric that scores sentences: those of each output.
    """

    outputs: Outputs
    scores: dict[str, FloatArray]
    rows: list[MetricRow]
    majority: float | None
    failures: dict[str, str] = field(default_factory=dict)
    sentences: dict[str, list[list[Support]]] = field(default_factory=dict)

    def to_rows(self) -> list[dict[str, Any]]:
        """One row per output: its id and scores, None where there is none, and places and support of its sentences."""
        rows: list[dict[str, Any]] = []
        for i, name in enumerate(self.outputs.ids):
            scored = {m: float(s[i]) if np.isfinite(s[i]) else None for m, s in self.scores.items()}
            places = {f"{m}_sentences": [_place(s) for s in found[i]] for m, found in self.sentences.items()}
            rows.append({"id": name, **scored, **places})
        return rows


def _place(sentence: Support) -> dict[str, float]:
    return {"start": sentence.start, "end": sentence.end, "support": sentence.support}


def _sentences(scorer: Scorer[Exchange]) -> list[list[Support]]:
    """What a scorer that scores sentences found in its last call; nothing for any other."""
    detail = getattr(getattr(scorer, "scorer", scorer), "detail_", None)
    rows = detail if isinstance(detail, list) else []
    return rows if any(rows) and all(isinstance(s, Support) for row in rows for s in row) else []


def evaluate(
    outputs: Outputs,
    scorers: Mapping[str, Scorer[Exchange]],
    *,
    seed: int = 0,
    scored: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Score outputs; NaN never enters a mean: outputs without a score are counted and left out.

    Parameters
    ----------
    outputs : Outputs
        What to score; nothing is generated.
    scorers : mapping of str to Scorer of Exchange
        By name. One whose package or model is missing is left out, and the reason stated; when all fail, the first
        reason is raised.
    seed : int
        Of the bootstrap and of the halves that calibrate each other.
    scored : callable, optional
        Told the scores so far, without rows, after each metric: what is kept of a run that is interrupted.

    Raises
    ------
    InputError
        When there is nothing to score.
    PilotfishError
        When every scorer fails.

    Examples
    --------
    >>> from pilotfish.scorers.reference import Length
    >>> done = evaluate(Outputs.of([Exchange(Request.of("2 + 2?"), Reply("4"))]), {"characters": Length()})
    >>> [row.name for row in done.rows]
    ['characters', 'length']
    """
    if not outputs.items:
        raise InputError("There are no outputs to score: give at least one.")
    scores: dict[str, FloatArray] = {}
    failed: dict[str, PilotfishError] = {}
    sentences: dict[str, list[list[Support]]] = {}
    for name, scorer in scorers.items():
        try:
            found = np.asarray(scorer.score(outputs.items), dtype=np.float64)
        except PilotfishError as error:
            failed[name] = error
            continue
        if found.shape != (len(outputs.items),):
            raise InputError(f"Scorer {name!r} gave shape {found.shape} for {len(outputs.items)} outputs: one each.")
        scores[name] = np.where(np.isfinite(found), found, np.nan)
        if places := _sentences(scorer):
            sentences[name] = places
        if scored is not None:
            scored(Evaluation(outputs, dict(scores), [], None, {}, dict(sentences)))
    if failed and not scores:
        raise next(iter(failed.values()))
    scores["length"] = Length().score(outputs.items)
    known = np.isfinite(outputs.labels)
    share = float(outputs.labels[known].mean()) if known.any() else None
    return Evaluation(
        outputs,
        scores,
        [_row(name, s, outputs, scores["length"], seed) for name, s in scores.items()],
        None if share is None else max(share, 1 - share),
        {name: str(error) for name, error in failed.items()},
        sentences,
    )


def _row(name: str, scores: FloatArray, outputs: Outputs, lengths: FloatArray, seed: int) -> MetricRow:
    has = np.isfinite(scores)
    mean = mean_interval(scores[has], seed=seed) if has.any() else None
    labelled = np.flatnonzero(has & np.isfinite(outputs.labels))
    found: dict[str, Any] = {}
    y, s = outputs.labels[labelled], scores[labelled]
    if labelled.size and 0 < y.sum() < y.size:
        # As a baseline, length counts in its better direction.
        turned = -s if name == "length" and auroc(s, y) < 0.5 else s
        found["auroc"] = auroc_interval(turned, y, seed=seed)
        matched = length_matched(lengths[labelled], y, seed=seed)
        if matched.size >= _FEW_LABELS:
            found["auroc_matched"] = auroc_interval(turned[matched], y[matched], seed=seed)
        if y.size >= 2 * _FEW_LABELS:
            p = np.full(scores.size, np.nan)
            p[labelled] = _cross_calibrated(turned, y, seed)
            found["probabilities"] = p
            found["error"] = bootstrap_interval(calibration_error, p[labelled], y, n_resamples=200, seed=seed)
            if len(set(outputs.groups)) > 1:
                own = [outputs.groups[i] for i in labelled]
                regrouped = _cross_calibrated(turned, y, seed, own)
                found["grouping"] = (grouping_loss(p[labelled], y, own), grouping_loss(regrouped, y, own))
    judged = has & np.isfinite(outputs.human)
    if judged.sum() > 2 and np.ptp(scores[judged]) > 0 and np.ptp(outputs.human[judged]) > 0:
        found["human"] = spearman_interval(scores[judged], outputs.human[judged], seed=seed)
    return MetricRow(name, mean, int((~has).sum()), **found)


def _cross_calibrated(
    scores: FloatArray, labels: FloatArray, seed: int, groups: Sequence[str] | None = None
) -> FloatArray:
    """Probabilities, each half calibrated on the other, within groups where given; a line of few labels is Platt's."""
    halves = np.random.default_rng(seed).permutation(scores.size) % 2
    kinds = np.array([[g == name for name in sorted(set(groups or ()))] for g in groups or ()], dtype=np.float64)
    out = np.empty(scores.size)
    for half in (0, 1):
        learn, apply = halves != half, halves == half
        if groups is not None:
            grouped = GroupCalibration().fit(scores[learn], labels[learn], kinds[learn])
            out[apply] = grouped.predict(scores[apply], kinds[apply])
            continue
        calibrator = calibrator_for(int(learn.sum()))
        out[apply] = calibrator.fit(scores[learn], labels[learn]).predict(scores[apply])
    return out
