"""Products of few rows and a large matrix, in the time in which the memory gives the matrix."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import numba
from numba import prange, types

from pilotfish.models.rows import compiled
from pilotfish.models.tiles import COLUMNS, HAS_FLOAT, LINE, ROWS, TILE, tile_at

__all__ = ["PackedMatrix", "is_copy", "multiplies", "multiply_blocks", "n_threads", "share_of"]

_alone = False
"""Whether this process was copied from another: the threads of OpenMP stayed behind."""


def _go_alone() -> None:
    global _alone
    _alone = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_go_alone)


_NUMBER = types.intp


@compiled(types.UniTuple(_NUMBER, 2)(_NUMBER, _NUMBER, _NUMBER))  # type: ignore[untyped-decorator]
def share_of(n_parts: int, thread: int, n_threads: int) -> tuple[int, int]:
    """A thread's parts of some: the first, and the one behind the last."""
    return thread * n_parts // n_threads, (thread + 1) * n_parts // n_threads


@compiled(types.void(*[_NUMBER] * 9))  # type: ignore[untyped-decorator]
def multiply_blocks(x: int, n: int, k: int, w: int, out: int, n_out: int, tile: int, first: int, last: int) -> None:
    """The product of ``n`` rows (n, k) and some blocks of columns of a packed matrix, at their place in (n, n_out)."""
    for block in range(first, last):
        for row in range(0, n, ROWS):
            tile_at(
                tile, min(ROWS, n - row), x + 4 * row * k, k, w + 4 * block * k * COLUMNS, COLUMNS, k,
                out + 4 * (row * n_out + block * COLUMNS), n_out,
            )  # fmt: skip


@compiled(parallel=True)  # type: ignore[untyped-decorator]
def _shared_blocks(
    x: int, n: int, k: int, w: int, out: int, n_out: int, tile: int, n_blocks: int, n_threads: int
) -> None:
    for thread in prange(n_threads):
        first, last = share_of(n_blocks, thread, n_threads)
        multiply_blocks(x, n, k, w, out, n_out, tile, first, last)


@functools.cache
def _threads_are_torchs() -> bool:
    """Whether numba's threads are those of OpenMP, which torch uses as well: two pools would be in each other's way."""
    try:
        importlib.import_module("numba.np.ufunc.omppool")
    except ImportError:
        return False
    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER = "omp"
    _shared_blocks(0, 0, 0, 0, 0, 0, TILE, 0, 1)
    return bool(numba.threading_layer() == "omp")


def multiplies(weight: Any) -> bool:
    """Whether this machine has the instructions, and a matrix the shape and type."""
    import torch

    fits = weight.dtype == torch.float32 and weight.shape[0] % COLUMNS == 0
    return fits and HAS_FLOAT and _threads_are_torchs()


def is_copy() -> bool:
    """Whether this process was copied from another, so that nothing may be shared among threads."""
    return _alone


def n_threads(most: int) -> int:
    """How many threads to share ``most`` parts among: torch's, or one in a copy of a process."""
    import torch

    return 1 if _alone else max(1, min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, most))


class PackedMatrix:
    """A matrix of float32 in the order in which a product of few rows reads it.

    A product takes as long as reading the matrix for up to about 14 rows, and is at the arithmetic's peak for many. A
    row's result is the same whatever rows stand beside it.

    Parameters
    ----------
    weight : torch.Tensor, (n_out, n_in)
        As of ``torch.nn.Linear``; ``n_out`` must be a multiple of 32 (16 without AVX-512).

    Examples
    --------
    >>> import torch
    >>> weight = torch.arange(64.0).reshape(32, 2)
    >>> PackedMatrix(weight).product(torch.tensor([[1.0, 1.0]]))[0, :3].tolist()
    [1.0, 5.0, 9.0]
    """

    def __init__(self, weight: Any) -> None:
        self.n_out, self.n_in = weight.shape
        room = weight.new_empty(weight.numel() + LINE // 4)
        skip = -room.data_ptr() % LINE // 4
        self._values = room[skip : skip + weight.numel()]
        by_block = weight.detach().reshape(-1, COLUMNS, self.n_in).transpose(1, 2)
        self._values.view(by_block.shape).copy_(by_block)

    @property
    def address(self) -> int:
        """Where the first weight lies."""
        return int(self._values.data_ptr())

    def product(self, rows: Any) -> Any:
        """The product with each of some rows, (..., n_in) to (..., n_out)."""
        rows = rows.contiguous()
        out = rows.new_empty((*rows.shape[:-1], self.n_out))
        n, n_blocks = rows.numel() // self.n_in, self.n_out // COLUMNS
        threads = n_threads(n_blocks)
        run: Callable[..., None] = multiply_blocks if threads == 1 else _shared_blocks
        end = (0, n_blocks) if threads == 1 else (n_blocks, threads)
        run(rows.data_ptr(), n, self.n_in, self.address, out.data_ptr(), self.n_out, TILE, *end)
        return out
