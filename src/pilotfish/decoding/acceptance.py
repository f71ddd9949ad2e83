"""How a token is chosen, and which drafted tokens stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray, Logits, LogProbs

__all__ = [
    "Acceptance",
    "Draft",
    "Greedy",
    "Lossless",
    "Repeatable",
    "Sampling",
    "Typical",
    "choose_acceptance",
    "seeded",
]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How probabilities are sharpened before a token is drawn.

    Parameters
    ----------
    temperature : float
        At 0 the likeliest token is taken.
    top_p : float
        Only the likeliest tokens whose probabilities add up to it, in (0, 1].

    Examples
    --------
    >>> Sampling(1.0, 0.5).probabilities(np.log(np.array([[0.2, 0.7, 0.1]], dtype=np.float32))).tolist()
    [[0.0, 1.0, 0.0]]
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and np.isfinite(self.temperature)):
            raise InputError(f"temperature is {self.temperature}: give 0 or more.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}: give a share above 0 and at most 1.")

    def probabilities(self, log_probs: LogProbs) -> FloatArray:
        """The probabilities that tokens are drawn with, (n, n_vocabulary)."""
        n = log_probs.shape[0]
        if self.temperature == 0:
            chosen = np.zeros(log_probs.shape)
            chosen[np.arange(n), log_probs.argmax(axis=1)] = 1.0
            return chosen
        scaled = log_probs.astype(np.float64) / self.temperature
        weights: FloatArray = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        if self.top_p < 1:
            order = np.argsort(-weights, axis=1, kind="stable")
            before = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
            outside = np.zeros_like(before, dtype=bool)
            outside[:, 1:] = before[:, :-1] >= self.top_p
            np.put_along_axis(
                weights, order, np.where(outside, 0.0, np.take_along_axis(weights, order, axis=1)), axis=1
            )
            weights /= weights.sum(axis=1, keepdims=True)
        return weights


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may come next.

    Parameters
    ----------
    tokens : sequence of int
        In order; empty when nothing is proposed.
    probabilities : ndarray of float, (n, n_vocabulary), or None
        What each token was drawn from; None when it was not drawn but chosen.
    source : str
        What proposed it.
    strength : int
        How sure the source is, 0 to 15, in steps of its own: the controller learns what each is worth.
    parents : sequence of int, optional
        For a tree: the place of the token that each token follows, before its own, or -1 where it follows the text.
        Without it every token follows the one before.

    Examples
    --------
    >>> Draft([7, 8, 9], parents=[-1, 0, -1]).after(-1)
    [0, 2]
    """

    tokens: Sequence[int] = ()
    probabilities: FloatArray | None = None
    source: str = ""
    strength: int = 0
    parents: Sequence[int] | None = None

    def after(self, place: int) -> list[int]:
        """The places of the tokens that may follow the token at a place, or the text (-1)."""
        if self.parents is None:
            return [place + 1] if place + 1 < len(self.tokens) else []
        return [i for i, parent in enumerate(self.parents) if parent == place]

    def depths(self) -> list[int]:
        """How many tokens after the text each token comes, from 1."""
        if self.parents is None:
            return list(range(1, len(self.tokens) + 1))
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths

    def chain(self) -> Draft:
        """The first branch alone."""
        if self.parents is None:
            return self
        places: list[int] = []
        while after := self.after(places[-1] if places else -1):
            places.append(after[0])
        drawn = self.probabilities[places] if self.probabilities is not None else None
        return Draft([self.tokens[i] for i in places], drawn, self.source, self.strength)


class Acceptance(Protocol):
    """Decides which drafted tokens stand, and which token comes after them."""

    def accept(self, logits: Logits, draft: Draft, rng: np.random.Generator) -> tuple[list[int], int]:
        """Places of the accepted tokens and the next token, from the target's logits after the text and each token."""
        ...


@dataclass(frozen=True, slots=True)
class Greedy:
    """The target's likeliest token, always: a drafted token stands when it is that one.

    Examples
    --------
    >>> from pilotfish.models.sessions import ArrayLogits
    >>> logits = ArrayLogits(np.log(np.array([[0.1, 0.9], [0.8, 0.2]], dtype=np.float32)))
    >>> Greedy().accept(logits, Draft([1]), np.random.default_rng())
    ([0], 0)
    """

    def accept(self, logits: Logits, draft: Draft, rng: np.random.Generator) -> tuple[list[int], int]:  # noqa: ARG002
        """Places of the accepted tokens and the next token."""
        best = logits.best().tolist()
        return _followed(draft, lambda row: int(best[row]))


