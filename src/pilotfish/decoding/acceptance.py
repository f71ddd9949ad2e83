"""How a token is chosen, and which drafted tokens stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray, Logits, LogProbs

__all__ = ["Acceptance", "Draft", "Greedy", "Lossless", "Sampling", "Typical", "choose_acceptance"]


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
    """

    tokens: Sequence[int] = ()
    probabilities: FloatArray | None = None
    source: str = ""
    strength: int = 0


class Acceptance(Protocol):
    """Decides how many drafted tokens stand, and which token comes after them."""

    def accept(self, logits: Logits, draft: Draft, rng: np.random.Generator) -> tuple[int, int]:
        """Number of accepted tokens and the next one, from the target's logits at each of the draft's n + 1 places."""
        ...


@dataclass(frozen=True, slots=True)
class Greedy:
    """The target's likeliest token, always: a drafted token stands when it is that one.

    Examples
    --------
    >>> from pilotfish.models.sessions import ArrayLogits
    >>> logits = ArrayLogits(np.log(np.array([[0.1, 0.9], [0.8, 0.2]], dtype=np.float32)))
    >>> Greedy().accept(logits, Draft([1]), np.random.default_rng())
    (1, 0)
    """

    def accept(self, logits: Logits, draft: Draft, rng: np.random.Generator) -> tuple[int, int]:  # noqa: ARG002
        """Number of accepted tokens and the next one."""
        best = logits.best().tolist()
        n = 0
        while n < len(draft.tokens) and draft.tokens[n] == best[n]:
            n += 1
        return n, int(best[n])


@dataclass(frozen=True, slots=True)
class Lossless:
    """Speculative sampling: what is written has exactly the target's distribution, whatever was drafted.

    A drafted token x stands with probability min(1, p(x) / q(x)); in the place of the first that falls a token is drawn
    from max(0, p - q). A token that was chosen, not drawn, has q(x) = 1.

    Parameters
    ----------
    sampling : Sampling
        Of the target.

    References
    ----------
    Leviathan et al., arXiv:2211.17192, algorithm 1; Chen et al., arXiv:2302.01318, theorem 1.
    """

    sampling: Sampling = field(default_factory=lambda: Sampling(1.0))

    def accept(self, logits: Logits, draft: Draft, rng: np.random.Generator) -> tuple[int, int]:
        """Number of accepted tokens and the next one."""
        logs = logits.log_probs()
        for i, token in enumerate(draft.tokens):
            p = self.sampling.probabilities(logs[i : i + 1])[0]
            q = None if draft.probabilities is None else draft.probabilities[i]
            if rng.random() * (1.0 if q is None else q[token]) < p[token]:
                continue
            rest = p.copy() if q is None else np.maximum(p - q, 0.0)
            if q is None:
                rest[token] = 0.0
            return i, _draw(rest if rest.sum() > 0 else p, rng)
        return len(draft.tokens), _draw(self.sampling.probabilities(logs[len(draft.tokens) :])[0], rng)


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

    def accept(self, logits: Logits, draft: Draft, rng: np.random.Generator) -> tuple[int, int]:
        """Number of accepted tokens and the next one."""
        p = self.sampling.probabilities(logits.log_probs())
        n = 0
        while n < len(draft.tokens):
            entropy = -float(np.sum(p[n] * np.log(p[n], where=p[n] > 0, out=np.zeros_like(p[n]))))
            if p[n, draft.tokens[n]] <= min(self.epsilon, self.delta * np.exp(-entropy)):
                break
            n += 1
        return n, _draw(p[n], rng)


def choose_acceptance(sampling: Sampling) -> Acceptance:
    """The acceptance that changes nothing: greedy at temperature 0, else lossless sampling."""
    return Greedy() if sampling.temperature == 0 else Lossless(sampling)


def _draw(weights: FloatArray, rng: np.random.Generator) -> int:
    total = np.cumsum(weights)
    return int(min(np.searchsorted(total, rng.random() * total[-1], side="right"), np.flatnonzero(weights)[-1]))
