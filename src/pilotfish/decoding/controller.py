"""How much to draft: as much as pays by what drafting, checking and acceptance were measured to be, or nothing."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence

from pilotfish.errors import InputError

__all__ = ["Costs", "FixedLength", "SpeedController"]

_K_MAX = 16
_K_FIRST = 3
_FREE = 0.02
_WAIT = 64
_MEMORY = 0.98
"""What is left of an old count when a new one comes: counts reach back about 50 drafts."""


class Costs:
    """What was measured of one target and its drafters, shared by all replies; any thread may add to it.

    Attributes
    ----------
    passes : dict of int to float
        Seconds of a pass of the target by its number of new tokens.
    drafts : dict of str to float
        Seconds of a drafted token by its source.
    """

    def __init__(self) -> None:
        self.passes: dict[int, float] = {}
        self.drafts: dict[str, float] = {}
        self.accepted: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.n_written = 0
        self._waits: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def may_try(self, source: str) -> bool:
        """Whether a source that does not pay may be tried again; each time it takes twice as long to the next."""
        with self._lock:
            until, wait = self._waits.get(source, (self.n_written + _WAIT, _WAIT))
            due = self.n_written >= until
            self._waits[source] = (self.n_written + 2 * wait, 2 * wait) if due else (until, wait)
            return due

    def add_pass(self, n_tokens: int, seconds: float) -> None:
        """Note how long the target took to read tokens."""
        with self._lock:
            known = self.passes.get(n_tokens)
            # One slow pass is the machine's doing, not the model's.
            seconds = seconds if known is None else min(seconds, 3 * known)
            self.passes[n_tokens] = seconds if known is None else 0.8 * known + 0.2 * seconds

    def add_written(self, n_tokens: int) -> None:
        """Note how many tokens were written."""
        with self._lock:
            self.n_written += n_tokens

    def add_draft(self, source: str, n_tokens: int, seconds: float) -> None:
        """Note how long drafting took."""
        with self._lock:
            each = seconds / max(1, n_tokens)
            known = self.drafts.get(source)
            self.drafts[source] = each if known is None else 0.8 * known + 0.2 * each

    def add_outcome(self, source: str, strength: int, n_drafted: int, n_accepted: int) -> None:
        """Note how many drafted tokens stood."""
        with self._lock:
            for key in ((source, strength), (source, -1)):
                counts = self.accepted[key]
                counts[0] = _MEMORY * counts[0] + n_accepted
                counts[1] = _MEMORY * counts[1] + n_accepted + (n_accepted < n_drafted)
            # What drafts slower than the target writes cannot pay, however right it is.
            if n_accepted == n_drafted and self.drafts.get(source, 0.0) < self.passes.get(1, 0.0):
                self._waits.pop(source, None)

    def pass_seconds(self, n_tokens: int) -> float:
        """Expected seconds of a pass, between the nearest measured lengths."""
        with self._lock:
            known = sorted(self.passes.items())
        if not known:
            return 1.0
        below = [item for item in known if item[0] <= n_tokens]
        above = [item for item in known if item[0] >= n_tokens]
        if below and above:
            (a, ta), (b, tb) = below[-1], above[0]
            return ta if a == b else ta + (tb - ta) * (n_tokens - a) / (b - a)
        if below:  # longer than any yet: a new token adds what it added between the two longest
            (b, tb), (a, ta) = known[-1], known[-2] if len(known) > 1 else (0, known[-1][1] * 7 / 8)
            return tb + max(0.0, (tb - ta) / (b - a)) * (n_tokens - b)
        return above[0][1]

    def share(self, source: str, strength: int) -> float:
        """Share of drafted tokens that stood: of this strength, drawn towards what is known of the source."""
        with self._lock:
            a, n = self.accepted.get((source, -1), (0.0, 0.0))
            of_source = (a + 1.5) / (n + 3)
            if strength < 0:
                return of_source
            a, n = self.accepted.get((source, strength), (0.0, 0.0))
        # Until it is measured a weak draft is worth less than a strong one: half by the source, half by its strength.
        prior = (of_source + min(strength, 12) / 14) / 2
        return (a + 3 * prior) / (n + 3)


class SpeedController:
    """The draft length of one reply.

    The expected rate of a draft of k tokens is (1 + a + ... + a^k) tokens in the seconds of drafting k and of reading
    k + 1; the best k is taken, and none where no k beats a plain pass. A source that does not pay is tried again after
    64, 128, 256, ... tokens, so that trying costs a vanishing share.

    Parameters
    ----------
    costs : Costs
        Measured so far.
    k_max : int
        Longest draft.

    References
    ----------
    Leviathan et al., arXiv:2211.17192, section 3.4, with measured costs in the place of constants.

    Examples
    --------
    >>> costs = Costs()
    >>> costs.add_pass(1, 1.0); costs.add_pass(5, 1.2); costs.add_draft("small", 4, 0.2)
    >>> controller = SpeedController(costs)
    >>> for _ in range(20):
    ...     controller.observe("small", 8, 4, 4)
    >>> controller.length("small") > 8
    True
    >>> costs.add_draft("slow", 4, 20.0)
    >>> controller.length("slow")
    0
    """

    def __init__(self, costs: Costs, k_max: int = _K_MAX) -> None:
        self.costs = costs
        self.k_max = k_max
        self._own: dict[str, list[float]] = {}

    def length(self, source: str, strength: int = -1, depths: Sequence[int] | None = None) -> int:
        """How many tokens of a source to draft, or to check of tokens at these depths, which are there already.

        Of tokens side by side the first counts, as far as is foreseen; what the others add is in the share measured.
        """
        costs = self.costs
        if 1 not in costs.passes:  # first learn what a plain pass takes
            return 0
        each = costs.drafts.get(source)
        plain = costs.pass_seconds(1)
        if depths is None:
            if each is None:
                return _K_FIRST
            if each * self.k_max < _FREE * plain:
                return self.k_max
        else:
            each = 0.0
        share = self._share(source, strength)
        best, best_rate, expected, deepest = 0, 1 / plain, 1.0, 0
        for k, depth in enumerate((range(1, self.k_max + 1) if depths is None else depths)[: self.k_max], start=1):
            if depth > deepest:
                deepest = depth
                expected += share**depth
            rate = expected / (k * each + costs.pass_seconds(k + 1))
            if rate > best_rate:
                best, best_rate = k, rate
        if best or not costs.may_try(source):
            return best
        if each >= plain:  # one token is enough to see whether it has become faster
            return 1
        return min(_K_FIRST, _K_FIRST if depths is None else len(depths))

    def observe(self, source: str, strength: int, n_drafted: int, n_accepted: int) -> None:
        """Note how a draft ended."""
        self.costs.add_outcome(source, strength, n_drafted, n_accepted)
        own = self._own.setdefault(source, [0.0, 0.0])
        own[0] = 0.9 * own[0] + n_accepted
        own[1] = 0.9 * own[1] + n_accepted + (n_accepted < n_drafted)

    def wrote(self, n_tokens: int) -> None:
        """Note how many tokens were written."""
        self.costs.add_written(n_tokens)

    def _share(self, source: str, strength: int) -> float:
        """Share accepted in this reply, drawn towards that of all replies."""
        a, n = self._own.get(source, (0.0, 0.0))
        return (a + 6 * self.costs.share(source, strength)) / (n + 6)


class FixedLength:
    """Always the same draft length.

    Parameters
    ----------
    k : int
        The length.
    """

    def __init__(self, k: int) -> None:
        if k < 0:
            raise InputError(f"k is {k}: give 0 or more.")
        self.k = k

    def length(self, source: str, strength: int = -1, depths: Sequence[int] | None = None) -> int:  # noqa: ARG002
        """How many tokens of a source to draft, or to check of those at these depths."""
        return self.k if depths is None else min(self.k, len(depths))

    def observe(self, source: str, strength: int, n_drafted: int, n_accepted: int) -> None:
        """Note nothing."""

    def wrote(self, n_tokens: int) -> None:
        """Note nothing."""