@dataclass(frozen=True, slots=True)
class Lossless:
    """Speculative sampling: what is written has exactly the target's distribution, whatever was drafted.

    A drafted token x stands with probability min(1, p(x) / q(x)). Where it falls p becomes max(0, p - q), normalised:
    the next branch of a tree is held against that, and after the last one the token is drawn from it. A token that was
    chosen, not drawn, has q(x) = 1.

    Parameters
    ----------
    sampling : Sampling
        Of the target.

    References
    ----------
    Leviathan et al., arXiv:2211.17192, algorithm 1; Chen et al., arXiv:2302.01318, theorem 1; trees: Miao et al.,
    arXiv:2305.09781, algorithm 2.
    """

    sampling: Sampling = field(default_factory=lambda: Sampling(1.0))

    def accept(self, logits: Logits, draft: Draft, rng: np.random.Generator) -> tuple[list[int], int]:
        """Places of the accepted tokens and the next token."""
        logs = logits.log_probs()
        path: list[int] = []
        while True:
            place = path[-1] if path else -1
            p = self.sampling.probabilities(logs[place + 1 : place + 2])[0]
            for i in draft.after(place):
                token = draft.tokens[i]
                q = None if draft.probabilities is None else draft.probabilities[i]
                if rng.random() * (1.0 if q is None else q[token]) < p[token]:
                    path.append(i)
                    break
                rest = p.copy() if q is None else np.maximum(p - q, 0.0)
                if q is None:
                    rest[token] = 0.0
                p = rest / rest.sum() if rest.sum() > 0 else p
            else:
                return path, _draw(p, rng)


@dataclass(frozen=True, slots=True)
class Repeatable:
    """Sampling whose text a seed repeats, whatever was drafted: a drafted token stands where it is the one drawn.

    One random number goes into each written token, so that how much is drafted, which depends on how fast the machine
    happens to be, leaves the text alone. Of a draft that was chosen as many tokens stand as with :class:`Lossless`; of
    one that was drawn with the same numbers (:meth:`Context.draws`), somewhat fewer.

    Parameters
    ----------
    sampling : Sampling
        Of the target.
    """

    sampling: Sampling = field(default_factory=lambda: Sampling(1.0))

    def accept(self, logits: Logits, draft: Draft, rng: np.random.Generator) -> tuple[list[int], int]:
        """Places of the accepted tokens and the next token."""
        logs = logits.log_probs()
        return _followed(draft, lambda row: _draw(self.sampling.probabilities(logs[row : row + 1])[0], rng))


@dataclass(frozen=True, slots=True)
class Typical:
    """Accept drafted tokens that are typical of the target: faster than lossless, and not its distribution.

    A token stands when p(x) > min(epsilon, delta * exp(-H(p))), where H is the target's entropy.

    Parameters
    ----------
    sampling : Sampling
        Of the target.
    epsilon, delta : float
        Thresholds of the probability; above 0.

    References
    ----------
    Medusa, Cai et al., arXiv:2401.10774, section 2.3.1.
    """

    sampling: Sampling = field(default_factory=lambda: Sampling(1.0))
    epsilon: float = 0.3
    delta: float = 0.09

    def accept(self, logits: Logits, draft: Draft, rng: np.random.Generator) -> tuple[list[int], int]:
        """Places of the accepted tokens and the next token."""
        p = self.sampling.probabilities(logits.log_probs())
        path: list[int] = []
        while True:
            place = path[-1] if path else -1
            row = p[place + 1]
            entropy = -float(np.sum(row * np.log(row, where=row > 0, out=np.zeros_like(row))))
            least = min(self.epsilon, self.delta * np.exp(-entropy))
            stands = next((i for i in draft.after(place) if row[draft.tokens[i]] > least), None)
            if stands is None:
                return path, _draw(row, rng)
            path.append(stands)


def _followed(draft: Draft, choose: Callable[[int], int]) -> tuple[list[int], int]:
    """Places along a draft while it holds what the target chooses in each row of its logits, and its last choice."""
    path: list[int] = []
    while True:
        place = path[-1] if path else -1
        token = choose(place + 1)
        stands = next((i for i in draft.after(place) if draft.tokens[i] == token), None)
        if stands is None:
            return path, token
        path.append(stands)


def choose_acceptance(sampling: Sampling, *, repeatable: bool = False) -> Acceptance:
    """The acceptance that changes nothing: greedy at temperature 0, else lossless sampling, repeatable where asked."""
    if sampling.temperature == 0:
        return Greedy()
    return Repeatable(sampling) if repeatable else Lossless(sampling)


def seeded(seed: int | None) -> np.random.Generator:
    """What draws the tokens of a reply; the OpenAI interface takes negative seeds too."""
    return np.random.default_rng(None if seed is None else seed % 2**64)


def _draw(weights: FloatArray, rng: np.random.Generator) -> int:
    total = np.cumsum(weights)
    return int(min(np.searchsorted(total, rng.random() * total[-1], side="right"), np.flatnonzero(weights)[-1]))
