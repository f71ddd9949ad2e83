"""Code of the inner loops of matrix products: some rows by one block of columns, their sums in registers.

Rows are multiplied by a matrix that lies in blocks of :data:`COLUMNS` columns, each from its first weight to its last.
:func:`float_tile` multiplies float32 as it is. :func:`short_tile` multiplies whole numbers of 16 bits, two weights of a
column beside each other, with sums of 32 bits, and gives them back as float32: twice as many products in the same time
where the processor has instructions for it (:data:`HAS_SHORT`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["COLUMNS", "HAS_FLOAT", "HAS_SHORT", "LINE", "ROWS", "TILE", "float_tile", "short_tile", "tile_at"]

_FEATURES = llvmlite.binding.get_host_cpu_features()


def _has(*names: str) -> bool:
    return all(_FEATURES.get(name) for name in names)


_WIDE = _has("avx512f")
_VECTOR = 16 if _WIDE else 8
"""Numbers of a register."""
HAS_FLOAT = _WIDE or _has("avx2", "fma")
HAS_SHORT = _has("avx512f", "avx512vnni") if _WIDE else _has("avxvnni", "fma")
COLUMNS = 2 * _VECTOR
ROWS = 14 if _WIDE else 6
"""Rows at once: two sums for each, two registers of weights and one of a row fill the 32 or 16 registers there are."""
LINE = 64
"""Bytes that the memory gives at once; blocks of columns begin at one."""
_AHEAD = 4096
"""Bytes of weights that are asked of the memory before they are needed."""

_INDEX, _FLAG = ir.IntType(64), ir.IntType(32)
_FLOATS = ir.VectorType(ir.FloatType(), _VECTOR)
_WHOLE = ir.VectorType(_FLAG, _VECTOR)


def _vector(builder: Any, pointer: Any, offset: int, kind: Any = None) -> Any:
    return builder.bitcast(builder.gep(pointer, [_INDEX(offset)]), (kind or _FLOATS).as_pointer())


def _everywhere(builder: Any, value: Any, kind: Any) -> Any:
    one = builder.insert_element(kind(ir.Undefined), value, _FLAG(0))
    return builder.shuffle_vector(one, kind(ir.Undefined), _WHOLE([0] * _VECTOR))


def _add_sums(
    builder: Any, n: int, start: Any, x: Any, x_stride: Any, w: Any, w_stride: Any, k: Any, kind: Any, function: str,
    ahead: int,
) -> list[list[Any]]:  # fmt: skip
    """The loop over the weights for ``n`` rows; the builder is left behind it, with the sums by row."""
    multiply_add = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), function)
    byte = ir.IntType(8).as_pointer()
    prefetch = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte, _FLAG, _FLAG, _FLAG]), "llvm.prefetch.p0"
    )
    zero = kind([0] * _VECTOR)

    builder.position_at_end(start)
    rows = [builder.gep(x, [builder.mul(x_stride, _INDEX(row))]) for row in range(n)]
    loop, after = (builder.append_basic_block(f"{name}_{n}") for name in ("loop", "after"))
    builder.branch(loop)

    builder.position_at_end(loop)
    at = builder.phi(_INDEX)
    sums = [[builder.phi(kind) for _ in range(2)] for _ in rows]
    weights = builder.gep(w, [builder.mul(at, w_stride)])
    loaded = [builder.load(_vector(builder, weights, half * _VECTOR, kind), align=4 * _VECTOR) for half in range(2)]
    for line in range(0, 4 * COLUMNS if ahead else 0, LINE):
        later = builder.bitcast(builder.gep(weights, [_INDEX((ahead + line) // 4)]), byte)
        builder.call(prefetch, [later, _FLAG(0), _FLAG(3), _FLAG(1)])
    new = []
    for row, so_far in zip(rows, sums, strict=True):
        everywhere = _everywhere(builder, builder.load(builder.gep(row, [at])), kind)
        if kind is _FLOATS:
            new.append([builder.call(multiply_add, [everywhere, *pair]) for pair in zip(loaded, so_far, strict=True)])
        else:
            new.append([builder.call(multiply_add, [s, w, everywhere]) for w, s in zip(loaded, so_far, strict=True)])
    following = builder.add(at, _INDEX(1))
    at.add_incoming(_INDEX(0), start)
    at.add_incoming(following, loop)
    for before, now in zip(sums, new, strict=True):
        for phi, value in zip(before, now, strict=True):
            phi.add_incoming(zero, start)
            phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", following, k), loop, after)
    builder.position_at_end(after)
    return new


def _by_rows(context: Any, builder: Any, n: Any, add: Callable[[int, Any], None]) -> Any:
    """A branch for each number of rows, whose code ``add`` writes."""
    end = builder.append_basic_block("end")
    choice = builder.switch(n, end)
    for count in range(1, ROWS + 1):
        start = builder.append_basic_block(f"rows_{count}")
        choice.add_case(count, start)
        add(count, start)
        builder.branch(end)
    builder.position_at_end(end)
    return context.get_dummy_value()


def _pointers(builder: Any, addresses: Sequence[Any], kind: Any) -> list[Any]:
    return [builder.inttoptr(address, kind.as_pointer()) for address in addresses]


@intrinsic  # type: ignore[untyped-decorator]
def float_tile(
    _: Any, n: Any, x: Any, x_stride: Any, w: Any, w_stride: Any, k: Any, out: Any, out_stride: Any
) -> tuple[Any, Any]:
    """The first ``n`` rows at ``x`` by one block of columns at ``w``, written to ``out``; addresses in bytes.

    ``w_stride`` is from one weight of a column to the next: :data:`COLUMNS` in a packed matrix.
    """

    def generated(context: Any, builder: Any, _: Any, args: Any) -> Any:
        n, x, x_stride, w, w_stride, k, out, out_stride = args
        x, w, out = _pointers(builder, (x, w, out), ir.FloatType())

        def add(count: int, start: Any) -> None:
            function = f"llvm.fma.v{_VECTOR}f32"
            for row, sums in enumerate(
                _add_sums(builder, count, start, x, x_stride, w, w_stride, k, _FLOATS, function, ahead=_AHEAD)
            ):
                target = builder.gep(out, [builder.mul(out_stride, _INDEX(row))])
                for half, value in enumerate(sums):
                    builder.store(value, _vector(builder, target, half * _VECTOR), align=4)

        return _by_rows(context, builder, n, add)

    return types.void(n, x, x_stride, w, w_stride, k, out, out_stride), generated


@intrinsic  # type: ignore[untyped-decorator]
def short_tile(
    _: Any, n: Any, x: Any, x_stride: Any, w: Any, k: Any, out: Any, out_stride: Any, x_step: Any, w_step: Any,
    added: Any, added_stride: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """As :func:`float_tile` for pairs of whole numbers: ``k`` and ``x_stride`` count pairs.

    The sums are multiplied by the step of their row and that of their column, and ``added`` is added, float32 each: a
    bias where its stride is 0, or ``out`` itself.
    """

    def generated(context: Any, builder: Any, _: Any, args: Any) -> Any:
        n, x, x_stride, w, k, out, out_stride, x_step, w_step, added, added_stride = args
        x, w = _pointers(builder, (x, w), _FLAG)
        out, x_step, w_step, added = _pointers(builder, (out, x_step, w_step, added), ir.FloatType())

        def add(count: int, start: Any) -> None:
            function = f"llvm.x86.avx512.vpdpwssd.{32 * _VECTOR}"
            sums = _add_sums(builder, count, start, x, x_stride, w, _INDEX(COLUMNS), k, _WHOLE, function, ahead=0)
            steps = [builder.load(_vector(builder, w_step, half * _VECTOR), align=4) for half in range(2)]
            for row, values in enumerate(sums):
                step = _everywhere(builder, builder.load(builder.gep(x_step, [_INDEX(row)])), _FLOATS)
                target, other = (
                    builder.gep(pointer, [builder.mul(stride, _INDEX(row))])
                    for pointer, stride in ((out, out_stride), (added, added_stride))
                )
                for half, value in enumerate(values):
                    scaled = builder.fmul(builder.sitofp(value, _FLOATS), builder.fmul(step, steps[half]))
                    before = builder.load(_vector(builder, other, half * _VECTOR), align=4)
                    builder.store(builder.fadd(scaled, before), _vector(builder, target, half * _VECTOR), align=4)

        return _by_rows(context, builder, n, add)

    kinds = (n, x, x_stride, w, k, out, out_stride, x_step, w_step, added, added_stride)
    return types.void(*kinds), generated


@cfunc(types.void(*[types.intp] * 8), cache=True)  # type: ignore[untyped-decorator]
def _tile(n: int, x: int, x_stride: int, w: int, w_stride: int, k: int, out: int, out_stride: int) -> None:
    float_tile(n, x, x_stride, w, w_stride, k, out, out_stride)


TILE = _tile.address
"""Where the compiled :func:`float_tile` lies. Code that holds the loops themselves takes seconds to compile."""


@intrinsic  # type: ignore[untyped-decorator]
def tile_at(
    _: Any, tile: Any, n: Any, x: Any, x_stride: Any, w: Any, w_stride: Any, k: Any, out: Any, out_stride: Any
) -> tuple[Any, Any]:
    """Call :func:`float_tile` where it lies, at :data:`TILE`; addresses are known only when the code runs."""

    def generated(context: Any, builder: Any, _: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_INDEX] * 8)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(tile, n, x, x_stride, w, w_stride, k, out, out_stride), generated
