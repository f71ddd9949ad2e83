"""From a policy on recorded replies to a model that serves it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pilotfish.cascade import Cascade, Stage, ask, score_each
from pilotfish.errors import ContextLengthError, InputError
from pilotfish.protocols import FloatArray, Model, Scorer
from pilotfish.route.compound import AnyOf, Blender, LearnedPolicy, RankPolicy
from pilotfish.route.heads import HeadPolicy
from pilotfish.route.policies import AlwaysPolicy, CascadePolicy, GatePolicy, Policy, RoutePolicy
from pilotfish.route.router import Candidate, Router, count_tokens
from pilotfish.route.seen import Seen
from pilotfish.rules import Threshold
from pilotfish.scorers.answers import StatedConfidence
from pilotfish.scorers.spending import charged, counted, shared
from pilotfish.scorers.verbalised import AskedConfidence, VerbalisedConfidence
from pilotfish.traffic.table import ReplyTable, refuse_no_choice, refuse_shared_queries
from pilotfish.types import Exchange, Reply, Request

__all__ = ["Gate", "deploy", "in_service", "refuse_addition", "serve", "setting_within"]


class Gate:
    """A model of two: the weak one answers requests that score high enough, the strong one the rest.

    Where the weak model fails, the strong one answers. What the scorer's own calls took is part of a reply's usage.

    Parameters
    ----------
    weak, strong : Model
        The two models.
    scorer : Scorer of Request
        Higher means the weak model will do; where it fails or gives NaN, the strong one answers.
    rule : Threshold
        Least score for the weak model.
    weak_name, strong_name : str
        What reasons call the two.
    limits : Candidate, optional
        The weak model's: what they rule out goes to the strong one unscored.
    """

    def __init__(
        self,
        weak: Model,
        strong: Model,
        scorer: Scorer[Request],
        rule: Threshold,
        weak_name: str = "weak model",
        strong_name: str = "strong model",
        limits: Candidate | None = None,
    ) -> None:
        self.weak = weak
        self.strong = strong
        self.scorer = scorer
        self.rule = rule
        self.weak_name = weak_name
        self.strong_name = strong_name
        self.limits = limits

    def scores(self, requests: Sequence[Request]) -> FloatArray:
        """Score of each request, (n,); NaN where the weak model cannot take it or the scorer fails."""
        able = [i for i, request in enumerate(requests) if self.limits is None or self.limits.can_answer(request)]
        scores = np.full(len(requests), np.nan)
        scores[able] = score_each(self.scorer, [requests[i] for i in able])
        return scores

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order."""
        if not requests:
            return []
        with counted() as asides:
            scores = self.scores(requests)
        spent = shared(asides, len(requests))
        unscored = np.isnan(scores)
        passed = self.rule.decide(np.where(unscored, -np.inf, scores)).indices
        to_weak = passed[~unscored[passed]].tolist()
        answered, failed = ask(self.weak, [requests[i] for i in to_weak])
        replies = {to_weak[k]: _with(reply, scores[to_weak[k]], self.weak_name) for k, reply in answered.items()}
        errors = {to_weak[k]: f"{self.weak_name} failed ({type(error).__name__}), " for k, error in failed.items()}
        left = [i for i in range(len(requests)) if i not in replies]
        if left:
            with charged([*spent, *(reply.usage for reply in replies.values())]):
                strong = self.strong.generate([requests[i] for i in left])
            for i, reply in zip(left, strong, strict=True):
                replies[i] = _with(reply, scores[i], f"{errors.get(i, '')}{self.strong_name}")
        return [replies[i].replace(usage=replies[i].usage + spent[i]) for i in range(len(requests))]


def _with(reply: Reply, score: float, said: str) -> Reply:
    own = f"; {reply.reason}" if reply.reason else ""
    return reply.replace(reason=f"gate: scored {score:.4g}, {said}{own}")


