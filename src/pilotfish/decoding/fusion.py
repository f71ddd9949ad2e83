"""Fusion: one next-token distribution out of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from typing import ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError
from pilotfish.protocols import IntArray, LogProbs

__all__ = [
    "ContextAware",
    "Contrastive",
    "Fusion",
    "Mixture",
    "Product",
    "PromptFusion",
    "ProxyTuning",
    "SourceContrastive",
    "normalised",
]

_LEAST = np.float32(-60.0)
"""The log-probability below which a token counts as impossible: differences of such are noise."""


class Fusion(Protocol):
    """Anything that fuses the distributions of models by their roles; the first role is the one it is measured by."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles it needs."""
        ...

    def fuse(self, log_probs: Mapping[str, LogProbs]) -> LogProbs:
        """The fused natural log-probabilities, (n, n_vocabulary), from those of each role."""
        ...


@runtime_checkable
class PromptFusion(Fusion, Protocol):
    """A fusion that depends on what was asked."""

    def begin(self, prompts: Mapping[str, Sequence[int]]) -> Fusion:
        """The fusion of one reply, given the messages each role reads, in the first role's tokens."""
        ...


def normalised(scores: NDArray[np.floating]) -> LogProbs:
    """Scores (n, n_vocabulary) as log-probabilities: less what their exponentials add up to."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    total = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    result: LogProbs = (shifted - total).astype(np.float32, copy=False)
    return result


def _floored(log_probs: LogProbs) -> LogProbs:
    floored: LogProbs = np.maximum(log_probs, _LEAST)
    return floored


def _among_plausible(scores: LogProbs, log_probs: LogProbs, share: float) -> LogProbs:
    """Scores of the tokens that have at least a share of the likeliest one's probability; minus infinity elsewhere."""
    if share == 0:
        return scores
    least = log_probs.max(axis=1, keepdims=True) + np.log(np.float32(share))
    among: LogProbs = np.where(log_probs >= least, scores, np.float32(-np.inf))
    return among


class Contrastive:
    """Expert less amateur, among what the expert finds plausible.

    The score is (1 + beta) log p_expert - beta log p_amateur where p_expert >= alpha max p_expert, else minus infinity.

    Parameters
    ----------
    alpha : float
        Share of the likeliest token's probability that a token needs, in [0, 1].
    beta : float
        Weight of the contrast; 0 or more.

    Examples
    --------
    >>> even = np.log(np.array([[0.5, 0.5]], dtype=np.float32))
    >>> amateur = np.log(np.array([[0.8, 0.2]], dtype=np.float32))
    >>> np.exp(Contrastive(beta=1.0).fuse({"expert": even, "amateur": amateur})).round(2).tolist()
    [[0.2..., 0.8...]]

    References
    ----------
    Li et al., arXiv:2210.15097, eq. 2 to 4; O'Brien and Lewis, arXiv:2309.09117, section 2.
    """

    roles: ClassVar[tuple[str, ...]] = ("expert", "amateur")

    def __init__(self, alpha: float = 0.1, beta: float = 0.5) -> None:
        self.alpha = _share("alpha", alpha)
        self.beta = _weight("beta", beta)

    def fuse(self, log_probs: Mapping[str, LogProbs]) -> LogProbs:
        """The fused natural log-probabilities, (n, n_vocabulary)."""
        expert = log_probs["expert"]
        if self.beta == 0 and self.alpha == 0:
            return expert
        scores = (1 + self.beta) * expert - self.beta * _floored(log_probs["amateur"])
        return normalised(_among_plausible(scores, expert, self.alpha))


