"""Certificates of a policy: the cheapest setting whose loss of quality and spend are bounded at a stated risk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pilotfish.bounds import betting_p_value, betting_upper
from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray
from pilotfish.route.policies import Policy
from pilotfish.traffic.table import ReplyTable

__all__ = ["Certificate", "certify", "loss_p_value", "spend_upper"]


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """What may be claimed of a policy at one setting.

    Parameters
    ----------
    setting : object
        The setting; None when none could be certified.
    loss_level : float
        Score points below the strong model that are not exceeded, at risk ``delta``.
    spend_upper : float
        Dollars per query that are not exceeded, at risk ``delta``.
    weak_share : float
        Share of calibration queries the strong model did not answer.
    delta : float
        Risk of each claim.
    n : int
        Calibration queries, or groups where the claim is about new groups.
    """

    setting: Any
    loss_level: float
    spend_upper: float
    weak_share: float
    delta: float
    n: int


def loss_p_value(losses: FloatArray, level: float, span: float, delta: float, seed: int = 0) -> float:
    """P-value of "the mean loss is above ``level``" for losses in [-span, span].

    The losses are shuffled by a fixed seed first, because a bet must not depend on their order.

    Examples
    --------
    >>> loss_p_value(np.tile([0.0, 0.0, 0.0, 1.0, -1.0], 400), 0.1, span=1.0, delta=0.05) < 0.05
    True
    """
    shuffled = np.random.default_rng(seed).permutation(np.clip(losses, -span, span))
    return betting_p_value((shuffled + span) / (2 * span), (level + span) / (2 * span), delta)


def spend_upper(costs: FloatArray, delta: float, most: float, seed: int = 0) -> float:
    """Upper confidence bound of a mean cost.

    Parameters
    ----------
    costs : ndarray (n,)
        Dollars per query.
    delta : float
        Risk that the true mean lies above the bound.
    most : float
        The most that any query may cost, whether or not one of these did: a dear model that is rarely asked may be
        missing from all of them.
    seed : int
        Seed of the order in which costs are looked at.

    Examples
    --------
    >>> float(round(spend_upper(np.full(200, 0.001), 0.05, most=0.01), 4))
    0.0012
    """
    if most <= 0:
        return 0.0
    return most * betting_upper(np.random.default_rng(seed).permutation(np.minimum(costs / most, 1.0)), delta)


def certify(
    policy: Policy,
    table: ReplyTable,
    *,
    strong: str,
    level: float,
    delta: float = 0.05,
    by_group: bool = False,
    settings: Sequence[Any] | None = None,
) -> Certificate:
    """Find the cheapest setting whose mean loss against the strong model is certified to be at most ``level``.

    Settings are tested from dear to cheap, each at risk ``delta``, up to the first that fails, so the search as a whole
    keeps to ``delta`` (learn then test, fixed sequence). The spend of the chosen setting is bounded at ``delta`` too.
    No two scores are taken to be further apart than in this table, and no query to cost more than its dearest does at
    any setting up to the chosen one.

    Parameters
    ----------
    policy : Policy
        Fitted on other queries.
    table : ReplyTable
        Calibration queries, drawn as the traffic will be.
    strong : str
        The model whose quality must be kept.
    level : float
        Largest mean loss, in score units, above 0.
    delta : float
        Risk of each claim.
    by_group : bool
        Bound the loss on *new groups* (new subjects, new customers): each group counts as one observation of its mean
        loss. Needs many groups.
    settings : sequence, optional
        Settings to test, from cheap to dear, fixed before the table's scores are seen, such as those that the policy
        lists on the table it was fitted on. Left out, those that it lists on this table, where it looks at no scores
        for that.

    Raises
    ------
    InputError
        When the level is not positive or exceeds what can be lost, groups are asked for and the table has none, or
        settings are left out for a policy that finds them by their scores.

    References
    ----------
    Angelopoulos et al. 2021 (learn then test, arXiv:2110.01052); Waudby-Smith and Ramdas 2024 (betting bounds).
    """
    if not level > 0:
        raise InputError(f"level is {level:g}: give a loss above 0, in the unit of the scores.")
    table = table.complete()
    best = table.column(strong)
    span = float(np.ptp(table.scores)) or 1.0
    if level >= span:
        raise InputError(f"level is {level:g}, but no two scores are further apart than {span:g}: give a smaller loss.")
    if settings is None and getattr(policy, "settings_by_score", False):
        raise InputError(
            f"{policy.name} finds its settings by their scores, which these queries are to test: give settings found "
            "on other queries, such as settings=policy.settings(fit)."
        )
    tried = policy.settings(table) if settings is None else settings
    chosen: Any = None
    weak_share, spend, most, n = 0.0, float("nan"), 0.0, table.n_queries
    for setting in reversed(tried):
        choice = policy.run(table, setting)
        losses, costs = table.scores[:, best] - choice.qualities(table), choice.costs(table)
        most = max(most, float(costs.max()))
        if by_group:
            losses, costs = _group_means(table, losses), _group_means(table, costs)
            n = losses.size
        if loss_p_value(losses, level, span, delta) > delta:
            break
        chosen = setting
        weak_share = float((choice.answered != best).mean())
        spend = spend_upper(costs, delta, most)
    return Certificate(chosen, level, spend, weak_share, delta, n)


def _group_means(table: ReplyTable, values: FloatArray) -> FloatArray:
    if not table.groups:
        raise InputError("by_group needs groups: give each query of the table a group.")
    names, member = np.unique(np.array(table.groups), return_inverse=True)
    return np.asarray(np.bincount(member, values) / np.bincount(member, minlength=names.size))
