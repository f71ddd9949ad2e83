"""BERT and MPNet encoders whose matrix products are of 16-bit whole numbers: near float32's result in half its time.

A run of a row's numbers is rounded to steps of its own length, and so is one of a column's weights, so that by the
inequality of Cauchy and Schwarz no sum of their products can leave 32 bits, whatever the numbers are. All else is
float32. Texts are read without padding; the vectors of a text don't hang on those read beside it.

References
----------
Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26, for the error function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from pilotfish.errors import InputError
from pilotfish.models.bert import DISTANCES, named_weights
from pilotfish.models.rows import ONE, ZERO, compiled, exponential, exponentials, larger, summed
from pilotfish.models.tiles import COLUMNS, HAS_FLOAT, HAS_SHORT, LINE, ROWS, TILE, short_tile, tile_at

__all__ = ["Int16Encoder", "can_read"]

_Vectors = NDArray[np.float32]
_LENGTH = 46_000
"""Most steps of a run: with what rounding adds, two of them multiply to less than 2**31."""
_MOST = 32_767
_RUN = 96
"""Most numbers of a row that share a step: an outlier makes those beside it coarse, and no others."""
_NORMS = ("attention.output", "output")
_MATRICES = (
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    ("attention.output.dense",),
    ("intermediate.dense",),
    ("output.dense",),
)
"""What a layer multiplies by; the first three at once."""
_ROWS_AT_ONCE = 4 * ROWS
"""Rows that go from one layer to the next while they are in the core's cache."""

_single = np.float32
_HALF = _single(0.5)
_ERF = tuple(map(_single, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)))
_ERF_P, _ROOT_HALF = _single(0.3275911), _single(0.5**0.5)
_TINY = _single(1e-30)

# All numbers are finite, since weights are looked at and rows are normalised.
_void, _FLOATS = types.void, types.float32[::1]


@intrinsic  # type: ignore[untyped-decorator]
def _nearest(_: Any, x: Any) -> tuple[Any, Any]:
    def generated(_: Any, builder: Any, __: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()])
        near = builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.rint.f32"), args)
        return builder.trunc(builder.fptosi(near, ir.IntType(32)), ir.IntType(16))

    return types.int16(x), generated


@summed(_void(_FLOATS))  # type: ignore[untyped-decorator]
def _gelu(row: _Vectors) -> None:
    for i in range(row.size):
        x = row[i]
        far = abs(x) * _ROOT_HALF
        t = ONE / (ONE + _ERF_P * far)
        rest = ((((_ERF[0] * t + _ERF[1]) * t + _ERF[2]) * t + _ERF[3]) * t + _ERF[4]) * t * exponential(-far * far)
        row[i] = x * (ONE - _HALF * rest) if x > 0 else x * _HALF * rest


@summed(_void(_FLOATS, _FLOATS, _FLOATS, types.float32))  # type: ignore[untyped-decorator]
def _normalise(row: _Vectors, weight: _Vectors, bias: _Vectors, epsilon: Any) -> None:
    mean = ZERO
    for i in range(row.size):
        mean += row[i]
    mean /= np.float32(row.size)
    spread = ZERO
    for i in range(row.size):
        spread += (row[i] - mean) * (row[i] - mean)
    scale = ONE / np.sqrt(spread / np.float32(row.size) + epsilon)
    for i in range(row.size):
        row[i] = (row[i] - mean) * scale * weight[i] + bias[i]


@summed(types.float32(_FLOATS, types.int16[::1]))  # type: ignore[untyped-decorator]
def _round(row: _Vectors, out: Any) -> Any:
    """The row in whole steps, written to ``out``; the size of the step is given back."""
    square, greatest = ZERO, ZERO
    for i in range(row.size):
        square += row[i] * row[i]
    for i in range(row.size):
        greatest = larger(greatest, abs(row[i]))
    step = max(np.sqrt(square) / np.float32(_LENGTH), greatest / np.float32(_MOST), _TINY)
    inverse = ONE / step
    for i in range(row.size):
        out[i] = _nearest(row[i] * inverse)
    return step


