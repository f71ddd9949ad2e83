"""Functions of single numbers and rows of float32, written so that the compiler does a register of them at once."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["ONE", "ZERO", "compiled", "exponential", "exponentials", "larger", "summed"]

_single = np.float32
_LOG2_E, _LN2_HIGH, _LN2_LOW = _single(1.44269504), _single(0.693359375), _single(-2.12194440e-4)
_HALF, ONE, ZERO, _LEAST = _single(0.5), _single(1), _single(0), _single(-87)
_EXP = tuple(_single(1 / math.factorial(i)) for i in range(6, -1, -1))

compiled = functools.partial(njit, cache=True, nogil=True, error_model="numpy")
summed = functools.partial(compiled, fastmath={"reassoc", "contract", "nsz", "nnan"})
"""Of functions whose numbers are never NaN, and whose sums may be taken in any order."""


@intrinsic  # type: ignore[untyped-decorator]
def _power_of_two(_: Any, n: Any) -> tuple[Any, Any]:
    def generated(_: Any, builder: Any, __: Any, args: Any) -> Any:
        whole = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.add(args[0], whole(127)), whole(23)), ir.FloatType())

    return types.float32(n), generated


@intrinsic  # type: ignore[untyped-decorator]
def larger(_: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """The larger of two numbers."""

    def generated(_: Any, builder: Any, __: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 2)
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.maxnum.f32")
        return builder.call(function, args, fastmath=("nnan", "nsz"))

    return types.float32(a, b), generated


@compiled(inline="always")  # type: ignore[untyped-decorator]
def exponential(x: Any) -> Any:
    """The exponential of a number that is not above 0, in float32."""
    x = larger(x, _LEAST)
    n = np.int32(x * _LOG2_E - _HALF)
    rest = x - np.float32(n) * _LN2_HIGH
    rest -= np.float32(n) * _LN2_LOW
    total = ((((_EXP[0] * rest + _EXP[1]) * rest + _EXP[2]) * rest + _EXP[3]) * rest + _EXP[4]) * rest + _EXP[5]
    return (total * rest + _EXP[6]) * _power_of_two(n)


@summed(types.float32(types.float32[::1]))  # type: ignore[untyped-decorator]
def exponentials(row: NDArray[np.float32]) -> Any:
    """The exponential of each number less the largest, in place; their sum is given back."""
    greatest = row[0]
    for i in range(row.size):
        greatest = larger(greatest, row[i])
    total = ZERO
    for i in range(row.size):
        value = exponential(row[i] - greatest)
        row[i] = value
        total += value
    return total
