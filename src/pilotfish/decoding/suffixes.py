"""A suffix index: where a run of tokens was seen before, and what followed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pilotfish.errors import InputError

__all__ = ["SuffixIndex"]

_N_VOTES = 64


class SuffixIndex:
    """All runs of tokens of some texts, sorted; built by prefix doubling up to a bounded length.

    Parameters
    ----------
    texts : sequence of sequence of int
        Tokenized texts.
    n_max : int
        Longest run that is told apart, rounded up to a power of two.

    Examples
    --------
    >>> SuffixIndex([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 5]]).find([9, 2, 3], 2)
    (2, [5])
    """

    def __init__(self, texts: Sequence[Sequence[int]], n_max: int = 8) -> None:
        if n_max < 1:
            raise InputError(f"n_max is {n_max}: give at least 1.")
        self.n_max = n_max
        # Each text ends with -1, which no run goes past.
        self._tokens = np.array([token for text in texts for token in (*text, -1)], dtype=np.int64)
        rank = np.unique(self._tokens, return_inverse=True)[1] if self._tokens.size else self._tokens
        order, length = np.argsort(rank, kind="stable"), 1
        while length < n_max and order.size:
            later = np.zeros_like(rank)
            later[:-length] = rank[length:] + 1
            both = rank * (rank.max() + 2) + later
            order = np.argsort(both, kind="stable")
            rank = np.unique(both, return_inverse=True)[1]
            length *= 2
        self._order = order

    def find(self, prefix: Sequence[int], k: int) -> tuple[int, list[int]]:
        """Length of the longest run that ends the prefix and was seen, and up to ``k`` tokens that followed it most."""
        best: tuple[int, int, int] = (0, 0, 0)
        for n in range(1, min(self.n_max, len(prefix)) + 1):
            low, high = self._range(prefix[-n:])
            if low == high:
                break
            best = (n, low, high)
        n, low, high = best
        if n == 0:
            return 0, []
        step = max(1, (high - low) // _N_VOTES)
        after = self._order[low:high:step] + n
        following = self._tokens[after]
        seen, counts = np.unique(following[following >= 0], return_counts=True)
        if not seen.size:
            return 0, []
        start = int(after[np.flatnonzero(following == seen[counts.argmax()])[0]])
        run = self._tokens[start : start + k].tolist()
        return n, run[: run.index(-1)] if -1 in run else run

    def _range(self, run: Sequence[int]) -> tuple[int, int]:
        low, high = 0, self._order.size
        for depth, token in enumerate(run):
            # Within the range all runs agree on what comes before, so that this token is sorted.
            low, high = (self._bisect(low, high, depth, token + side) for side in (0, 1))
            if low >= high:
                return 0, 0
        return low, high

    def _bisect(self, low: int, high: int, depth: int, token: int) -> int:
        size = self._tokens.size
        while low < high:
            middle = (low + high) // 2
            at = int(self._order[middle]) + depth
            if (int(self._tokens[at]) if at < size else -1) < token:
                low = middle + 1
            else:
                high = middle
        return low