@summed(_void(_FLOATS))  # type: ignore[untyped-decorator]
def _soften(row: _Vectors) -> None:
    """Softmax in place."""
    inverse = ONE / exponentials(row)
    for i in range(row.size):
        row[i] *= inverse


@compiled
def _multiply(x: _Vectors, weight: Any, step: _Vectors, bias: _Vectors, whole: Any, steps: _Vectors, out: Any) -> None:
    """``out = x @ weight + bias`` for a few rows; ``whole`` and ``steps`` are room for them rounded."""
    n, n_in, n_out = x.shape[0], x.shape[1], out.shape[1]
    size = n_in // len(step)
    for i in range(n):
        for part in range(len(step)):
            first = part * size
            steps[part, i] = _round(x[i][first : first + size], whole[i][first : first + size])
    for block in range(n_out // COLUMNS):
        at = block * COLUMNS
        for row in range(0, n, ROWS):
            target = out.ctypes.data + 4 * (row * n_out + at)
            for part in range(len(step)):
                first = part * size
                short_tile(
                    min(ROWS, n - row), whole.ctypes.data + 2 * (row * whole.shape[1] + first), whole.shape[1] // 2,
                    weight.ctypes.data + 2 * (at * n_in + first * COLUMNS), size // 2, target, n_out,
                    steps[part].ctypes.data + 4 * row, step[part].ctypes.data + 4 * at,
                    target if part else bias.ctypes.data + 4 * at, n_out if part else 0,
                )  # fmt: skip


@compiled
def _float_blocks(tile: int, n: int, x: Any, x_stride: int, w: _Vectors, k: int, out: Any, out_stride: int) -> None:
    """A few rows at ``x`` by blocks (n_blocks, k or more, COLUMNS)."""
    for row in range(0, n, ROWS):
        for block in range(w.shape[0]):
            tile_at(
                tile, min(ROWS, n - row), x + 4 * row * x_stride, x_stride, w[block].ctypes.data, COLUMNS, k,
                out + 4 * (row * out_stride + block * COLUMNS), out_stride,
            )  # fmt: skip


@compiled
def _attend(
    asked: _Vectors, out: _Vectors, n_heads: int, distances: _Vectors, keys: Any, scores: Any, tile: int
) -> None:
    """Attention within one text: queries, keys and values (n, 3 * size) to what they see (n, size)."""
    n, size = out.shape
    width = size // n_heads
    n_blocks = (n + COLUMNS - 1) // COLUMNS
    scale = ONE / np.sqrt(np.float32(width))
    stride = n_blocks * COLUMNS
    keys_of = keys[: n_blocks * width * COLUMNS].reshape(n_blocks, width, COLUMNS)
    values_of = keys[: n * width].reshape(width // COLUMNS, n, COLUMNS)
    seen = scores[: n * stride].reshape(n, stride)
    for head in range(n_heads):
        first = head * width
        keys_of[n_blocks - 1] = ZERO
        for i in range(n):
            for j in range(width):
                keys_of[i // COLUMNS, j, i % COLUMNS] = asked[i, size + first + j] * scale
        _float_blocks(tile, n, asked.ctypes.data + 4 * first, 3 * size, keys_of, width, seen.ctypes.data, stride)
        for i in range(n):
            if distances.size:
                for j in range(n):
                    seen[i, j] += distances[head, i, j]
            _soften(seen[i][:n])
        for block in range(width // COLUMNS):
            at = 2 * size + first + block * COLUMNS
            values_of[block] = asked[:, at : at + COLUMNS]
        _float_blocks(tile, n, seen.ctypes.data, stride, values_of, n, out.ctypes.data + 4 * first, size)


@compiled
def _read(
    x: _Vectors, ends: Any, n_heads: int, epsilon: Any, distances: _Vectors, norms: _Vectors, weights: Any, steps: Any,
    biases: Any, tile: int,
) -> None:  # fmt: skip
    """All layers in place: ``x`` (n_tokens, size) are the embeddings of texts that end at ``ends``."""
    n, size = x.shape
    longest, before = 0, 0
    for end in ends:
        longest = max(longest, end - before)
        before = end
    inner = biases[2].shape[1]
    blocks = (longest + COLUMNS - 1) // COLUMNS * COLUMNS
    asked, seen = np.empty((n, 3 * size), np.float32), np.empty((n, size), np.float32)
    made, high = np.empty((_ROWS_AT_ONCE, size), np.float32), np.empty((_ROWS_AT_ONCE, inner), np.float32)
    n_runs = max(steps[1].shape[1], steps[3].shape[1])
    whole = np.empty((_ROWS_AT_ONCE, max(inner, size)), np.int16)
    step = np.empty((n_runs, _ROWS_AT_ONCE), np.float32)
    room = np.empty(blocks * (size // n_heads) + LINE, np.float32)
    skip = -room.ctypes.data % LINE // 4
    keys, scores = room[skip:], np.empty(longest * blocks, np.float32)
    for layer in range(norms.shape[0]):
        for start in range(0, n, _ROWS_AT_ONCE):
            rows = x[start : start + _ROWS_AT_ONCE]
            out = asked[start : start + _ROWS_AT_ONCE]
            _multiply(rows, weights[0][layer], steps[0][layer], biases[0][layer], whole, step, out)
        before = 0
        for end in ends:
            _attend(asked[before:end], seen[before:end], n_heads, distances, keys, scores, tile)
            before = end
        for start in range(0, n, _ROWS_AT_ONCE):
            rows = x[start : start + _ROWS_AT_ONCE]
            few, up = made[: len(rows)], high[: len(rows)]
            for part in range(2):
                if part == 0:
                    inputs = seen[start : start + _ROWS_AT_ONCE]
                    _multiply(inputs, weights[1][layer], steps[1][layer], biases[1][layer], whole, step, few)
                else:
                    _multiply(rows, weights[2][layer], steps[2][layer], biases[2][layer], whole, step, up)
                    for i in range(len(rows)):
                        _gelu(up[i])
                    _multiply(up, weights[3][layer], steps[3][layer], biases[3][layer], whole, step, few)
                for i in range(len(rows)):
                    for j in range(size):
                        rows[i, j] += few[i, j]
                    _normalise(rows[i], norms[layer, 2 * part], norms[layer, 2 * part + 1], epsilon)


@compiled
def _embed(ids: Any, ends: Any, words: _Vectors, positions: _Vectors, norm: _Vectors, epsilon: Any) -> _Vectors:
    out = np.empty((ids.size, words.shape[1]), np.float32)
    before = 0
    for end in ends:
        for i in range(before, end):
            out[i] = words[ids[i]] + positions[i - before]
            _normalise(out[i], norm[0], norm[1], epsilon)
        before = end
    return out


def can_read(config: Mapping[str, Any]) -> bool:
    """Whether this machine has the instructions, and an encoder widths that its registers divide."""
    size, n_heads = int(config.get("hidden_size", 1)), int(config.get("num_attention_heads", 1))
    widths = (size // n_heads, int(config.get("intermediate_size", 4 * size)))
    return HAS_SHORT and HAS_FLOAT and all(width % COLUMNS == 0 for width in widths)


class Int16Encoder:
    """The token vectors of a BERT or MPNet encoder.

    Parameters
    ----------
    weights, config : mapping
        As of :func:`pilotfish.models.bert.build_onnx`.
    n_layers : int, optional
        The first layers only; all by default.

    Raises
    ------
    InputError
        When a weight or a key of ``config`` is missing, the architecture is another one, or :func:`can_read` denies it.
    """

    def __init__(
        self, weights: Mapping[str, NDArray[Any]], config: Mapping[str, Any], n_layers: int | None = None
    ) -> None:
        weights = named_weights(weights, config)
        if not can_read(config):
            raise InputError(
                "precision is 'int16', which this processor or this encoder's widths don't allow: use fp32."
            )
        self.n_dimensions = int(config["hidden_size"])
        self._n_heads = int(config["num_attention_heads"])
        self._epsilon = _single(config["layer_norm_eps"])
        self._words = weights["embeddings.word_embeddings.weight"]
        kinds = weights["embeddings.token_type_embeddings.weight"]
        self._positions = weights["embeddings.position_embeddings.weight"] + kinds[0]
        self.n_positions = len(self._positions)
        self._distances = weights.get(DISTANCES, np.empty((0, 0, 0), np.float32))
        self._norm = np.stack([weights[f"embeddings.LayerNorm.{part}"] for part in ("weight", "bias")])
        layers = range(int(config["num_hidden_layers"]) if n_layers is None else n_layers)
        norms = [
            [weights[f"encoder.layer.{i}.{at}.LayerNorm.{part}"] for at, part in product(_NORMS, ("weight", "bias"))]
            for i in layers
        ]
        self._norms = np.array(norms, np.float32).reshape(len(layers), 4, self.n_dimensions)
        whole, steps, biases = [], [], []
        for names in _MATRICES:
            parts = [[f"encoder.layer.{i}.{name}" for name in names] for i in layers]
            found = [_rounded([weights[f"{part}.weight"] for part in own]) for own in parts]
            whole.append(_aligned([matrix for matrix, _ in found]))
            steps.append(np.array([step for _, step in found]))
            biases.append(np.array([np.concatenate([weights[f"{part}.bias"] for part in own]) for own in parts]))
        self._weights, self._steps, self._biases = tuple(whole), tuple(steps), tuple(biases)

    def read(self, ids: Sequence[Sequence[int]]) -> list[_Vectors]:
        """Unit vector of each token, (n_tokens, n_dimensions) a text."""
        lengths = [len(row) for row in ids]
        ends = np.cumsum(lengths)
        flat = np.fromiter((i for row in ids for i in row), np.int64, int(ends[-1]))
        x = _embed(flat, ends, self._words, self._positions, self._norm, self._epsilon)
        if len(self._norms):
            parts = (self._norms, self._weights, self._steps, self._biases)
            _read(x, ends, self._n_heads, self._epsilon, self._distances, *parts, TILE)
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _TINY)
        return np.split(x, ends[:-1])


def _rounded(parts: Sequence[_Vectors]) -> tuple[NDArray[np.int16], _Vectors]:
    """Matrices (n_out, n_in) under each other in whole steps, packed for the tiles, and the steps (n_runs, n_out)."""
    weight = np.concatenate(parts)
    n_out, n_in = weight.shape
    size = next(size for size in range(_RUN, 0, -2) if n_in % size == 0)
    runs = weight.reshape(n_out, -1, size)
    greatest = np.abs(runs).max(axis=2) / _MOST
    steps = np.maximum(np.maximum(np.linalg.norm(runs, axis=2) / _LENGTH, greatest), _TINY).astype(np.float32)
    if not np.isfinite(steps).all():
        raise InputError("The weights hold numbers that are not finite: load them again from their source.")
    whole = np.rint(runs / steps[..., None]).astype(np.int16)
    packed = whole.reshape(n_out // COLUMNS, COLUMNS, n_in // 2, 2).transpose(0, 2, 1, 3)
    return packed.ravel(), np.ascontiguousarray(steps.T)


def _aligned(rows: Sequence[NDArray[np.int16]]) -> NDArray[np.int16]:
    """Rows of one length under each other, from the beginning of a line of memory."""
    size = sum(row.size for row in rows)
    room = np.empty(size + LINE // 2, np.int16)
    skip = -room.ctypes.data % LINE // 2
    whole = room[skip : skip + size].reshape(len(rows), size // max(len(rows), 1))
    for target, row in zip(whole, rows, strict=True):
        target[:] = row
    return whole
