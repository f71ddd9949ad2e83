"""fastText classifiers (.bin and .ftz), run without fastText: words and letter n-grams to label probabilities."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import expit

from pilotfish.errors import InputError
from pilotfish.models import catalog
from pilotfish.protocols import FloatArray

__all__ = ["FastTextModel"]

_MAGIC, _SOFTMAX, _HIERARCHICAL, _SUPERVISED = 793712314, 3, 1, 3
_CACHE, _ROWS = 1 << 13, 1 << 10


class FastTextModel:
    """A supervised fastText model: softmax, one-vs-all or hierarchical softmax; plain or product-quantised.

    Parameters
    ----------
    model : str or path
        A model of the catalog, such as ``lid.176``, or a file.

    Attributes
    ----------
    labels_ : list of str
        Without the prefix ``__label__``.

    References
    ----------
    Joulin 2016 (arXiv:1607.01759) and 2016b (arXiv:1612.03651).

    Examples
    --------
    >>> FastTextModel("nothing").predict(["Hello."])
    Traceback (most recent call last):
        ...
    pilotfish.errors.InputError: ...
    """

    def __init__(self, model: str | Path = "lid.176") -> None:
        self.model = model

    def _remembered(self) -> tuple[NDArray[Any], ...]:
        """Room for words seen lately: their vectors, the counts of n-grams, and what tells them apart."""
        width = self._input.shape[1]
        return (
            np.zeros((_CACHE, width), dtype=np.float32),
            np.zeros(_CACHE, dtype=np.int64),
            np.zeros(_CACHE, dtype=np.uint64),
        )

    def predict(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """The likeliest label of each text and its probability; a text without a known n-gram has an empty label."""
        probabilities = self.probabilities(texts)
        best = probabilities.argmax(axis=1)
        top = probabilities[np.arange(len(texts)), best] if len(texts) else np.zeros(0)
        return [self.labels_[i] if p > 0 else "" for i, p in zip(best, top, strict=True)], top

    def probabilities(self, texts: Sequence[str]) -> FloatArray:
        """Probability of every label, (n, n_labels); zeros for a text without a known n-gram."""
        encoded = [text.encode("utf-8", "replace") for text in texts]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in encoded])]).astype(np.int64)
        return self.of(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    def of(self, buffer: NDArray[np.uint8], offsets: NDArray[np.int64], longest: int = 0) -> FloatArray:
        """Probabilities of texts that lie end to end in a buffer, text i from offsets i to i + 1.

        ``longest`` cuts each text to its first bytes; 0 reads all of it.
        """
        self.load()
        hidden = np.zeros((offsets.size - 1, self._input.shape[1]), dtype=np.float32)
        counts = np.zeros(offsets.size - 1, dtype=np.int64)
        # Each thread that is at work has a room of its own, and leaves it to the next.
        room = self._spare.pop() if self._spare else self._remembered()
        _hidden(
            buffer, offsets, longest, self._words, self._pruned, self._known, self._buckets, self._n_words,
            *self._sizes, self._end, self._input, *room, hidden, counts,
        )  # fmt: skip
        self._spare.append(room)
        scores = np.zeros((counts.size, self._weights.shape[1]))
        _score(hidden, counts, self._weights, scores)
        return np.asarray(self._normalised(scores) * (counts > 0)[:, None])

    def _normalised(self, scores: FloatArray) -> FloatArray:
        if self._loss == _HIERARCHICAL:
            # Node by node, each a contiguous row of all texts.
            right = np.ascontiguousarray(expit(scores.T))
            n_labels = len(self.labels_)
            made = np.ones((2 * n_labels - 1, scores.shape[0]))
            for k in range(n_labels - 2, -1, -1):
                first, second = self._children[k]
                np.multiply(made[n_labels + k], right[k], out=made[second])
                np.subtract(made[n_labels + k], made[second], out=made[first])
            return np.asarray(made[:n_labels].T)
        if self._loss == _SOFTMAX:
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True))
        return np.asarray(expit(scores))

    def load(self) -> Self:
        """Read the file, once.

        Raises
        ------
        InputError
            When it is no supervised fastText model.
        """
        if hasattr(self, "labels_"):
            return self
        found = catalog.resolve(self.model)
        path = (
            next((p for p in sorted(found.glob("*")) if p.suffix in (".ftz", ".bin")), found)
            if found.is_dir()
            else found
        )
        try:
            self._read(_Bytes(path.read_bytes()))
        except (struct.error, IndexError, ValueError, OSError, OverflowError) as error:
            raise InputError(f"{path} is no supervised fastText model ({error}): give a .bin or .ftz file.") from error
        return self

    def _read(self, file: _Bytes) -> None:
        magic, _ = file.take("ii")
        if magic != _MAGIC:
            raise ValueError("its first bytes are others")
        args = file.take("12i")
        file.take("d")
        self._loss, kind, bucket, minn, maxn, n_grams = args[6], args[7], args[8], args[9], args[10], args[5]
        if kind != _SUPERVISED or n_grams > 1:
            raise ValueError(
                "it is unsupervised or counts pairs of words" if kind == _SUPERVISED else "it is unsupervised"
            )
        size, n_words, n_labels = file.take("3i")
        _, n_pruned = file.take("2q")
        words, labels, counts = [], [], []
        for _ in range(size):
            word = file.word()
            count, is_label = file.take("qb")
            if is_label:
                labels.append(word.decode("utf-8", "replace").removeprefix("__label__"))
                counts.append(count)
            else:
                words.append(word)
        self._n_words, self._buckets = n_words, bucket
        self._sizes = (minn, maxn)
        rows = np.arange(max(bucket, 1), dtype=np.int64)
        if n_pruned >= 0:
            rows[:] = -1
            pairs = np.array(file.array(np.int32, 2 * n_pruned)).reshape(-1, 2)
            rows[pairs[:, 0]] = pairs[:, 1]
        self._words = _word_table(words)
        self._end = words.index(b"</s>") if b"</s>" in words else -1
        quantised = file.take("?")[0]
        given = file.quantised() if quantised else file.matrix()
        # A bit for each bucket that is there at all, and rows in the order of buckets: so the place of a row is the
        # number of bits before its own, and everything but the rows fits the processor's cache.
        there = rows >= 0
        self._input = np.concatenate([given[:n_words], given[n_words:][rows[there]]]) if bucket else given
        bits = np.packbits(np.append(there, np.zeros(-there.size % 64, dtype=bool)), bitorder="little")
        self._known = bits.view(np.uint64)
        counts_before = np.add.reduceat(np.append(there, False).astype(np.int64), np.arange(0, there.size, 64))
        self._pruned = np.concatenate([[0], np.cumsum(counts_before)]).astype(np.int32)
        output = file.quantised() if file.take("?")[0] and quantised else file.matrix()
        if self._loss == _HIERARCHICAL:
            self._children = _tree(counts)
            output = output[: n_labels - 1]
        self._weights = np.ascontiguousarray(output.T)
        self._spare: list[tuple[NDArray[Any], ...]] = []
        self.labels_ = labels


class _Bytes:
    """A file as numbers, in its order."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.content, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def word(self) -> bytes:
        end = self.content.index(b"\x00", self.at)
        word = self.content[self.at : end]
        self.at = end + 1
        return word

    def array(self, kind: Any, n: int) -> NDArray[Any]:
        made = np.frombuffer(self.content, dtype=kind, count=n, offset=self.at)
        self.at += made.nbytes
        return made

    def matrix(self) -> NDArray[np.float32]:
        m, n = self.take("2q")
        return np.array(self.array(np.float32, m * n).reshape(m, n))

    def quantised(self) -> NDArray[np.float32]:
        with_norms, m, n, n_codes = self.take("?2qi")
        codes = self.array(np.uint8, n_codes)
        made = self.centroids(codes, m, n)
        if with_norms:
            norms = self.array(np.uint8, m)
            made *= self.centroids(norms, m, 1)
        return made

    def centroids(self, codes: NDArray[np.uint8], m: int, n: int) -> NDArray[np.float32]:
        dim, n_parts, size, last = self.take("4i")
        if dim != n:
            raise ValueError("its quantiser has another width")
        values = self.array(np.float32, dim * 256)
        table = codes.reshape(m, n_parts)
        columns = []
        for part in range(n_parts):
            width = last if part == n_parts - 1 else size
            block = values[part * 256 * size :][: 256 * width].reshape(256, width)
            columns.append(block[table[:, part]])
        return np.ascontiguousarray(np.hstack(columns), dtype=np.float32)


