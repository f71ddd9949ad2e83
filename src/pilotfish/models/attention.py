"""Attention of few or many queries over a text's keys and values, at the speed of the arithmetic.

A row's result hangs on the keys and values it sees alone, and on their order: a token is read the same, bit by bit,
whether it comes alone, in a draft, on a branch of a tree, or within a prompt.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange, types

from pilotfish.models.products import multiplies, n_threads
from pilotfish.models.rows import ONE, ZERO, compiled, exponentials
from pilotfish.models.tiles import COLUMNS, ROWS, TILE, tile_at

__all__ = ["NONE_SEEN", "attend", "attend_some", "attends", "new_room"]

_FULL = 64
"""A sum over scores adds up so many at once, and is the same however many masked ones follow."""
_FOUR = types.float32[:, :, :, :]
_SEEN = types.boolean[:, :, :]
_INDEX = types.intp
NONE_SEEN = np.zeros((1, 0, 0), dtype=np.bool_)
"""A mask of no row: each query sees the keys up to its own place."""


@compiled
def _soft(scores: Any, n: int) -> Any:
    """The exponentials of the first ``n`` scores, in place; one over their sum is given back."""
    full = (n + _FULL - 1) // _FULL * _FULL
    scores[n:full] = -np.inf
    return ONE / exponentials(scores[:full])


@compiled
def _weighed(scores: Any, seen: Any, n: int) -> Any:
    """As :func:`_soft` for those seen, and 0 elsewhere: they are moved together, so as to be summed as if alone."""
    first = 0
    while first < n and seen[first]:
        first += 1
    n_seen = first
    for j in range(first, n):
        if seen[j]:
            scores[n_seen] = scores[j]
            n_seen += 1
    share = ZERO
    if n_seen:
        share = _soft(scores, n_seen)
    for j in range(n - 1, first - 1, -1):
        if seen[j]:
            n_seen -= 1
            scores[j] = scores[n_seen]
        else:
            scores[j] = ZERO
    return share


@compiled(types.void(_FOUR, _FOUR, _FOUR, _SEEN, _FOUR, types.float32, _INDEX, _INDEX, _INDEX))  # type: ignore[untyped-decorator]
def attend_some(
    query: Any, keys: Any, values: Any, seen: Any, out: Any, scale: Any, tile: int, first: int, step: int
) -> None:
    """Every ``step``-th bundle of rows; keys are (n_batch, n_shared, width, n_keys), the last axis contiguous."""
    n_batch, n_heads, n, width = query.shape
    n_shared, n_keys, n_values = keys.shape[1], keys.shape[3], values.shape[3]
    n_free = n - seen.shape[1]
    n_rows = n_heads // n_shared * n
    n_bundles = (n_rows + ROWS - 1) // ROWS
    stride = (n_keys + _FULL - 1) // _FULL * _FULL
    asked, scores = np.empty((ROWS, width), np.float32), np.empty((ROWS, stride), np.float32)
    made, ends = np.empty((ROWS, n_values), np.float32), np.empty(ROWS, np.int64)
    at_scores, at_made = scores.ctypes.data, made.ctypes.data
    for unit in range(first, n_batch * n_shared * n_bundles, step):
        batch, rest = unit // (n_shared * n_bundles), unit % (n_shared * n_bundles)
        shared, start = rest // n_bundles, rest % n_bundles * ROWS
        count, longest = min(ROWS, n_rows - start), 0
        for row in range(count):
            head, i = shared * (n_rows // n) + (start + row) // n, (start + row) % n
            for j in range(width):
                asked[row, j] = query[batch, head, i, j] * scale
            ends[row] = n_keys - n + i + 1 if i < n_free else n_keys
            longest = max(longest, ends[row])
        at = keys[batch, shared].ctypes.data
        for block in range(0, longest, COLUMNS):
            tile_at(
                tile, count, asked.ctypes.data, width, at + 4 * block, keys.strides[2] // 4, width,
                at_scores + 4 * block, stride,
            )  # fmt: skip
        for row in range(count):
            end, i = ends[row], (start + row) % n
            if i < n_free:
                asked[row, 0] = _soft(scores[row], end)
                scores[row, end:longest] = ZERO
            else:
                asked[row, 0] = _weighed(scores[row], seen[batch, i - n_free], end)
        at = values[batch, shared].ctypes.data
        for block in range(0, n_values, COLUMNS):
            tile_at(
                tile,
                count,
                at_scores,
                stride,
                at + 4 * block,
                values.strides[2] // 4,
                longest,
                at_made + 4 * block,
                n_values,
            )
        for row in range(count):
            head, i = shared * (n_rows // n) + (start + row) // n, (start + row) % n
            for j in range(n_values):
                out[batch, i, head, j] = made[row, j] * asked[row, 0]


@compiled(parallel=True)  # type: ignore[untyped-decorator]
def _shared(query: Any, keys: Any, values: Any, seen: Any, out: Any, scale: Any, tile: int, n: int) -> None:
    for thread in prange(n):
        attend_some(query, keys, values, seen, out, scale, tile, thread, n)


def attends(keys: Any, values: Any) -> bool:
    """Whether this machine has the instructions, and keys and values (..., width) the type and width."""
    fits = keys.shape[-1] % COLUMNS == 0 and values.shape[-1] % COLUMNS == 0
    return fits and keys.device.type == "cpu" and multiplies(keys.new_empty((COLUMNS, 0)))


def new_room(n_batch: int, n_shared: int, widths: tuple[int, int], size: int) -> tuple[Any, Any]:
    """Room for keys and values, (n_batch, n_shared, at least ``size``, width), of the kind that :func:`attend` reads.

    The keys of a text lie beside each other for each of their numbers. ``widths`` are those of keys and of values.
    """
    import torch

    # An odd number of blocks, so that the numbers of a key don't fall on the same lines of the cache.
    size = (math.ceil(size / COLUMNS) | 1) * COLUMNS
    return torch.empty(n_batch, n_shared, widths[0], size).transpose(2, 3), torch.empty(
        n_batch, n_shared, size, widths[1]
    )


def attend(query: Any, keys: Any, values: Any, seen: Any = None, scale: float | None = None) -> Any:
    """What each query sees: values weighed by the softmax of its products with the keys.

    Parameters
    ----------
    query : torch.Tensor, (n_batch, n_heads, n, width)
        Of the last ``n`` places of the text; float32.
    keys, values : torch.Tensor, (n_batch, n_shared, n_keys, width)
        In the room of :func:`new_room`; ``n_shared`` divides ``n_heads``.
    seen : torch.Tensor of bool, (n_batch, at most n, n_keys), optional
        Which keys each of the last queries sees; the others, or all by default, see those up to their own place.
    scale : float, optional
        Of the products; one over the root of the width by default.

    Returns
    -------
    torch.Tensor, (n_batch, n, n_heads, width of the values)
        Zeros where a query sees nothing.

    Examples
    --------
    >>> import torch
    >>> keys, values = (torch.ones(1, 1, 2, 32) for _ in range(2))
    >>> room = new_room(1, 1, (32, 32), 2)
    >>> for filled, new in zip(room, (keys, values)):
    ...     filled[:, :, :2] = new
    >>> attend(torch.ones(1, 3, 1, 32), *(filled[:, :, :2] for filled in room)).shape
    torch.Size([1, 1, 3, 32])
    """
    n_batch, n_heads, n, width = query.shape
    out = query.new_empty((n_batch, n, n_heads, values.shape[-1]))
    n_bundles = n_batch * keys.shape[1] * math.ceil(n_heads // keys.shape[1] * n / ROWS)
    threads = n_threads(n_bundles)
    arrays = [t.numpy() for t in (query, keys.transpose(2, 3), values)]
    given = (*arrays, NONE_SEEN if seen is None else seen.numpy(), out.numpy(), np.float32(scale or width**-0.5), TILE)
    if threads == 1:
        attend_some(*given, 0, 1)
    else:
        _shared(*given, threads)
    return out
