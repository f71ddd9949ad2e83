"""Policies made of others or of several answers: the best of many, a plan learned backwards, ranking of all outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from pilotfish.cascade import ask
from pilotfish.errors import InputError
from pilotfish.protocols import FloatArray, Model
from pilotfish.route.curves import pareto
from pilotfish.route.policies import Choices, Policy, exchanges
from pilotfish.route.seen import Seen
from pilotfish.scorers.answers import answer_form
from pilotfish.scorers.preferences import PairRanker
from pilotfish.scorers.prompts import form_of
from pilotfish.scorers.quality import QualityScorer
from pilotfish.scorers.verification import OptionSetSize
from pilotfish.traffic.table import ReplyTable
from pilotfish.types import Exchange, Reply, Request, Usage

__all__ = ["AnyOf", "Blender", "LearnedPolicy", "OptionGate", "PlannedGain", "RankPolicy", "TableGate"]


@dataclass
class AnyOf:
    """Several policies as one: its settings are theirs, those on the frontier of cost and quality.

    Parameters
    ----------
    name : str
        Shown in reports.
    policies : sequence of Policy
        Orders of a cascade, pairs of services, ...
    """

    settings_by_score: ClassVar[bool] = True

    name: str
    policies: Sequence[Policy]

    def fit(self, table: ReplyTable) -> Self:
        """Fit every policy."""
        for policy in self.policies:
            policy.fit(table)
        return self

    def settings(self, table: ReplyTable) -> list[Any]:
        """Pairs of a policy's number and its setting, from cheap to dear, none of them beaten by another."""
        table = table.complete()
        tried, costs, qualities = [], [], []
        for k, policy in enumerate(self.policies):
            for setting in policy.settings(table):
                choice = policy.run(table, setting)
                tried.append((k, setting))
                costs.append(float(choice.costs(table).mean()))
                qualities.append(float(choice.qualities(table).mean()))
        return [tried[i] for i in pareto(costs, qualities)]

    def run(self, table: ReplyTable, setting: Any) -> Choices:
        """Run the policy the setting belongs to."""
        number, own = setting
        chosen: Choices = self.policies[number].run(table, own)
        return chosen


class TableGate:
    """A scorer of requests for two models, learned from a table: how likely the weak one will do.

    Parameters
    ----------
    scorer : QualityScorer
        Learns one or two columns.
    target : callable, optional
        From the weak and the strong model's scores (n,) to what is learned (n,); left out, both scores are learned and
        the gate's score is their difference.

    References
    ----------
    Ding et al. 2024 (Hybrid LLM, arXiv:2404.14618); Ong et al. 2024 (RouteLLM, arXiv:2406.18665).
    """

    def __init__(
        self, scorer: QualityScorer, target: Callable[[FloatArray, FloatArray], FloatArray] | None = None
    ) -> None:
        self.scorer = scorer
        self.target = target

    def fit_table(self, table: ReplyTable, weak: str, strong: str) -> Self:
        """Learn from the queries both models were scored on."""
        both = table.of_models([weak, strong]).complete()
        if self.target is None:
            self.scorer.fit(both.queries, both.scores, both.models, both.groups)
        else:
            learned = self.target(both.scores[:, 0], both.scores[:, 1])
            self.scorer.fit(both.queries, learned[:, None], [weak], both.groups)
        return self

    def score(self, items: Sequence[Request]) -> FloatArray:
        """Score of each request, (n,), higher for the weak model."""
        predicted = self.scorer.predict([request.prompt for request in items])
        return np.asarray(predicted[:, 0] - predicted[:, 1] if self.target is None else predicted[:, 0])


class OptionGate:
    """A scorer of multiple-choice requests whose conformal set learns the right options from a table's right replies.

    Parameters
    ----------
    scorer : OptionSetSize
        Fitted by ``fit_table``.
    """

    def __init__(self, scorer: OptionSetSize) -> None:
        self.scorer = scorer

    def fit_table(self, table: ReplyTable, weak: str, strong: str) -> Self:  # noqa: ARG002 - any model may be right
        """Learn from the queries that some model answered with an option at full score.

        Raises
        ------
        InputError
            When there are none.
        """
        labels: dict[int, int] = {}
        for i, (scores, replies) in enumerate(zip(table.scores, table.replies, strict=True)):
            for score, reply in zip(scores, replies, strict=True):
                option = self._option(reply or "")
                if score >= 1 and option is not None:
                    labels[i] = option
        if not labels:
            raise InputError(
                f"No reply of score 1 in the table begins with one of {', '.join(self.scorer.options)}: record some."
            )
        self.scorer.fit([Request.of(table.queries[i]) for i in labels], list(labels.values()))
        return self

    def _option(self, reply: str) -> int | None:
        said = reply.strip().casefold()
        found = [k for k, option in enumerate(self.scorer.options) if said.startswith(option.strip().casefold())]
        return found[0] if found else None

    def score(self, items: Sequence[Request]) -> FloatArray:
        """Score of each request, (n,), higher for the weak model."""
        return self.scorer.score(items)


