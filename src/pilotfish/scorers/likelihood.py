"""Scores from token probabilities: of the model that wrote an answer, or of a small one that reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from pilotfish.errors import InputError
from pilotfish.models.reading import CausalReader, Reader, Reading
from pilotfish.protocols import FloatArray
from pilotfish.types import Exchange

__all__ = ["BartScore", "Binoculars", "MachineText", "NegativePerplexity", "TokenEntropy"]


class TokenEntropy:
    """Minus the mean entropy, in nats, of the model's distribution at each written token, as far as it is stored.

    The stored alternatives are stretched to add up to 1. NaN where the reply has no alternatives.

    Examples
    --------
    >>> from pilotfish.types import Reply, Request, TokenLogProb
    >>> half = math.log(0.5)
    >>> reply = Reply("a", log_probs=(TokenLogProb("a", half, (("a", half), ("b", half))),))
    >>> TokenEntropy().score([Exchange(Request.of("hi"), reply)]).round(3)
    array([-0.693])
    """

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Score answers, (n,), at most 0."""
        return np.array([_mean([_entropy(t.top) for t in e.reply.log_probs if len(t.top) > 1]) for e in items]) * -1.0


def _entropy(top: Sequence[tuple[str, float]]) -> float:
    p = np.exp([log_prob for _, log_prob in top])
    p = p[p > 0] / p.sum()
    return float(-(p * np.log(p)).sum())


def _mean(values: Sequence[float] | FloatArray) -> float:
    return float(np.mean(values)) if len(values) else math.nan


class NegativePerplexity:
    """Minus the perplexity of an answer: by its stored token probabilities, or by a model that reads it.

    Parameters
    ----------
    reader : Reader, optional
        Reads answers; by default the stored probabilities count, and an answer without them is NaN.

    Examples
    --------
    >>> from pilotfish.types import Reply, Request, TokenLogProb
    >>> reply = Reply("a", log_probs=(TokenLogProb("a", math.log(0.25)),))
    >>> NegativePerplexity().score([Exchange(Request.of("hi"), reply)])
    array([-4.])
    """

    def __init__(self, reader: Reader | None = None) -> None:
        self.reader = reader

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Score answers, (n,), at most -1."""
        if self.reader is None:
            means = [_mean([t.log_prob for t in e.reply.log_probs]) for e in items]
        else:
            means = [_mean(r.log_probs) for r in self.reader.read([e.reply.text for e in items])]
        return np.asarray(-np.exp(-np.array(means)))


class BartScore:
    """Mean log-probability of one text after another, by any small language model.

    ``faithfulness`` reads the answer after what was asked (its documents, where there are any); ``precision`` the
    answer after a reference; ``recall`` a reference after the answer; ``f`` is the mean of the last two. Over several
    references the greatest counts. An answer without what the direction needs, or without a token, is NaN.

    Parameters
    ----------
    reader : Reader
        A :class:`CausalReader`, or :class:`Seq2SeqReader` for BART or T5.
    direction : {"f", "faithfulness", "precision", "recall"}
        What is read after what.
    joint : str
        Put between the two; for an encoder-decoder leave it empty.

    References
    ----------
    Yuan et al. 2021 (arXiv:2106.11520), section 3.
    """

    def __init__(self, reader: Reader, direction: str = "f", joint: str = "\n\nIn other words: ") -> None:
        self.reader = reader
        self.direction = direction
        self.joint = joint

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Mean log-probability in nats per token, (n,), at most 0."""
        if self.direction not in ("f", "faithfulness", "precision", "recall"):
            raise InputError(f"BartScore direction is {self.direction!r}: use f, faithfulness, precision or recall.")
        if self.direction == "f":
            halves = [BartScore(self.reader, half, self.joint).score(items) for half in ("precision", "recall")]
            return np.asarray((halves[0] + halves[1]) / 2)
        jobs = [(i, *pair) for i, item in enumerate(items) for pair in self._pairs(item) if all(pair)]
        readings = self.reader.read([text for _, _, text in jobs], [f"{given}{self.joint}" for _, given, _ in jobs])
        best = np.full(len(items), -np.inf)
        for (i, _, _), reading in zip(jobs, readings, strict=True):
            if reading.log_probs.size:
                best[i] = max(best[i], float(reading.log_probs.mean()))
        best[np.isinf(best)] = np.nan
        return best

    def _pairs(self, item: Exchange) -> list[tuple[str, str]]:
        answer = item.reply.text.strip()
        if self.direction == "faithfulness":
            return [("\n".join(item.context) or item.request.prompt, answer)]
        pairs = [(reference.strip(), answer) for reference in item.references]
        return pairs if self.direction == "precision" else [(b, a) for a, b in pairs]


def _log_rank(reading: Reading) -> float:
    return float(-np.log1p(reading.ranks).mean())


def _curvature(reading: Reading) -> float:
    spread = math.sqrt(float(reading.variances.sum()))
    return float((reading.log_probs - reading.expected).sum()) / max(spread, 1e-9)


_MEASURES: dict[str, Callable[[Reading], float]] = {
    "likelihood": lambda r: float(r.log_probs.mean()),
    "rank": lambda r: float(-r.ranks.mean()),
    "log_rank": _log_rank,
    "curvature": _curvature,
}


class MachineText:
    """How much a text looks written by a machine, by what a small language model thinks of its tokens.

    ``curvature`` is the log-probability of the text minus what the model expects of its own samples, in standard
    deviations (Fast-DetectGPT, sampling from the scoring model); ``likelihood`` the mean log-probability; ``rank`` and
    ``log_rank`` minus the mean (log-)rank. A text without a scored token is NaN.

    Parameters
    ----------
    reader : Reader
        Reads texts.
    kind : {"curvature", "likelihood", "rank", "log_rank"}
        What is measured; higher means machine.

    References
    ----------
    Bao et al. 2024 (Fast-DetectGPT, arXiv:2310.05130), eq. 4; Gehrmann et al. 2019 (GLTR, arXiv:1906.04043).
    """

    def __init__(self, reader: Reader, kind: str = "curvature") -> None:
        self.reader = reader
        self.kind = kind

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Score answers, (n,); higher means machine."""
        if self.kind not in _MEASURES:
            raise InputError(f"MachineText kind is {self.kind!r}: use one of {', '.join(_MEASURES)}.")
        readings = self.reader.read([e.reply.text for e in items])
        return np.array([_MEASURES[self.kind](r) if r.log_probs.size else math.nan for r in readings])


class Binoculars:
    """Minus the ratio of a text's log-perplexity to the cross-entropy between two small models of one family.

    Parameters
    ----------
    performer, observer : CausalReader
        The performer's log-perplexity is divided by the observer's expectation of it.

    References
    ----------
    Hans et al. 2024 (arXiv:2401.12070), eq. 4.
    """

    def __init__(self, performer: CausalReader, observer: CausalReader) -> None:
        self.performer = performer
        self.observer = observer

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Score answers, (n,); higher means machine; NaN for a text without a scored token."""
        texts = [e.reply.text for e in items]
        perplexity = np.array([-_mean(r.log_probs) for r in self.performer.read(texts)])
        crossed = self.observer.crossed(self.performer, texts)
        return np.asarray(-perplexity / np.maximum(crossed, 1e-9))
