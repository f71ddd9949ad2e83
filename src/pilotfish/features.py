"""Features of texts for small models: sentence encoder, static vectors and hashed n-grams, in one small space."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from pilotfish.errors import InputError, NotFittedError
from pilotfish.models.embedder import OnnxEmbedder, StaticEmbedder
from pilotfish.models.states import StateEmbedder
from pilotfish.protocols import Embedder, FeatureKind, Progress
from pilotfish.vectors import product, unit_rows

__all__ = ["FEATURE_KINDS", "HashedNgrams", "TextSpace", "dealt_out"]

FEATURE_KINDS: tuple[FeatureKind, ...] = ("encoder", "large", "language", "static", "ngrams")

_Vectors = NDArray[np.float32]
_TOKEN = re.compile(r"\w+|[^\w\s]")
_LONGEST = 20_000
_LONGEST_KEPT = 64
_LEAST_SHARE = 32
_SHARES_A_CORE = 3
_within = threading.local()
# The middle layer and the maximum keep the words that the mean of the last layer blurs.
_ENCODERS: Mapping[FeatureKind, tuple[str, tuple[str, ...]]] = {
    "encoder": ("all-minilm-l6-v2", ("mean", "max", "mean@3")),
    "large": ("all-mpnet-base-v2", ("mean",)),
}
_WEIGHTS: Mapping[FeatureKind, tuple[float, ...]] = {
    "encoder": (0.44, 0.19, 0.19, 0.19),
    "large": (1.0,),
    "language": (1.0,),
    "static": (0.5, 0.5),
    "ngrams": (1.0,),
}


class HashedNgrams:
    """Word and character n-grams hashed into a fixed number of signed buckets.

    Words, pairs of words, and characters 3 to 5 within words; each n-gram adds +1 or -1 to one bucket, so that
    collisions cancel on average. Counts are damped by a square root and rows have unit length. Nothing is learned.

    Parameters
    ----------
    n_buckets : int
        Length of each vector, at least 2.

    Examples
    --------
    >>> vectors = HashedNgrams(256).embed(["cancel my transfer", "cancel the transfer", "exchange rate"])
    >>> vectors.shape, bool(vectors[0] @ vectors[1] > vectors[0] @ vectors[2])
    ((3, 256), True)

    References
    ----------
    Weinberger et al. 2009, Feature hashing for large scale multitask learning (arXiv:0902.2206).
    """

    def __init__(self, n_buckets: int = 2048) -> None:
        self.n_buckets = n_buckets

    @property
    def n_dimensions(self) -> int:
        """Length of each vector."""
        return self.n_buckets

    def embed(self, texts: Sequence[str]) -> _Vectors:
        """Embed a batch as an array (n, n_buckets) of unit vectors; a text without a token gives zeros."""
        if self.n_buckets < 2:
            raise InputError(f"HashedNgrams n_buckets is {self.n_buckets}: use at least 2.")
        hashes = [_hashes(text) for text in texts]
        flat = np.array([h for row in hashes for h in row], dtype=np.int64)
        rows = np.repeat(np.arange(len(texts)), [len(row) for row in hashes])
        places = rows * self.n_buckets + (flat >> 1) % self.n_buckets
        counts = np.bincount(places, np.where(flat & 1, 1.0, -1.0), minlength=len(texts) * self.n_buckets)
        vectors = counts.reshape(len(texts), self.n_buckets).astype(np.float32)
        vectors = np.sign(vectors) * np.sqrt(np.abs(vectors))
        return unit_rows(vectors)


def _hashes(text: str) -> list[int]:
    words = _TOKEN.findall(text[:_LONGEST].casefold())
    hashes = [_hash(f"{a} {b}") for a, b in pairwise(words)]
    for word in words:
        hashes += _word_hashes(word) if len(word) <= _LONGEST_KEPT else _word_hashes.__wrapped__(word)
    return hashes


@lru_cache(maxsize=50_000)
def _word_hashes(word: str) -> tuple[int, ...]:
    """Of a word and the characters 3 to 5 within it; words come again and again."""
    padded = f"<{word}>"
    within = (f"#{padded[i : i + n]}" for n in (3, 4, 5) for i in range(len(padded) - n + 1))
    return (_hash(word), *map(_hash, within))


def _hash(gram: str) -> int:
    return crc32(gram.encode("utf-8", "replace"))


class TextSpace:
    """Texts as points of one small space: every view centred, of unit length and weighted, then their main axes.

    Parameters
    ----------
    kind : {"encoder", "large", "language", "static", "ngrams"}
        ``encoder``: three poolings of a sentence encoder, and static token vectors. ``large``: a sentence encoder of
        eight times the operations, alone. ``language``: the states of a language model that reads each text after the
        instruction. ``static``: static token vectors and hashed n-grams, about ten times faster than ``encoder``.
        ``ngrams``: hashed n-grams alone, which need no model file.
    precision : {"int8", "fp32"}
        Of the sentence encoder.
    n_dimensions : int
        Axes kept, at most the number of texts learned from less one.
    instruction : str
        What the language model is told to do with the texts.

    Attributes
    ----------
    means_ : list of ndarray
        Centre of each view.
    axes_ : ndarray (n_raw, n_axes)
        Main axes, by falling variance.
    offset_ : ndarray (n_axes,)
        The centre of the joined views, on the axes.
    scale_ : float
        Multiplies the coordinates so that the mean squared length of the texts learned from is 1.

    Examples
    --------
    >>> space = TextSpace("ngrams", n_dimensions=2).fit(["one card", "two cards", "a transfer", "transfers"])
    >>> space.transform(["my card"]).shape
    (1, 2)
    """

    def __init__(
        self,
        kind: FeatureKind = "encoder",
        precision: Literal["int8", "fp32"] = "int8",
        n_dimensions: int = 512,
        instruction: str = "",
    ) -> None:
        self.kind = kind
        self.precision = precision
        self.n_dimensions = n_dimensions
        self.instruction = instruction

    def fit(self, texts: Sequence[str]) -> Self:
        """Find the centres and the main axes of texts, at least two."""
        self.fit_transform(texts)
        return self

    def fit_transform(self, texts: Sequence[str], progress: Progress | None = None) -> _Vectors:
        """Find the centres and the main axes of texts and return the texts in them, (n, n_axes).

        ``progress`` is told how many texts a language model has read, and of how many.
        """
        if len(texts) < 2:
            raise InputError(f"TextSpace was given {len(texts)} texts to learn from: give at least 2.")
        views = self._views(texts, progress)
        self.means_ = [view.mean(axis=0) for view in views]
        joined = self._joined(views)
        centre = joined.mean(axis=0)
        spread = joined - centre
        axes = _main_axes(spread, min(self.n_dimensions, len(texts) - 1, joined.shape[1]))
        # An axis and its opposite are the same: point each along its largest part, so that every run agrees.
        axes = axes * np.where(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0) < 0, -1, 1)
        self.axes_ = np.ascontiguousarray(axes, dtype=np.float32)
        self._placed_means = self._centres()
        points = spread @ self.axes_
        self.scale_ = float(1 / max(np.sqrt(np.einsum("ij,ij->i", points, points).mean()), 1e-9))
        self.offset_ = (centre @ self.axes_).astype(np.float32)
        return np.asarray(points * np.float32(self.scale_))

    def transform(self, texts: Sequence[str]) -> _Vectors:
        """Return texts in the space, (n, n_axes)."""
        if not hasattr(self, "axes_"):
            raise NotFittedError("TextSpace is not fitted: call fit first.")
        views = self._views(texts)
        points = self._placed(views) if len(texts) == 1 else product(self._joined(views), self.axes_)
        return np.asarray((points - self.offset_) * np.float32(self.scale_), dtype=np.float32)

    def get_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """The fitted space as plain data and arrays."""
        names = ("kind", "precision", "n_dimensions", "instruction")
        plain = {name: getattr(self, name) for name in names}
        arrays = {"axes": self.axes_, "offset": self.offset_, "means": np.concatenate(self.means_)}
        return {**plain, "scale": self.scale_, "sizes": [mean.size for mean in self.means_]}, arrays

    @classmethod
    def from_state(cls, plain: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Bring a fitted space back."""
        made = cls(plain["kind"], plain["precision"], plain["n_dimensions"], plain.get("instruction", ""))
        made.scale_ = float(plain["scale"])
        made.axes_, made.offset_ = arrays["axes"], arrays["offset"]
        made.means_ = np.split(arrays["means"], np.cumsum(plain["sizes"])[:-1])
        made._placed_means = made._centres()
        return made

    def _views(self, texts: Sequence[str], progress: Progress | None = None) -> list[_Vectors]:
        if self.kind not in FEATURE_KINDS:
            raise InputError(f"TextSpace kind is {self.kind!r}: use one of {', '.join(FEATURE_KINDS)}.")
        if self.kind == "ngrams":
            return [_ngrams().embed(texts)]
        if self.kind == "static":
            return [_static().embed(texts), _ngrams().embed(texts)]
        if self.kind == "language":
            return [_language(self.instruction).embed(texts, progress)]
        encoder = _encoder(self.kind, self.precision)
        (pooled,) = dealt_out(lambda share: (encoder.embed(share),), texts)
        views = np.split(pooled, len(_ENCODERS[self.kind][1]), axis=1)
        return views if self.kind == "large" else [*views, _static().embed(texts)]

    def _placed(self, views: Sequence[_Vectors]) -> _Vectors:
        """The joined views of one text on the axes; of a view that is mostly zeros few axes have to be read."""
        placed, start = np.zeros((1, self.axes_.shape[1]), dtype=np.float32), 0
        for [view], mean, centre, weight in zip(
            views, self.means_, self._placed_means, _WEIGHTS[self.kind], strict=True
        ):
            axes = self.axes_[start : start + mean.size]
            start += mean.size
            at = np.flatnonzero(view)
            length = np.sqrt(max(float(view @ view - 2 * (view[at] @ mean[at]) + mean @ mean), 1e-24))
            part = product(view[None, at], axes[at]) if at.size < view.size else product(view[None], axes)
            placed += (part - centre) * np.float32(np.sqrt(weight) / length)
        return placed

    def _centres(self) -> list[_Vectors]:
        """The centre of each view on the axes."""
        parts = np.split(self.axes_, np.cumsum([mean.size for mean in self.means_])[:-1])
        return [mean @ axes for mean, axes in zip(self.means_, parts, strict=True)]

    def _joined(self, views: Sequence[_Vectors]) -> _Vectors:
        weights = _WEIGHTS[self.kind]
        parts = zip(views, self.means_, weights, strict=True)
        return np.hstack([unit_rows(view - mean) * np.float32(np.sqrt(weight)) for view, mean, weight in parts])


