"""Products and lengths of rows of numbers, in the precision they come in, and rows made a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["in_parts", "product", "unit_rows"]

T = TypeVar("T", bound=np.floating[Any])
_FEW_ROWS = 4


def product(X: NDArray[T], Y: NDArray[T]) -> NDArray[T]:
    """Matrix product of X (n, d) and Y (d, k).

    A call alone has one row: waking the threads of a matrix library for it takes longer than the product, many times
    longer on a busy machine.

    Examples
    --------
    >>> product(np.ones((1, 2), dtype=np.float32), np.ones((2, 1), dtype=np.float32))
    array([[2.]], dtype=float32)
    """
    return np.asarray(np.einsum("ij,jk->ik", X, Y) if len(X) <= _FEW_ROWS else X @ Y)


def unit_rows(rows: NDArray[T]) -> NDArray[T]:
    """Rows (n, d) scaled to length 1; a row of zeros stays one.

    Examples
    --------
    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    # The squares are summed without an array of them: this is done for every call that is routed or answered.
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return np.asarray(rows / np.maximum(lengths, 1e-12)[:, None])


def in_parts(
    predict: Callable[[Sequence[str]], NDArray[np.float64]], prompts: Sequence[str], n_models: int, size: int = 1024
) -> NDArray[np.float64]:
    """Predict for some prompts at a time, (n, m): each is compared with all that were learned from.

    Examples
    --------
    >>> in_parts(lambda part: np.full((len(part), 1), float(len(part))), ["a", "b", "c"], 1, size=2).ravel()
    array([2., 2., 1.])
    """
    out = np.empty((len(prompts), n_models))
    for start in range(0, len(prompts), size):
        out[start : start + size] = predict(prompts[start : start + size])
    return out
