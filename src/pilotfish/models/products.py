"""Products of few rows and a large matrix, in the time in which the memory gives the matrix."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["PackedMatrix", "multiplies"]

_FEATURES = llvmlite.binding.get_host_cpu_features()
_HAS_512, _HAS_256 = (all(_FEATURES.get(name) for name in names) for names in (("avx512f",), ("avx2", "fma")))
_VECTOR = 16 if _HAS_512 else 8
"""Numbers of a register."""
_COLUMNS = 2 * _VECTOR
_ROWS = 14 if _HAS_512 else 6
"""Rows at once: two sums for each, two registers of weights and one of a row fill the 32 or 16 registers there are."""
_AHEAD = 4096
"""Bytes of weights that are asked of the memory before they are needed."""
_LINE = 64
"""Bytes that the memory gives at once; blocks of columns begin at one."""

_alone = False
"""Whether this process was copied from another: the threads of OpenMP stayed behind."""


def _go_alone() -> None:
    global _alone
    _alone = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_go_alone)


def _add_tile(builder: Any, n: int, start: Any, pointers: Any, strides: Any, k: Any, end: Any) -> None:
    """The code of ``n`` rows by one block of columns, their sums in registers from the first to the last weight."""
    x, w, out = pointers
    x_stride, out_stride = strides
    wide = ir.VectorType(ir.FloatType(), _VECTOR)
    index = ir.IntType(64)
    multiply_add = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(wide, [wide] * 3), f"llvm.fma.v{_VECTOR}f32"
    )
    flag, byte = ir.IntType(32), ir.IntType(8).as_pointer()
    prefetch = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag]), "llvm.prefetch.p0"
    )

    def vector(pointer: Any, offset: int) -> Any:
        return builder.bitcast(builder.gep(pointer, [index(offset)]), wide.as_pointer())

    builder.position_at_end(start)
    rows = [builder.gep(x, [builder.mul(x_stride, index(row))]) for row in range(n)]
    loop, after = (builder.append_basic_block(f"{name}_{n}") for name in ("loop", "after"))
    builder.branch(loop)

    builder.position_at_end(loop)
    at = builder.phi(index)
    sums = [[builder.phi(wide) for _ in range(2)] for _ in rows]
    weights = builder.gep(w, [builder.mul(at, index(_COLUMNS))])
    loaded = [builder.load(vector(weights, half * _VECTOR), align=4 * _VECTOR) for half in range(2)]
    for line in range(0, 4 * _COLUMNS, _LINE):
        later = builder.bitcast(builder.gep(weights, [index((_AHEAD + line) // 4)]), byte)
        builder.call(prefetch, [later, flag(0), flag(3), flag(1)])
    new = []
    for row, so_far in zip(rows, sums, strict=True):
        one = builder.insert_element(wide(ir.Undefined), builder.load(builder.gep(row, [at])), flag(0))
        everywhere = builder.shuffle_vector(one, wide(ir.Undefined), ir.VectorType(flag, _VECTOR)([0] * _VECTOR))
        new.append([builder.call(multiply_add, [everywhere, *pair]) for pair in zip(loaded, so_far, strict=True)])
    following = builder.add(at, index(1))
    at.add_incoming(index(0), start)
    at.add_incoming(following, loop)
    for before, now in zip(sums, new, strict=True):
        for phi, value in zip(before, now, strict=True):
            phi.add_incoming(wide([0.0] * _VECTOR), start)
            phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", following, k), loop, after)

    builder.position_at_end(after)
    for row, values in enumerate(new):
        target = builder.gep(out, [builder.mul(out_stride, index(row))])
        for half, value in enumerate(values):
            builder.store(value, vector(target, half * _VECTOR), align=4)
    builder.branch(end)


@intrinsic  # type: ignore[untyped-decorator]
def _tile(_: Any, n: Any, x: Any, x_stride: Any, w: Any, k: Any, out: Any, out_stride: Any) -> tuple[Any, Any]:
    """The first ``n`` rows at ``x`` by one block of columns at ``w``, written to ``out``; addresses in bytes."""

    def generated(context: Any, builder: Any, _: Any, args: Any) -> Any:
        n, x, x_stride, w, k, out, out_stride = args
        number = ir.FloatType().as_pointer()
        pointers = [builder.inttoptr(address, number) for address in (x, w, out)]
        end = builder.append_basic_block("end")
        choice = builder.switch(n, end)
        for count in range(1, _ROWS + 1):
            start = builder.append_basic_block(f"rows_{count}")
            choice.add_case(count, start)
            _add_tile(builder, count, start, pointers, (x_stride, out_stride), k, end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(n, x, x_stride, w, k, out, out_stride), generated


_NUMBER = types.intp
_compiled = functools.partial(njit, cache=True, nogil=True)


@_compiled(types.void(*[_NUMBER] * 8))  # type: ignore[untyped-decorator]
def _blocks(x: int, n: int, k: int, w: int, out: int, n_out: int, first: int, last: int) -> None:
    for block in range(first, last):
        for row in range(0, n, _ROWS):
            _tile(
                min(_ROWS, n - row), x + 4 * row * k, k, w + 4 * block * k * _COLUMNS, k,
                out + 4 * (row * n_out + block * _COLUMNS), n_out,
            )  # fmt: skip


@_compiled(parallel=True)  # type: ignore[untyped-decorator]
def _shared_blocks(x: int, n: int, k: int, w: int, out: int, n_out: int, n_blocks: int, n_threads: int) -> None:
    for thread in prange(n_threads):
        _blocks(x, n, k, w, out, n_out, thread * n_blocks // n_threads, (thread + 1) * n_blocks // n_threads)


@functools.cache
def _threads_are_torchs() -> bool:
    """Whether numba's threads are those of OpenMP, which torch uses as well: two pools would be in each other's way."""
    try:
        importlib.import_module("numba.np.ufunc.omppool")
    except ImportError:
        return False
    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER = "omp"
    _shared_blocks(0, 0, 0, 0, 0, 0, 0, 1)
    return bool(numba.threading_layer() == "omp")


def multiplies(weight: Any) -> bool:
    """Whether this machine has the instructions, and a matrix the shape and type."""
    import torch

    fits = weight.dtype == torch.float32 and weight.shape[0] % _COLUMNS == 0
    return fits and (_HAS_512 or _HAS_256) and _threads_are_torchs()


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
        room = weight.new_empty(weight.numel() + _LINE // 4)
        skip = -room.data_ptr() % _LINE // 4
        self._values = room[skip : skip + weight.numel()]
        by_block = weight.detach().reshape(-1, _COLUMNS, self.n_in).transpose(1, 2)
        self._values.view(by_block.shape).copy_(by_block)

    def product(self, rows: Any) -> Any:
        """The product with each of some rows, (..., n_in) to (..., n_out)."""
        import torch

        rows = rows.contiguous()
        out = rows.new_empty((*rows.shape[:-1], self.n_out))
        n, n_blocks = rows.numel() // self.n_in, self.n_out // _COLUMNS
        n_threads = 1 if _alone else min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS, n_blocks)
        run: Callable[..., None] = _blocks if n_threads == 1 else _shared_blocks
        end = (0, n_blocks) if n_threads == 1 else (n_blocks, n_threads)
        run(rows.data_ptr(), n, self.n_in, self._values.data_ptr(), out.data_ptr(), self.n_out, *end)
        return out