def _main_axes(spread: _Vectors, n_axes: int) -> _Vectors:
    """Main axes (n_raw, n_axes) of centred rows (n, n_raw), by falling variance, from the smaller product."""
    n, n_raw = spread.shape
    least = min(n, n_raw)
    product_of = spread @ spread.T if n < n_raw else spread.T @ spread
    variances, axes = eigh(product_of, subset_by_index=[least - n_axes, least - 1], check_finite=False)
    if n < n_raw:
        axes = (spread.T @ axes) / np.sqrt(np.maximum(variances, 1e-12))
    return np.asarray(axes[:, ::-1])


def dealt_out(work: Callable[[Sequence[str]], tuple[NDArray[Any], ...]], texts: Sequence[str]) -> tuple[Any, ...]:
    """Do work on texts with every core, and put the arrays it gives, a row a text, back in order.

    Each share is worked on by one thread, as a call alone is: what is dealt out within a share stays there. There are
    more shares than cores, so that what one core does in Python meets what another does without it.

    Examples
    --------
    >>> lengths, = dealt_out(lambda texts: (np.array([len(text) for text in texts]),), ["a", "bbb"] * 100)
    >>> lengths[:4]
    array([1, 3, 1, 3])
    """
    n_cores = os.cpu_count() or 1
    n_shares = min(_SHARES_A_CORE * n_cores, len(texts) // _LEAST_SHARE)
    if n_shares < 2 or getattr(_within, "share", False):
        return work(texts)
    # Longest first and dealt out in turn, so that every share is the same work.
    order = np.argsort([-len(text) for text in texts], kind="stable")
    shares = [order[i::n_shares] for i in range(n_shares)]
    with ThreadPoolExecutor(n_cores, initializer=setattr, initargs=(_within, "share", True)) as pool:
        parts = list(pool.map(lambda share: work([texts[i] for i in share]), shares))
    back = np.argsort(np.concatenate(shares))
    return tuple(np.concatenate(arrays)[back] for arrays in zip(*parts, strict=True))


@lru_cache(maxsize=4)
def _encoder(kind: FeatureKind, precision: Literal["int8", "fp32"]) -> Embedder:
    model, poolings = _ENCODERS[kind]
    return OnnxEmbedder(model, precision=precision, poolings=poolings, n_threads=1)


@lru_cache(maxsize=8)
def _language(instruction: str) -> StateEmbedder:
    return StateEmbedder(instruction=instruction)


@lru_cache(maxsize=1)
def _static() -> Embedder:
    return StaticEmbedder()


@lru_cache(maxsize=1)
def _ngrams() -> Embedder:
    return HashedNgrams()
