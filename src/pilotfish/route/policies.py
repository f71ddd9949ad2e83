"""Policies on recorded replies: which models would be asked for each query, which answer is returned, what it costs.

A policy is fitted on one table, lists its settings on another, and runs on a third; see :func:`compare`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray, IntArray, Scorer
from pilotfish.route.seen import Learned, Seen
from pilotfish.route.thresholds import Stages, frontier
from pilotfish.rules import assign_within_budget, value_minus_price
from pilotfish.scorers.costs import CostModel
from pilotfish.scorers.quality import QualityScorer
from pilotfish.traffic.table import ReplyTable
from pilotfish.types import Exchange, Reply, Request, Usage

__all__ = [
    "AlwaysPolicy",
    "CascadePolicy",
    "Choices",
    "OraclePolicy",
    "Policy",
    "RandomPolicy",
    "RoutePolicy",
    "exchanges",
]


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """What a policy did with each query of a table.

    Parameters
    ----------
    answered : ndarray of int, (n,)
        Column of the model whose answer is returned; -1 for an answer of the policy's own.
    tried : ndarray of bool, (n, m)
        Which models were asked.
    extra_cost : ndarray of float, (n,)
        Dollars besides the models' own: verifiers, samples, judges.
    own : tuple of str, (n,) or empty
        Answers of the policy's own.
    """

    answered: IntArray
    tried: NDArray[np.bool_]
    extra_cost: FloatArray
    own: tuple[str, ...] = ()

    def qualities(self, table: ReplyTable) -> FloatArray:
        """Score of each returned answer, (n,)."""
        found = np.array(table.scores[np.arange(table.n_queries), self.answered])
        for i in np.flatnonzero(self.answered < 0):
            found[i] = table.score_of(int(i), self.own[i])
        return found

    def costs(self, table: ReplyTable) -> FloatArray:
        """Dollars spent on each query, everything tried included, (n,)."""
        return np.asarray(np.where(self.tried, table.costs, 0.0).sum(axis=1) + self.extra_cost)

    @classmethod
    def direct(cls, answered: IntArray, n_models: int) -> Choices:
        """Ask only the model that answers."""
        tried = np.zeros((answered.size, n_models), dtype=bool)
        tried[np.arange(answered.size), answered] = True
        return cls(answered, tried, np.zeros(answered.size))


class Policy(Protocol):
    """Anything that can be compared on reply tables.

    One that finds its settings by the scores of the table it lists them on says so by ``settings_by_score = True``.
    """

    name: str

    def fit(self, table: ReplyTable) -> Self:
        """Learn from labelled replies."""
        ...

    def settings(self, table: ReplyTable) -> list[Any]:
        """Settings worth trying, from cheap to dear, found on a table that was not learned from."""
        ...

    def run(self, table: ReplyTable, setting: Any) -> Choices:
        """Decide every query of a table; its scores are not looked at."""
        ...


@dataclass
class AlwaysPolicy:
    """Always the same model."""

    model: str
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or f"always {self.model}"

    def fit(self, table: ReplyTable) -> Self:
        """Check that the table has the model."""
        table.column(self.model)
        return self

    def settings(self, table: ReplyTable) -> list[Any]:  # noqa: ARG002
        """One."""
        return [self.model]

    def run(self, table: ReplyTable, setting: Any) -> Choices:
        """Ask the model."""
        return Choices.direct(np.full(table.n_queries, table.column(setting)), table.n_models)


@dataclass
class RandomPolicy:
    """A random share of queries to the best single model, the rest to the cheapest: what any policy must beat."""

    seed: int = 0
    name: str = "random"

    def fit(self, table: ReplyTable) -> Self:
        """Find the two models."""
        self.cheap_ = table.models[int(np.nanmean(table.costs, axis=0).argmin())]
        self.best_ = table.models[int(np.nanmean(table.scores, axis=0).argmax())]
        return self

    def settings(self, table: ReplyTable) -> list[Any]:  # noqa: ARG002
        """Shares of strong calls."""
        return [k / 20 for k in range(21)]

    def run(self, table: ReplyTable, setting: Any) -> Choices:
        """Toss a seeded coin per query."""
        strong = np.random.default_rng(self.seed).random(table.n_queries) < setting
        answered = np.where(strong, table.column(self.best_), table.column(self.cheap_))
        return Choices.direct(answered, table.n_models)


@dataclass
class OraclePolicy:
    """Knows every score: the best that could be reached. Not a policy one can run."""

    name: str = "oracle"

    def fit(self, table: ReplyTable) -> Self:  # noqa: ARG002
        """Nothing to learn."""
        return self

    def settings(self, table: ReplyTable) -> list[Any]:
        """Prices of a dollar in units of score."""
        dear = float(np.nanmax(table.costs)) or 1.0
        return [*(1 / dear * np.geomspace(10, 1e-4, 25)), 0.0]

    def run(self, table: ReplyTable, setting: Any) -> Choices:
        """Take the best score minus price; ties go to the cheaper model."""
        return Choices.direct(
            value_minus_price(np.nan_to_num(table.scores, nan=-1e9), table.costs, setting), table.n_models
        )


@dataclass
class RoutePolicy:
    """Predict each model's score and cost from the prompt and take the best value, at a price or within a budget.

    Parameters
    ----------
    name : str
        Shown in reports.
    scorer : QualityScorer
        Predicts scores; fitted by ``fit``.
    n_settings : int
        Points of the curve.
    by_budget : bool
        Settings are budgets, each solved as an integer program over the whole table, instead of prices.
    """

    name: str
    scorer: QualityScorer
    n_settings: int = 40
    by_budget: bool = False
    seen: Seen = field(default_factory=Seen, repr=False)

    def fit(self, table: ReplyTable) -> Self:
        """Learn the scorer and each model's cost per character of prompt."""
        self.seen = Seen()
        self.models_ = table.models
        outputs = getattr(self.scorer, "fit_outputs", None)
        if outputs is not None:
            kept = table.subset([i for i, row in enumerate(table.replies) if None not in row])
            if not kept.queries:
                raise InputError("No query has a recorded reply of every model, which are compared here: record them.")
            outputs(kept.queries, kept.replies, kept.models)
        else:
            self.scorer.fit(table.queries, table.scores, table.models, table.groups)
        self.cost_ = CostModel().fit(table.queries, table.costs)
        return self

    def predicted(self, queries: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """Predicted scores and costs, both (n, m)."""
        return self.scorer.predict(queries), self.cost_.predict(queries)

    def _of(self, table: ReplyTable) -> tuple[FloatArray, FloatArray]:
        found: tuple[FloatArray, FloatArray] = self.seen.of(table, lambda: self.predicted(table.queries))
        return found

    def settings(self, table: ReplyTable) -> list[Any]:
        """Prices at which some query of the table changes its model, thinned to ``n_settings``, from high to none."""
        scores, costs = self._of(table)
        if self.by_budget:
            least, most = float(costs.min(axis=1).mean()), float(costs.max(axis=1).mean())
            return [float(b) for b in np.linspace(least, most, self.n_settings)]
        return prices(scores, costs, self.n_settings)

    def run(self, table: ReplyTable, setting: Any) -> Choices:
        """Take the best predicted score minus price, or the best sum of scores within the budget."""
        scores, costs = self._of(table)
        if self.by_budget:
            budget = max(float(setting), float(costs.min(axis=1).mean()))
            chosen = assign_within_budget(scores, costs, budget)
        else:
            chosen = value_minus_price(scores, costs, setting)
        columns = np.array([table.column(model) for model in self.models_])
        return Choices.direct(columns[chosen], table.n_models)


def prices(scores: FloatArray, costs: FloatArray, n: int) -> list[float]:
    """Prices (score per dollar) between which choices change: ratios of gained score to added cost, by quantile.

    A negative price buys the dear model where it is expected to be worse, so the curve reaches its end.
    """
    cheap = costs.argmin(axis=1)
    rows = np.arange(scores.shape[0])
    gained = scores - scores[rows, cheap][:, None]
    added = costs - costs[rows, cheap][:, None]
    ratios = (gained / np.where(added > 0, added, np.nan)).ravel()
    ratios = ratios[np.isfinite(ratios)]
    if ratios.size == 0:
        return [0.0]
    at = np.quantile(ratios, np.linspace(1, 0, max(n - 2, 1)))
    return [float(p) for p in np.unique(np.concatenate([[ratios.max() + 1], at, [0.0], [ratios.min() - 1]]))[::-1]]


def exchanges(table: ReplyTable, model: str, samples_of: Sequence[str] = ()) -> list[Exchange]:
    """Make exchanges of one model's recorded replies, those of other models as samples.

    Raises
    ------
    InputError
        When the table has no recorded reply of the model for some query.
    """
    j, others = table.column(model), [table.column(name) for name in samples_of]
    if not table.replies:
        raise InputError("The table has no recorded replies: a cascade scores answers, so record them.")
    out = []
    for i, (query, row) in enumerate(zip(table.queries, table.replies, strict=True)):
        if (text := row[j]) is None:
            raise InputError(f"Query {i} has no recorded reply of {model!r}: a cascade needs the answers it scores.")
        usage = Usage(cost=float(np.nan_to_num(table.costs[i, j])), latency=float(np.nan_to_num(table.latencies[i, j])))
        samples = tuple(Reply(str(row[k]), table.models[k]) for k in others if row[k] is not None)
        out.append(Exchange(Request.of(query), Reply(text, model, usage), samples=samples))
    return out


class FittedScorer(Scorer[Exchange], Protocol):
    """A scorer of answers that learns from right and wrong ones."""

    def fit(self, exchanges: Sequence[Exchange], targets: FloatArray) -> Self:
        """Learn from answers and what each was worth."""
        ...


@dataclass
class CascadePolicy:
    """Ask the models in order; keep an answer whose score passes the stage's threshold.

    Parameters
    ----------
    name : str
        Shown in reports.
    order : tuple of str
        Models from first to last.
    scorers : tuple of Scorer of Exchange, one per model but the last
        Those with ``fit`` learn from each answer's worth: its score, or what stopping gains over going on (``gain``);
        those with ``fit_costs`` also from what the last model's answers cost.
    gain : bool
        Learn the expected gain of stopping instead of the answer's score.
    samples_of : tuple of str
        Further columns whose replies the scorers see as samples; their cost is counted where the stage is reached.
    n_settings : int
        Most points of the curve.
    learned : Learned, optional
        Shared by cascades of other orders that have the same scorer for the same model: it is fitted once for all.

    Notes
    -----
    A call that a scorer makes itself (a verification, a sample) is taken to cost what a call of the stage's model does.
    """

    name: str
    order: tuple[str, ...]
    scorers: tuple[Scorer[Exchange], ...]
    gain: bool = False
    samples_of: tuple[str, ...] = ()
    n_settings: int = 40
    learned: Learned = field(default_factory=Learned, repr=False)

    def __post_init__(self) -> None:
        if len(self.order) < 2 or len(self.scorers) != len(self.order) - 1:
            raise InputError(
                f"The cascade has {len(self.order)} models and {len(self.scorers)} scorers: "
                "give one scorer per model but the last."
            )

    @property
    def settings_by_score(self) -> bool:
        """Whether ``settings`` keeps those of best score: more than one threshold leaves too many to list."""
        return len(self.order) > 2

    def fit(self, table: ReplyTable) -> Self:
        """Teach the scorers that learn."""
        known_by = self.learned.fitted_on(table)
        for k, scorer in enumerate(self.scorers):
            if not hasattr(scorer, "fit") or self.order[k] in known_by:
                continue
            known_by.add(self.order[k])
            own = table.scores[:, table.column(self.order[k])]
            later = table.scores[:, [table.column(m) for m in self.order[k + 1 :]]]
            target = own - later[:, -1] if self.gain else own
            known = np.flatnonzero(np.isfinite(target))
            asked = exchanges(table.subset(known), self.order[k], self.samples_of)
            scorer.fit(asked, target[known])
            if hasattr(scorer, "fit_costs"):
                scorer.fit_costs(asked, table.costs[known, table.column(self.order[-1])])
        return self

    def stage_scores(self, table: ReplyTable) -> FloatArray:
        """Scores of each stage's answer, (n, number of stages)."""
        known = self.learned.scores(table)
        for k, model in enumerate(self.order[:-1]):
            if model not in known:
                known[model] = self._scored(k, table)
        return np.stack([known[model] for model in self.order[:-1]], axis=1)

    def _scored(self, k: int, table: ReplyTable) -> FloatArray:
        scores = np.asarray(self.scorers[k].score(exchanges(table, self.order[k], self.samples_of)))
        if scores.size and np.isnan(scores).all():
            raise InputError(
                f"{self.name} scores no recorded reply of {self.order[k]!r} by {type(self.scorers[k]).__name__}: "
                "record replies that hold what it reads, or choose another policy."
            )
        return scores

    def settings(self, table: ReplyTable) -> list[Any]:
        """Thresholds on the frontier of cost and quality, from cheap to dear.

        Two models: quantiles of the score. More: a search over quantiles of all stages, see
        :func:`~pilotfish.route.thresholds.frontier`.
        """
        scores = self.stage_scores(table)
        n_stages = scores.shape[1]
        per_stage = self.n_settings if n_stages == 1 else max(5, round(600 ** (1 / n_stages)))
        grids = [_quantiles(column, per_stage) for column in scores.T]
        if n_stages == 1:
            return [(at,) for at in (-np.inf, *grids[0], np.inf)]
        columns = [table.column(model) for model in self.order]
        costs = np.nan_to_num(table.costs[:, columns])
        beside = np.nan_to_num(table.costs[:, [table.column(model) for model in self.samples_of]]).sum(axis=1)
        aside = np.array([own_cost(self.scorers[k], table, model) for k, model in enumerate(self.order[:-1])])
        read = costs[:, :-1] + beside[:, None] + aside
        stages = Stages(scores, table.scores[:, columns], read, costs[:, :-1], costs[:, -1])
        return list(frontier(stages, grids, self.n_settings))

    def run(self, table: ReplyTable, setting: Any) -> Choices:
        """Walk down the stages."""
        return self._walk(table, self.stage_scores(table), setting)

    def _walk(self, table: ReplyTable, scores: FloatArray, setting: Sequence[float]) -> Choices:
        n = table.n_queries
        answered = np.full(n, table.column(self.order[-1]))
        tried = np.zeros((n, table.n_models), dtype=bool)
        extra = np.zeros(n)
        open_ = np.ones(n, dtype=bool)
        for k, threshold in enumerate(setting):
            if threshold == np.inf:  # an answer that is never kept is not asked for
                continue
            column = table.column(self.order[k])
            tried[open_, column] = True
            if threshold > -np.inf:
                for sample in self.samples_of:
                    tried[open_, table.column(sample)] = True
                extra[open_] += own_cost(self.scorers[k], table, self.order[k])
            stops = open_ & ((scores[:, k] >= threshold) | (threshold == -np.inf))
            answered[stops] = column
            open_ &= ~stops
        tried[open_, table.column(self.order[-1])] = True
        return Choices(answered, tried, extra)


@dataclass
class GatePolicy:
    """Two models and one number per prompt: high enough, and the weak model answers.

    Parameters
    ----------
    name : str
        Shown in reports.
    weak, strong : str
        The two models.
    scorer : Scorer of Request
        Higher means the weak model will do; one with ``fit_table`` learns from the fitting table.
    """

    name: str
    weak: str
    strong: str
    scorer: Scorer[Request]
    n_settings: int = 40
    seen: Seen = field(default_factory=Seen, repr=False)

    def fit(self, table: ReplyTable) -> Self:
        """Teach the scorer, where it learns."""
        self.seen = Seen()
        table.column(self.weak), table.column(self.strong)
        learn = getattr(self.scorer, "fit_table", None)
        if learn is not None:
            learn(table, self.weak, self.strong)
        return self

    def scores(self, table: ReplyTable) -> FloatArray:
        """Score of each query, (n,)."""
        requests = [Request.of(query) for query in table.queries]
        found: FloatArray = self.seen.of(table, lambda: self.scorer.score(requests))
        return found

    def settings(self, table: ReplyTable) -> list[Any]:
        """Thresholds at quantiles of the score, from all weak to all strong."""
        return [float("-inf"), *_quantiles(self.scores(table), self.n_settings), float("inf")]

    def run(self, table: ReplyTable, setting: Any) -> Choices:
        """Send each query to the weak or the strong model."""
        weak = self.scores(table) >= setting
        answered = np.where(weak, table.column(self.weak), table.column(self.strong))
        return replace(
            Choices.direct(answered, table.n_models),
            extra_cost=np.full(table.n_queries, own_cost(self.scorer, table, self.weak)),
        )


def own_cost(scorer: object, table: ReplyTable, model: str) -> float:
    """Dollars for each item of the calls that a scorer makes itself, at what a model's calls cost on a table."""
    inner = getattr(scorer, "scorer", None)
    if inner is not None:
        return own_cost(inner, table, model)
    n_calls: int = getattr(scorer, "n_calls", 0)
    return n_calls * float(np.nanmean(table.costs[:, table.column(model)])) if n_calls else 0.0


def _quantiles(scores: FloatArray, n: int) -> list[float]:
    """Different scores that cut the items into equal parts; what has no score (NaN) is never above a threshold."""
    found: list[float] = np.unique(np.quantile(scores[~np.isnan(scores)], np.linspace(0, 1, n))).tolist()
    return found