class ContextAware:
    """What the context changes, made stronger.

    The score is (1 + alpha) log p_with - alpha log p_without. Adaptive, the weight is ``alpha`` times the divergence of
    the two (Jensen and Shannon), in [0, 1]. Where it is below ``gate``, context and memory agree and the
    distribution is left alone. With ``plausible`` above 0 the contrast chooses among the tokens that the context makes
    plausible, so that it cannot bring up what the model would hardly say. With ``copied`` it raises only tokens that
    can be copied from the context; any other has a score of log p_with at most.

    Parameters
    ----------
    alpha : float
        Weight of the contrast; 0 or more.
    adaptive : bool
        Scale it by how much the context changes.
    gate : float
        Least divergence, in [0, 1].
    plausible : float
        Share of the likeliest token's probability, given the context, that a token needs where there is a contrast, in
        [0, 1].
    copied : bool
        Raise only tokens that are more often in what is asked with the context than in what is asked without it.
        :meth:`begin` finds them; before it there are none.

    Examples
    --------
    >>> told = np.log(np.array([[0.6, 0.39, 0.01]], dtype=np.float32))
    >>> memory = np.log(np.array([[0.98, 0.0199, 0.0001]], dtype=np.float32))
    >>> fused = ContextAware(1.0, adaptive=False, plausible=0.1).fuse({"with_context": told, "without_context": memory})
    >>> np.exp(fused).astype(float).round(2).tolist()
    [[0.0..., 0.9..., 0.0]]

    References
    ----------
    Context-aware decoding: Shi et al., arXiv:2305.14739, eq. 2; adaptive: Wang et al., arXiv:2409.07394, eq. 4;
    plausible tokens: Li et al., arXiv:2210.15097, eq. 3. Tokens of the context alone are raised, by attention, in Huang
    et al., arXiv:2501.01059.
    """

    roles: ClassVar[tuple[str, ...]] = ("with_context", "without_context")

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        adaptive: bool = True,
        gate: float = 0.0,
        plausible: float = 0.0,
        copied: bool = False,
    ) -> None:
        self.alpha = _weight("alpha", alpha)
        self.adaptive = adaptive
        self.gate = _share("gate", gate)
        self.plausible = _share("plausible", plausible)
        self.copied = copied
        self._brought: IntArray = np.empty(0, dtype=np.int64)

    def begin(self, prompts: Mapping[str, Sequence[int]]) -> Self:
        """The fusion of one reply, which knows the tokens that the context brings.

        Parameters
        ----------
        prompts : mapping of str to sequence of int
            What each role is asked.

        Examples
        --------
        >>> told, memory = np.log(np.array([[[0.4, 0.3, 0.3]], [[0.8, 0.1, 0.1]]], dtype=np.float32))
        >>> fusion = ContextAware(1.0, adaptive=False, copied=True)
        >>> begun = fusion.begin({"with_context": [1, 2], "without_context": [2]})
        >>> np.exp(begun.fuse({"with_context": told, "without_context": memory})).astype(float).round(2).tolist()
        [[0.14, 0.64, 0.21]]
        """
        begun = copy(self)
        brought = Counter(prompts["with_context"]) - Counter(prompts["without_context"])
        begun._brought = np.array(sorted(brought), dtype=np.int64)
        return begun

    def fuse(self, log_probs: Mapping[str, LogProbs]) -> LogProbs:
        """The fused natural log-probabilities, (n, n_vocabulary)."""
        base, without = log_probs["with_context"], log_probs["without_context"]
        if self.alpha == 0:
            return base
        divergence = _divergence(base, without) if self.adaptive or self.gate > 0 else np.ones((base.shape[0], 1))
        weight = self.alpha * (divergence if self.adaptive else np.ones_like(divergence))
        weight = np.where(divergence >= self.gate, weight, 0.0).astype(np.float32)
        scores = (1 + weight) * base - weight * _floored(without)
        if self.copied:
            raised, scores = scores[:, self._brought], np.minimum(scores, base)
            scores[:, self._brought] = raised
        return normalised(np.where(weight > 0, _among_plausible(scores, base, self.plausible), scores))


class SourceContrastive:
    """The probability given the source, less a share of that given a wrong source.

    The score is log max(p_source - weight p_wrong, 0).

    Parameters
    ----------
    weight : float
        Share taken off, in [0, 1].

    References
    ----------
    Sennrich et al., arXiv:2309.07098, eq. 3.

    Examples
    --------
    >>> even, odd = (np.log(np.array([row], dtype=np.float32)) for row in ([0.5, 0.5], [0.8, 0.2]))
    >>> fused = SourceContrastive(0.25).fuse({"source": odd, "wrong_source": even})
    >>> np.exp(fused).astype(float).round(2).tolist()
    [[0.9, 0.1]]
    """

    roles: ClassVar[tuple[str, ...]] = ("source", "wrong_source")

    def __init__(self, weight: float = 0.7) -> None:
        self.weight = _share("weight", weight)

    def fuse(self, log_probs: Mapping[str, LogProbs]) -> LogProbs:
        """The fused natural log-probabilities, (n, n_vocabulary)."""
        source = log_probs["source"]
        if self.weight == 0:
            return source
        left = np.exp(source) - np.float32(self.weight) * np.exp(log_probs["wrong_source"])
        # Where weight < 1 something is always left; at 1 equal distributions leave rounding only.
        left = np.maximum(left, np.exp(source) * np.float32(1e-6))
        with np.errstate(divide="ignore"):
            return normalised(np.log(left))