@dataclass
class LearnedPolicy:
    """Stop or go on to the next model: a plan learned backwards from recorded answers, for each price of a dollar.

    The state at a stage is the prompt's form, the answer's form and its agreement with those before. From the last
    stage back, a ridge regression learns what stopping gains over going on and then acting by the plan.

    Parameters
    ----------
    name : str
        Shown in reports.
    order : tuple of str
        Models from first to last.
    n_settings : int
        Prices tried.
    penalty : float
        Of the ridge regressions.

    References
    ----------
    Zhang et al. 2024 (TREACLE, arXiv:2404.13082), by fitted value iteration for its deep Q-network, one prompt a model.
    """

    name: str
    order: tuple[str, ...]
    n_settings: int = 12
    penalty: float = 300.0
    seen: Seen = field(default_factory=Seen, repr=False)

    def fit(self, table: ReplyTable) -> Self:
        """Learn one plan per price."""
        table = table.of_models(self.order).complete()
        rows = self._rows(table)
        self.mean_ = [r.mean(axis=0) for r in rows]
        self.scale_ = [r.std(axis=0) + 1e-9 for r in rows]
        states = [self._state(rows[k], k) for k in range(len(rows))]
        typical = float(np.ptp(table.scores)) / max(float(table.costs.mean(axis=0).max()), 1e-12)
        self.plans_: dict[float, list[FloatArray]] = {}
        for price in (0.0, *(typical * np.geomspace(0.01, 10, self.n_settings - 1))):
            value = table.scores[:, -1] - price * table.costs[:, -1]
            plan: list[FloatArray] = []
            for k in range(len(self.order) - 2, -1, -1):
                gain = table.scores[:, k] - value
                weights = np.linalg.solve(
                    states[k].T @ states[k] + self.penalty * np.eye(states[k].shape[1]),
                    states[k].T @ (gain - gain.mean()),
                )
                plan.insert(0, np.concatenate([weights, [gain.mean()]]))
                stop = states[k] @ weights + gain.mean() >= 0
                value = np.where(stop, table.scores[:, k], value) - price * table.costs[:, k]
            self.plans_[float(price)] = plan
        return self

    def _rows(self, table: ReplyTable) -> list[FloatArray]:
        return [_described(exchanges(table, model, self.order[:k])) for k, model in enumerate(self.order[:-1])]

    def _state(self, rows: FloatArray, k: int) -> FloatArray:
        return np.asarray(np.clip((rows - self.mean_[k]) / self.scale_[k], -5, 5))

    def _gain(self, rows: FloatArray, k: int, plan: Sequence[FloatArray]) -> FloatArray:
        return np.asarray(self._state(rows, k) @ plan[k][:-1] + plan[k][-1])

    def scorer(self, k: int, setting: Any) -> PlannedGain:
        """What stopping at a stage gains by the plan of a price, as a scorer of exchanges: stop from 0 on."""
        plan = self._plan(setting)
        return PlannedGain(lambda rows: self._gain(rows, k, plan))

    def _plan(self, setting: Any) -> list[FloatArray]:
        # A saved price may come from a machine whose arithmetic rounds otherwise.
        nearest = min(self.plans_, key=lambda price: abs(price - setting))
        if not math.isclose(nearest, setting, rel_tol=1e-6):
            raise InputError(f"{self.name} has no plan for the price {setting!r}: give one of its settings.")
        return self.plans_[nearest]

    def settings(self, table: ReplyTable) -> list[Any]:  # noqa: ARG002
        """Prices planned for, from high to none."""
        return sorted(self.plans_, reverse=True)

    def run(self, table: ReplyTable, setting: Any) -> Choices:
        """Act by the plan of a price."""
        plan = self._plan(setting)
        columns = [table.column(model) for model in self.order]
        answered = np.full(table.n_queries, columns[-1])
        tried = np.zeros((table.n_queries, table.n_models), dtype=bool)
        open_ = np.ones(table.n_queries, dtype=bool)
        described: list[FloatArray] = self.seen.of(table, lambda: self._rows(table))
        for k, rows in enumerate(described):
            tried[open_, columns[k]] = True
            gain = self._gain(rows, k, plan)
            stops = open_ & (gain >= 0)
            answered[stops] = columns[k]
            open_ &= ~stops
        tried[open_, columns[-1]] = True
        return Choices(answered, tried, np.zeros(table.n_queries))