def _tree(counts: Sequence[int]) -> NDArray[np.int64]:
    """Children (n_labels - 1, 2) of the inner nodes of the Huffman tree of labels in falling order of counts."""
    n = len(counts)
    weight = [*counts, *([10**15] * (n - 1))]
    leaf, node = n - 1, n
    children = np.zeros((n - 1, 2), dtype=np.int64)
    for i in range(n - 1):
        for side in range(2):
            if leaf >= 0 and weight[leaf] < weight[node]:
                children[i, side] = leaf
                leaf -= 1
            else:
                children[i, side] = node
                node += 1
        weight[n + i] = weight[children[i, 0]] + weight[children[i, 1]]
    return children


def _word_table(words: Sequence[bytes]) -> NDArray[np.int64]:
    """Open-addressed pairs of hash and number; -1 where a place is free."""
    size = 16
    while size < 2 * len(words):
        size *= 2
    table = np.full((size, 2), -1, dtype=np.int64)
    for number, word in enumerate(words):
        h = 2166136261
        for byte in word:
            h = ((h ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & 0xFFFFFFFF
        at = h & (size - 1)
        while table[at, 1] >= 0:
            at = (at + 1) & (size - 1)
        table[at] = h, number
    return table


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _n_bits(x: Any) -> Any:
    """Number of ones among 64 bits."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _add_rows(matrix: Any, rows: Any, n: int, total: Any) -> None:
    """Add the first n of some rows of a matrix to a vector."""
    for r in range(n):
        row = rows[r]
        if total.size == 16:
            for k in range(16):
                total[k] += matrix[row, k]
        else:
            for k in range(total.size):
                total[k] += matrix[row, k]


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _add_ngrams(
    letters: Any,
    n: int,
    pruned: Any,
    known: Any,
    bucket: Any,
    n_words: int,
    minn: int,
    maxn: int,
    matrix: Any,
    rows: Any,
    total: Any,
) -> int:
    """Add the vectors of the letter n-grams of a word between its marks; return how many there are."""
    found, waiting, buckets, inverse = 0, 0, np.int64(bucket), 1.0 / np.float64(bucket)
    for i in range(n):
        if letters[i] & 0xC0 == 0x80:
            continue
        h, j, size = np.uint32(2166136261), i, 1
        while j < n and size <= maxn:
            h = np.uint32((h ^ np.uint32(np.int8(letters[j]))) * np.uint32(16777619))
            j += 1
            while j < n and letters[j] & 0xC0 == 0x80:
                h = np.uint32((h ^ np.uint32(np.int8(letters[j]))) * np.uint32(16777619))
                j += 1
            if size >= minn and not (size == 1 and (i == 0 or j == n)):
                # A remainder without a division: the quotient in floating point, mended by one where it is off.
                b = np.int64(h) - np.int64(np.float64(h) * inverse) * buckets
                b += buckets if b < 0 else (-buckets if b >= buckets else 0)
                block, place = known[b >> 6], np.uint64(b & 63)
                # Half of them are known: the place of the next is moved on without a branch, rows are added later.
                rows[waiting] = n_words + pruned[b >> 6] + _n_bits(block & ((np.uint64(1) << place) - np.uint64(1)))
                waiting += int(block >> place & np.uint64(1))
            size += 1
        if waiting > rows.size - maxn:
            _add_rows(matrix, rows, waiting, total)
            found, waiting = found + waiting, 0
    _add_rows(matrix, rows, waiting, total)
    return found + waiting


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _hidden(
    buffer: Any, offsets: Any, longest: int, words: Any, pruned: Any, known: Any, buckets: int, n_words: int,
    minn: int, maxn: int, end: int, matrix: Any, sums: Any, cached: Any, keys: Any, hidden: Any, counts: Any,
) -> None:  # fmt: skip
    """Sum the vectors of each text's words and letter n-grams; a word seen lately is not taken apart again."""
    width, mask = hidden.shape[1], np.int64(words.shape[0] - 1)
    bucket = np.uint32(max(buckets, 1))
    longest_text = 0
    for d in range(offsets.size - 1):
        longest_text = max(longest_text, offsets[d + 1] - offsets[d])
    letters = np.empty(longest_text + 2, dtype=np.uint8)
    rows = np.empty(_ROWS + maxn, dtype=np.int32)
    for d in range(offsets.size - 1):
        i, stop = offsets[d], offsets[d + 1]
        if longest and stop - i > longest:
            stop = i + longest
        while i < stop:
            c = buffer[i]
            if c == 32 or (9 <= c <= 13) or c == 0:
                i += 1
                continue
            s = i
            h, key = np.uint32(2166136261), np.uint64(0xCBF29CE484222325)
            while i < stop:
                c = buffer[i]
                if c == 32 or (9 <= c <= 13) or c == 0:
                    break
                h = np.uint32((h ^ np.uint32(np.int8(c))) * np.uint32(16777619))
                key = (key ^ np.uint64(c)) * np.uint64(0x100000001B3)
                i += 1
            key |= np.uint64(1)
            slot = np.int64((key >> np.uint64(40)) % np.uint64(_CACHE))
            if keys[slot] != key:
                keys[slot] = key
                total = sums[slot]
                total[:] = 0
                found = 0
                at = np.int64(h) & mask
                while words[at, 1] >= 0 and words[at, 0] != np.int64(h):
                    at = (at + 1) & mask
                if words[at, 1] >= 0:
                    found = 1
                    for k in range(width):
                        total[k] += matrix[words[at, 1], k]
                if maxn > 0:
                    letters[0], letters[i - s + 1] = 60, 62
                    letters[1 : i - s + 1] = buffer[s:i]
                    found += _add_ngrams(
                        letters, i - s + 2, pruned, known, bucket, n_words, minn, maxn, matrix, rows, total
                    )
                cached[slot] = found
            for k in range(width):
                hidden[d, k] += sums[slot, k]
            counts[d] += cached[slot]
        if end >= 0 and counts[d] > 0:
            for k in range(width):
                hidden[d, k] += matrix[end, k]
            counts[d] += 1


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _score(hidden: Any, counts: Any, weights: Any, scores: Any) -> None:
    """Scores of every text: means of vectors times weights. So small a product would only wake the threads of BLAS."""
    for d in range(counts.size):
        for k in range(hidden.shape[1]):
            value = np.float64(hidden[d, k]) / max(counts[d], 1)
            for j in range(scores.shape[1]):
                scores[d, j] += value * weights[k, j]