class Limited:
    """A model that is not asked what its limits rule out: it fails on that, so that a policy turns to another.

    Parameters
    ----------
    model : Model
        Asked for everything else.
    candidate : Candidate
        Its limits.
    """

    def __init__(self, model: Model, candidate: Candidate) -> None:
        self.model = model
        self.candidate = candidate

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order.

        Raises
        ------
        ContextLengthError
            When a request does not fit the context or asks for tools or images that the model does not take.
        """
        for request in requests:
            if not self.candidate.can_answer(request):
                raise ContextLengthError(
                    f"Model {self.candidate.name!r} does not take this request of about {count_tokens(request):.0f} "
                    "tokens, its tools and images: ask a model that does."
                )
        return self.model.generate(requests)


def setting_within(policy: Policy, table: ReplyTable, budget: float) -> Any:
    """Find the setting of highest quality on a table among those whose mean cost keeps to the budget.

    Raises
    ------
    InputError
        When none does.
    """
    table = table.complete()
    best: tuple[float, float] | None = None
    chosen: Any = None
    cheapest = np.inf
    for setting in policy.settings(table):
        choice = policy.run(table, setting)
        cost, quality = float(choice.costs(table).mean()), float(choice.qualities(table).mean())
        cheapest = min(cheapest, cost)
        if cost <= budget + 1e-12 and (best is None or (quality, -cost) > best):
            best, chosen = (quality, -cost), setting
    if best is None:
        raise InputError(
            f"budget is {budget:g} but {policy.name} costs at least {cheapest:g} per query: raise the budget."
        )
    return chosen


def serve(policy: Policy, setting: Any, models: Mapping[str, Model], candidates: Sequence[Candidate] = ()) -> Model:
    """Make the model that serves a fitted policy at one setting.

    A model is not asked what its candidate's limits rule out; the policy then turns to another.

    Raises
    ------
    InputError
        When a model is missing, or the policy only makes sense on recorded replies.
    """
    if isinstance(policy, AnyOf):
        number, own = setting
        return serve(policy.policies[number], own, models, candidates)
    needed = _asked_by(policy)
    for name in needed:
        if name not in models:
            raise InputError(f"models has no {name!r}, which {policy.name} asks: give {', '.join(needed)}.")
    if isinstance(policy, RoutePolicy):
        if policy.by_budget:
            raise InputError(f"{policy.name} assigns whole tables within a budget: serve the same scorer by a price.")
        return Router(models, policy.scorer, policy.cost_, float(setting), candidates)
    limits = {candidate.name: candidate for candidate in candidates}
    models = {name: Limited(model, limits[name]) if name in limits else model for name, model in models.items()}
    if isinstance(policy, CascadePolicy | LearnedPolicy):
        return _cascade(policy, setting, models)
    if isinstance(policy, GatePolicy):
        pair = models[policy.weak], models[policy.strong]
        names = policy.weak, policy.strong
        return Gate(*pair, policy.scorer, Threshold(float(setting)), *names, limits.get(policy.weak))
    if isinstance(policy, HeadPolicy):
        head = Limited(policy.head, Candidate(policy.name, tools=False, images=False))
        stage = Stage(head, StatedConfidence(), Threshold(float(setting)), policy.name)
        return Cascade([stage], models[policy.large], policy.large)
    if isinstance(policy, RankPolicy):
        return Blender([models[name] for name in policy.models], policy.ranker, names=policy.models)
    if isinstance(policy, AlwaysPolicy):
        return models[policy.model]
    raise InputError(f"{policy.name} cannot be served: it is a baseline on recorded replies.")


def _asked_by(policy: Policy) -> Sequence[str]:
    if isinstance(policy, CascadePolicy):
        return (*policy.order, *policy.samples_of)
    if isinstance(policy, LearnedPolicy):
        return policy.order
    if isinstance(policy, GatePolicy):
        return (policy.weak, policy.strong)
    if isinstance(policy, HeadPolicy):
        return (policy.large,)
    if isinstance(policy, RankPolicy):
        return policy.models
    return (policy.model,) if isinstance(policy, AlwaysPolicy) else ()


def _cascade(policy: CascadePolicy | LearnedPolicy, setting: Any, models: Mapping[str, Model]) -> Cascade:
    last = policy.order[-1]
    if isinstance(policy, LearnedPolicy):
        stages = [
            Stage(models[name], policy.scorer(k, setting), Threshold(0.0), name, compares=True)
            for k, name in enumerate(policy.order[:-1])
        ]
    else:
        beside = tuple(models[name] for name in policy.samples_of)
        stages = [
            Stage(_asked_for(scorer, models[name]), scorer, Threshold(at), name, beside=beside)
            if at > -np.inf
            else Stage(models[name], Unread(), Threshold(at), name)
            for name, scorer, at in zip(policy.order, policy.scorers, setting, strict=False)
            if at < np.inf
        ]
    return Cascade(stages, models[last], last)


class Unread:
    """The scorer of a stage that accepts whatever is answered: nothing is asked to find a score."""

    def score(self, items: Sequence[Exchange]) -> FloatArray:
        """0 for each, (n,)."""
        return np.zeros(len(items))


def _asked_for(scorer: Scorer[Exchange], model: Model) -> Model:
    return AskedConfidence(model) if isinstance(scorer, VerbalisedConfidence) else model


def in_service(policy: Policy) -> Policy:
    """The form of a policy that can decide one query at a time, as far as it is fitted."""
    if not (isinstance(policy, RoutePolicy) and policy.by_budget):
        return policy
    served = copy.copy(policy)
    served.by_budget, served.n_settings, served.seen = False, 40, Seen()
    return served


def refuse_addition(policy: Policy) -> None:
    """Refuse to add a model to a policy that a few labels of it cannot teach.

    Raises
    ------
    InputError
        When the policy does not predict each model's score from the prompt.
    """
    if isinstance(policy, RoutePolicy):
        if not getattr(policy.scorer, "relative", False):
            return
        why = "predicts which model is better, not how well each scores"
    elif isinstance(policy, GatePolicy | HeadPolicy):
        why = "chooses between two models"
    elif isinstance(policy, RankPolicy):
        why = "ranks the answers of all its models"
    else:
        why = "sets its thresholds on what all its models answered"
    raise InputError(
        f"{policy.name} {why}, so that a model cannot be added from a few labels: record the model's replies to the "
        "queries of the table, and fit anew."
    )


def deploy(
    policy: Policy,
    models: Mapping[str, Model],
    table: ReplyTable,
    calibrate: ReplyTable,
    budget: float,
    candidates: Sequence[Candidate] = (),
) -> Model:
    """Fit a policy, choose its setting for a budget on other queries, and make the model that serves it.

    A policy that assigns whole tables by an integer program is served by the program's dual: a price per dollar, since
    live queries come one at a time.
    """
    refuse_shared_queries(fit=table, calibrate=calibrate)
    if not isinstance(policy, HeadPolicy):
        refuse_no_choice(table, budget)
    policy = in_service(policy).fit(table)
    return serve(policy, setting_within(policy, calibrate, budget), models, candidates)
