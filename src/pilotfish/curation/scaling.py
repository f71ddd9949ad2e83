"""Amounts of each domain that are best at a larger scale, by laws fitted to trainings at smaller ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray

__all__ = ["AmountLaw", "autoscale"]

# What a fit takes for granted where few trainings say little: how far a loss is from its law at the larger scale, as a
# part of it; mean and deviation of the logit of the floor in the lowest loss, of the logarithms of the power and of the
# head start in the smallest even amount, and of the mean logit of the transfer; the deviation of each source from that.
_NOISE = 0.01
_BELIEFS = ((0.0, 1.0), (np.log(0.3), 0.5), (-1.0, 2.0), (-2.0, 2.0))
_SPREAD = 2.0
_POWERS = (0.1, 0.3, 0.8)


@dataclass(frozen=True, slots=True)
class AmountLaw:
    """Loss of one domain by the amounts of all: ``floor + height * (sum(transfer * amounts) + start) ** -power``.

    Parameters
    ----------
    floor, height, power : float
        Of a power law.
    start : float
        The amount that a model without any is ahead.
    transfer : ndarray, (n_domains,)
        What each domain's amount is worth in amounts of this one: 1 for itself, in (0, 1) for others.

    References
    ----------
    Kang 2024 (AutoScale, arXiv:2407.20177), section 3: equivalent data size.

    Examples
    --------
    >>> AmountLaw(1.0, 2.0, 0.5, 0.0, np.array([1.0, 0.5])).loss(np.array([[3.0, 2.0]]))
    array([2.])
    """

    floor: float
    height: float
    power: float
    start: float
    transfer: FloatArray

    def loss(self, amounts: FloatArray) -> FloatArray:
        """Loss at amounts (..., n_domains)."""
        return np.asarray(self.floor + self.height * (amounts @ self.transfer + self.start) ** -self.power)

    @classmethod
    def fit(cls, own: int, amounts: FloatArray, losses: FloatArray) -> AmountLaw:
        """Fit to losses (n,) of domain ``own`` at amounts (n, n_domains); larger scales count more, outliers less."""
        from scipy.optimize import least_squares

        k, totals = amounts.shape[1], amounts.sum(axis=1)
        unit, weights = totals.min() / k, np.sqrt(totals / totals.max()) / _NOISE
        means, deviations = np.array(_BELIEFS).T
        others = np.arange(k) != own

        def law(z: FloatArray) -> AmountLaw:
            transfer = np.where(others, expit(z[3] + z[5:]), 1.0)
            floor, power, start = losses.min() * expit(z[0]), np.exp(z[1]), unit * np.exp(z[2])
            return cls(float(floor), float(np.exp(z[4])), float(power), float(start), transfer)

        def residuals(z: FloatArray) -> FloatArray:
            off = weights * (np.log(law(z).loss(amounts)) - np.log(losses))
            # Roots of a loss that grows like the square near zero and like the distance far from it.
            off = np.sign(off) * np.sqrt(2 * (np.sqrt(1 + off**2) - 1))
            return np.concatenate([off, (z[:4] - means) / deviations, z[5:] / _SPREAD])

        tried = []
        for power in _POWERS:
            z = np.concatenate([means, np.zeros(1 + k)])
            z[1] = np.log(power)
            z[4] = np.log((losses.mean() - law(z).floor) / (law(z).loss(amounts) - law(z).floor).mean())
            tried.append(least_squares(residuals, z, x_scale="jac", max_nfev=2000))
        return law(min(tried, key=lambda fit: float(fit.cost)).x)


def autoscale(
    loss_at: Callable[[FloatArray], FloatArray],
    amounts: Sequence[float],
    target: float,
    n_domains: int,
    factor: float = 3.0,
) -> FloatArray:
    """Weights of domains (n_domains,) that are best at a larger scale, from losses at two small ones.

    At each small scale the amount of one domain is changed at a time. Each domain's loss is fitted as a power law of
    its equivalent data: its own amount, a part of each other's and a head start. The weights have the lowest mean of
    the laws at the larger scale, among those no farther from even than what was tried.

    The paper fits the mean loss at each scale by itself, and continues the best amounts by a power law of the scale.
    That needs fewer losses, but what chance does to one training is squared on the way.

    Parameters
    ----------
    loss_at : callable
        Loss on each domain (n_domains,) of a model trained on the given amount of each.
    amounts : sequence of float
        The two small scales, smaller first, as amounts in all.
    target : float
        The large scale.
    n_domains : int
        Number of domains.
    factor : float
        How far one domain's amount is changed, up and down.

    References
    ----------
    Kang 2024 (AutoScale, arXiv:2407.20177), sections 3 and 4.

    Examples
    --------
    >>> loss = lambda n: np.array([1.0, 4.0]) * n ** -0.5
    >>> w = autoscale(loss, [100, 400], 1600, 2)
    >>> bool(abs(w[1] - 4 ** (2 / 3) / (1 + 4 ** (2 / 3))) < 0.02)
    True
    """
    if len(amounts) != 2 or not 0 < amounts[0] < amounts[1] <= target:
        raise InputError(
            f"AutoScale has scales {list(amounts)}, target {target}: give two that rise, below the target."
        )
    points = np.concatenate([_points(amount, n_domains, factor) for amount in amounts])
    losses = np.array([loss_at(point) for point in points])
    laws = [AmountLaw.fit(i, points, losses[:, i]) for i in range(n_domains)]
    return _best(laws, target, factor)


def _points(amount: float, n_domains: int, factor: float) -> FloatArray:
    """The even amounts, and those with one domain's amount changed, (2 n_domains + 1, n_domains)."""
    rows = np.full((2 * n_domains + 1, n_domains), amount / n_domains)
    each = np.arange(n_domains)
    rows[1 + 2 * each, each] /= factor
    rows[2 + 2 * each, each] *= factor
    return rows


def _best(laws: Sequence[AmountLaw], amount: float, factor: float) -> FloatArray:
    from scipy.optimize import minimize

    k = len(laws)

    def loss(shares: FloatArray) -> float:
        return float(np.mean([law.loss(amount * shares) for law in laws]))

    bounds = [(1 / (k * factor), min(factor / k, 1.0))] * k
    whole = {"type": "eq", "fun": lambda shares: shares.sum() - 1}
    found = minimize(loss, np.full(k, 1 / k), method="SLSQP", bounds=bounds, constraints=whole, options={"ftol": 1e-10})
    return np.asarray(found.x / found.x.sum())