class ProxyTuning:
    """A large model moved by what tuning did to a small one.

    The score is log p_base + alpha (log p_expert - log p_anti_expert); with an expert and an anti-expert of an
    attribute it is DExperts.

    Parameters
    ----------
    alpha : float
        Weight of the shift.

    References
    ----------
    Liu et al., arXiv:2401.08565, eq. 1; DExperts: Liu et al., arXiv:2105.03023, eq. 1.

    Examples
    --------
    >>> even, odd = (np.log(np.array([row], dtype=np.float32)) for row in ([0.5, 0.5], [0.8, 0.2]))
    >>> fused = ProxyTuning(1.0).fuse({"base": odd, "expert": odd, "anti_expert": even})
    >>> np.exp(fused).astype(float).round(2).tolist()
    [[0.94, 0.06]]
    """

    roles: ClassVar[tuple[str, ...]] = ("base", "expert", "anti_expert")

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = _weight("alpha", alpha)

    def fuse(self, log_probs: Mapping[str, LogProbs]) -> LogProbs:
        """The fused natural log-probabilities, (n, n_vocabulary)."""
        base = log_probs["base"]
        if self.alpha == 0:
            return base
        shift = _floored(log_probs["expert"]) - _floored(log_probs["anti_expert"])
        return normalised(base + self.alpha * shift)


class Product:
    """A base model times an adapter: log p_base + alpha log p_adapter.

    Parameters
    ----------
    alpha : float
        Weight of the adapter.

    References
    ----------
    Inference-time policy adapters: Lu et al., arXiv:2305.15065, eq. 2.

    Examples
    --------
    >>> even, odd = (np.log(np.array([row], dtype=np.float32)) for row in ([0.5, 0.5], [0.8, 0.2]))
    >>> np.exp(Product(1.0).fuse({"base": odd, "adapter": odd})).astype(float).round(2).tolist()
    [[0.94, 0.06]]
    """

    roles: ClassVar[tuple[str, ...]] = ("base", "adapter")

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = _weight("alpha", alpha)

    def fuse(self, log_probs: Mapping[str, LogProbs]) -> LogProbs:
        """The fused natural log-probabilities, (n, n_vocabulary)."""
        if self.alpha == 0:
            return log_probs["base"]
        return normalised(log_probs["base"] + self.alpha * _floored(log_probs["adapter"]))


class Mixture:
    """Two models by fixed weights: of their probabilities, or of their log-probabilities.

    Parameters
    ----------
    weight : float
        Of the other model, in [0, 1].
    linear : bool
        Mix probabilities; else log-probabilities, as CoGenesis mixes a private model with a large one.

    References
    ----------
    CoGenesis: Zhang et al., arXiv:2403.03129, section 3.2.

    Examples
    --------
    >>> even, odd = (np.log(np.array([row], dtype=np.float32)) for row in ([0.5, 0.5], [0.8, 0.2]))
    >>> np.exp(Mixture(0.5, linear=True).fuse({"base": odd, "other": even})).astype(float).round(2).tolist()
    [[0.65, 0.35]]
    """

    roles: ClassVar[tuple[str, ...]] = ("base", "other")

    def __init__(self, weight: float = 0.5, *, linear: bool = False) -> None:
        self.weight = _share("weight", weight)
        self.linear = linear

    def fuse(self, log_probs: Mapping[str, LogProbs]) -> LogProbs:
        """The fused natural log-probabilities, (n, n_vocabulary)."""
        base, other = log_probs["base"], log_probs["other"]
        if self.weight == 0:
            return base
        if self.linear:
            with np.errstate(divide="ignore"):
                return normalised(np.log((1 - self.weight) * np.exp(base) + self.weight * np.exp(other)))
        return normalised((1 - self.weight) * _floored(base) + self.weight * _floored(other))


def _divergence(one: LogProbs, other: LogProbs) -> NDArray[np.floating]:
    """Jensen-Shannon divergence in bits, (n, 1)."""
    p, q = np.exp(one), np.exp(other)
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = np.log((p + q) / 2)
        parts = np.where(p > 0, p * (one - middle), 0) + np.where(q > 0, q * (other - middle), 0)
    bits: NDArray[np.floating] = np.clip(parts.sum(axis=1, keepdims=True) / (2 * np.log(2)), 0.0, 1.0)
    return bits


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise InputError(f"{name} is {value}: give a number from 0 to 1.")
    return value


def _weight(name: str, value: float) -> float:
    if not (value >= 0 and np.isfinite(value)):
        raise InputError(f"{name} is {value}: give a number of 0 or more.")
    return value
