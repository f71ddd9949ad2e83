"""BERTScore: answers and references matched token by token in an encoder's space."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError, NotFittedError
from pilotfish.models.embedder import OnnxEmbedder, TokenPrecision
from pilotfish.protocols import FloatArray
from pilotfish.types import Exchange

__all__ = ["BertScore"]

_NAMES = {"minilm": "all-minilm-l6-v2", "mpnet": "all-mpnet-base-v2"}
_Vectors = NDArray[np.float32]
_N_RANDOM_PAIRS = 500
_PAIRS_AT_ONCE = 2000
_ROWS_AT_ONCE = 1024


class BertScore:
    """F1 of the greedy match between the tokens of an answer and of a reference, by cosine of their vectors.

    The greatest over several references is taken, for each of precision, recall and F1. A text longer than the
    encoder's window is read by windows that overlap by half, so that no token is cut off. An empty answer or reference
    scores 0; an answer without a reference NaN.

    Parameters
    ----------
    encoder : str or Path
        ``minilm``, ``mpnet``, another name of the catalog, or a folder with ``model.safetensors``, ``tokenizer.json``
        and ``config.json`` of a BERT or MPNet encoder.
    layer : int, optional
        Layer whose vectors are compared; the last by default. Of ``mpnet`` the sixth ranks translations more as people
        do than the last, for half the time.
    idf : bool
        Weigh tokens by how rare they are among the references: those of :meth:`fit`, else those scored.
    rescale : bool
        Stretch scores so that unrelated texts have 0, as found by :meth:`fit`; bad answers may fall below 0.
    precision : {"fp32", "int16", "int8"}
        Of the encoder's products. ``int16`` moves a score by less than 1e-4, at nearly twice the speed of ``fp32``,
        which it is where the processor lacks the instructions; ``int8`` is faster again and correlates to .999.
    max_length : int
        Tokens of a window.
    n_threads : int, optional
        Threads; all cores by default.

    Attributes
    ----------
    detail_ : dict of str to ndarray (n,)
        ``precision``, ``recall`` and ``f1`` of the last call of :meth:`score`.

    References
    ----------
    Zhang et al. 2020 (arXiv:1904.09675), section 3.

    Examples
    --------
    >>> BertScore(encoder="minilm", precision="int8").layer is None
    True
    """

    def __init__(
        self,
        encoder: str | Path = "minilm",
        *,
        layer: int | None = None,
        idf: bool = False,
        rescale: bool = False,
        precision: TokenPrecision = "int16",
        max_length: int = 512,
        n_threads: int | None = None,
    ) -> None:
        self.encoder = encoder
        self.layer = layer
        self.idf = idf
        self.rescale = rescale
        self.precision = precision
        self.max_length = max_length
        self.n_threads = n_threads
        self._embedder: OnnxEmbedder | None = None

    def fit(self, references: Sequence[str], seed: int = 0) -> Self:
        """Learn how rare tokens are, and how alike unrelated texts look, from at least two different references."""
        texts = [text for text in dict.fromkeys(references) if text.strip()]
        if len(texts) < 2:
            raise InputError(f"{len(texts)} different references: give at least 2.")
        self.idf_, self.idf_unseen_ = _rarity(self._ids(texts)[0])
        rng = np.random.default_rng(seed)
        first = rng.integers(0, len(texts), _N_RANDOM_PAIRS)
        second = (first + rng.integers(1, len(texts), _N_RANDOM_PAIRS)) % len(texts)
        pairs = [(texts[a], texts[b]) for a, b in zip(first, second, strict=True)]
        self.baseline_ = self._matched(pairs, (self.idf_, self.idf_unseen_) if self.idf else None).mean(axis=0)
        return self

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """F1 of each answer, (n,), in [0, 1] unless rescaled."""
        if self.rescale and not hasattr(self, "baseline_"):
            raise NotFittedError("BertScore(rescale=True) was used before fit: call fit(references) first.")
        rows = [i for i, item in enumerate(items) for _ in item.references]
        pairs = [(item.reply.text, reference) for item in items for reference in item.references]
        idf = None
        if self.idf:
            learned = hasattr(self, "idf_")
            idf = (self.idf_, self.idf_unseen_) if learned else _rarity(self._ids([b for _, b in pairs])[0])
        found = self._matched(pairs, idf)
        if self.rescale:
            found = (found - self.baseline_) / (1 - self.baseline_)
        best = np.full((len(items), 3), -np.inf)
        np.maximum.at(best, np.array(rows, dtype=np.int64), found)
        best[np.isinf(best)] = np.nan
        self.detail_ = {name: best[:, k] for k, name in enumerate(("precision", "recall", "f1"))}
        return self.detail_["f1"]

    def _reader(self) -> OnnxEmbedder:
        if self._embedder is None:
            pooling = "tokens" if self.layer is None else f"tokens@{self.layer}"
            name = _NAMES.get(str(self.encoder), self.encoder)
            self._embedder = OnnxEmbedder(
                name,
                precision=self.precision,
                poolings=(pooling,),
                max_length=self.max_length,
                n_threads=self.n_threads,
            )
        return self._embedder

    def _ids(self, texts: Sequence[str]) -> tuple[list[list[int]], int, int]:
        """Ids of each whole text with the special tokens around it, and those two."""
        reader = self._reader()
        [around] = reader.token_ids([""])
        first, last = around[0], around[-1]
        return [[first, *ids, last] for ids in reader.all_token_ids([t.strip() for t in texts])], first, last

    def _vectors(self, texts: Sequence[str]) -> list[tuple[list[int], _Vectors]]:
        ids, first, last = self._ids(texts)
        reader = self._reader()
        size = reader.window
        windows: list[list[int]] = []
        spans: list[list[tuple[int, int, int]]] = []
        for row in ids:
            own = []
            for start, stop, kept in _cut(len(row), size):
                window = row[start:stop]
                own.append((len(windows), kept - start, 0 if stop == len(row) else (stop - start) // 4))
                # A window within a text gets the special tokens that the encoder expects at its ends.
                windows.append([first, *window[1:-1], last] if size < len(row) else window)
            spans.append(own)
        vectors = reader.token_vectors(windows)
        joined = []
        for row, own in zip(ids, spans, strict=True):
            parts = [vectors[k][skip : vectors[k].shape[0] - drop] for k, skip, drop in own]
            joined.append((row, parts[0] if len(parts) == 1 else np.concatenate(parts)))
        return joined

    def _matched(self, pairs: Sequence[tuple[str, str]], idf: tuple[dict[int, float], float] | None) -> FloatArray:
        """Precision, recall and F1 of each pair of texts, (n, 3); a bounded number of vectors is held at once."""
        parts = [self._part(pairs[k : k + _PAIRS_AT_ONCE], idf) for k in range(0, len(pairs), _PAIRS_AT_ONCE)]
        return np.concatenate([np.empty((0, 3)), *parts])

    def _part(self, pairs: Sequence[tuple[str, str]], idf: tuple[dict[int, float], float] | None) -> FloatArray:
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        known = dict(zip(texts, self._vectors(texts), strict=True))
        rarity, unseen = idf or ({}, 1.0)
        weights = {}
        for text, (ids, _) in known.items():
            w = np.array([rarity.get(i, unseen) for i in ids])
            w[[0, -1]] = 0.0
            if not w.any():  # each of its tokens is in every reference: none is rarer
                w[1:-1] = 1.0
            weights[text] = w / w.sum() if w.any() else w
        out = np.zeros((len(pairs), 3))
        for row, (answer, reference) in zip(out, pairs, strict=True):
            own, other = _nearest(known[answer][1], known[reference][1])
            # Rounding takes cosines of equal vectors beyond 1.
            row[0] = min(1.0, float(own @ weights[answer]))
            row[1] = min(1.0, float(other @ weights[reference]))
            if not (weights[answer].any() and weights[reference].any()):
                row[:2] = 0.0
            total = row[0] + row[1]
            row[2] = 2 * row[0] * row[1] / total if total > 0 else 0.0
        return out


def _nearest(a: _Vectors, b: _Vectors) -> tuple[_Vectors, _Vectors]:
    """Greatest cosine of each row of one with a row of the other, both ways, a block of rows at a time."""
    own, other = [], np.full(len(b), -np.inf, dtype=np.float32)
    for start in range(0, len(a), _ROWS_AT_ONCE):
        similar = a[start : start + _ROWS_AT_ONCE] @ b.T
        own.append(similar.max(axis=1))
        other = np.maximum(other, similar.max(axis=0))
    return np.concatenate(own), other


def _rarity(ids: Sequence[Sequence[int]]) -> tuple[dict[int, float], float]:
    """Log inverse document frequency of each token, and that of an unseen one."""
    counts = Counter(token for row in ids for token in set(row))
    return {t: math.log((len(ids) + 1) / (c + 1)) for t, c in counts.items()}, math.log(len(ids) + 1)


def _cut(n: int, size: int) -> list[tuple[int, int, int]]:
    """Start and end of each window over n tokens, and the first token taken from it: the middle half of each."""
    if n <= size:
        return [(0, n, 0)]
    spans, start, kept = [], 0, 0
    while True:
        stop = min(start + size, n)
        spans.append((start, stop, kept))
        if stop == n:
            return spans
        kept = stop - size // 4
        start = stop - size // 2