class PlannedGain:
    """What stopping gains over going on, predicted from the prompt, the answer and the answers before it.

    Parameters
    ----------
    gain : callable
        From described exchanges (n, d) to gains (n,), in units of score.
    """

    def __init__(self, gain: Callable[[FloatArray], FloatArray]) -> None:
        self.gain = gain

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """Gain of each exchange, (n,); at least 0 means stop."""
        return self.gain(_described(items))


def _described(items: Sequence[Exchange]) -> FloatArray:
    return np.array(
        [
            [*answer_form(e.request.prompt, e.reply.text, [s.text for s in e.samples]), *form_of(e.request.prompt)]
            for e in items
        ]
    )


@dataclass
class RankPolicy:
    """Ask several models and return the answer that a pairwise ranker puts first.

    Parameters
    ----------
    name : str
        Shown in reports.
    models : tuple of str
        All are asked, all are paid.
    ranker : PairRanker
        Fitted by ``fit``.
    """

    name: str
    models: tuple[str, ...]
    ranker: PairRanker

    def _answers(self, table: ReplyTable) -> list[list[str]]:
        return [[e.reply.text for e in row] for row in zip(*(exchanges(table, m) for m in self.models), strict=True)]

    def fit(self, table: ReplyTable) -> Self:
        """Teach the ranker on answers of different score."""
        kept = table.of_models(self.models).complete()
        self.ranker.fit(kept.queries, self._answers(kept), kept.scores)
        return self

    def settings(self, table: ReplyTable) -> list[Any]:  # noqa: ARG002
        """One."""
        return [None]

    def run(self, table: ReplyTable, setting: Any) -> Choices:  # noqa: ARG002
        """Rank all answers of each query."""
        columns = np.array([table.column(m) for m in self.models])
        best = [
            int(self.ranker.win_rates(q, a).argmax()) for q, a in zip(table.queries, self._answers(table), strict=True)
        ]
        tried = np.zeros((table.n_queries, table.n_models), dtype=bool)
        tried[:, columns] = True
        return Choices(columns[best], tried, np.zeros(table.n_queries))


class Blender:
    """A model of several: all answer, a ranker puts the answers in order, and a model fuses the first few.

    A model that fails is left out; where all do, the first one's failure is raised. Calls of tools are no text to rank:
    where a model makes one, the last model's reply is taken, as at the end of a cascade.

    Parameters
    ----------
    models : sequence of Model
        All are asked.
    ranker : PairRanker
        Fitted.
    fuser : Model, optional
        Writes one answer from the first ``top``; left out, the first is returned.
    top : int
        Answers the fuser sees.
    names : sequence of str
        What explanations and reasons call the models; left out, they are numbered.

    References
    ----------
    Jiang et al. 2023 (LLM-Blender, arXiv:2306.02561).
    """

    def __init__(
        self,
        models: Sequence[Model],
        ranker: PairRanker,
        fuser: Model | None = None,
        top: int = 3,
        names: Sequence[str] = (),
    ) -> None:
        if len(models) < 2:
            raise InputError(f"models has {len(models)}: give at least 2 to rank.")
        self.models = tuple(models)
        self.ranker = ranker
        self.fuser = fuser
        self.top = top
        self.names = tuple(names) or tuple(f"model {k + 1}" for k in range(len(models)))

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order; its usage sums everything asked."""
        if not requests:
            return []
        columns = [ask(model, requests) for model in self.models]
        out = []
        for i, request in enumerate(requests):
            given = [(name, got[i]) for name, (got, _) in zip(self.names, columns, strict=True) if i in got]
            if not given:
                raise columns[0][1][i]
            names, replies = zip(*given, strict=True)
            spent = sum((r.usage for r in replies), Usage())
            if any(r.extra.get("tool_calls") for r in replies):
                reason = f"a call of tools is not ranked: the last model ({names[-1]})"
                out.append(replies[-1].replace(usage=spent, reason=reason))
                continue
            rates = self.ranker.win_rates(request.prompt, [r.text for r in replies])
            order = np.argsort(-rates, kind="stable")
            first = replies[int(order[0])]
            reason = f"ranked first of {len(replies)} ({names[order[0]]}, win rate {rates[order[0]]:.2f})"
            if self.fuser is not None:
                shown = "\n\n".join(f"Answer {k + 1}: {replies[int(j)].text}" for k, j in enumerate(order[: self.top]))
                asked = f"{request.prompt}\n\n{shown}\n\nWrite the one best answer, using what is right in these."
                [first] = self.fuser.generate([Request.of(asked, system=request.system or None, temperature=0.0)])
                spent, reason = (
                    spent + first.usage,
                    f"fused from the best {min(self.top, len(replies))} of {len(replies)}",
                )
            out.append(first.replace(usage=spent, reason=reason))
        return out
