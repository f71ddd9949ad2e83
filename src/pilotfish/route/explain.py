"""Why a policy in service chooses a model for a prompt: what its scorer says, and what its rule makes of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pilotfish.cascade import Cascade, Stage
from pilotfish.errors import InputError, ModelError
from pilotfish.protocols import FloatArray, Model, Rule
from pilotfish.route.compound import Blender
from pilotfish.route.deploy import Gate
from pilotfish.route.router import Router
from pilotfish.rules import Threshold
from pilotfish.scorers.kernel import KernelQuality
from pilotfish.types import Exchange, Reply, Request

__all__ = ["Considered", "Explanation", "explain"]

_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Considered:
    """One model of a policy, as seen from one prompt.

    Parameters
    ----------
    model : str
        Its name.
    score : float
        What the policy's scorer gives it; NaN where it is not scored, or only once it has answered.
    needs : float
        Least score with which it answers; NaN where no threshold decides.
    cost : float
        Dollars it is expected to take; NaN where nothing is known of it.
    value : float
        Score less the price of its cost; NaN where no price decides.
    share : float
        Share of the queries the setting was chosen on that it answered; NaN where that is not known.
    verdict : str
        What follows for it, in words.
    """

    model: str
    score: float = _NAN
    needs: float = _NAN
    cost: float = _NAN
    value: float = _NAN
    share: float = _NAN
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision on one prompt.

    Parameters
    ----------
    rows : tuple of Considered
        Every model, in the order in which it is considered.
    chosen : str
        The model whose answer is returned; empty where that depends on answers that are not known.
    rule : str
        How the policy decides, in words and numbers.
    reason : str
        What it decides here.
    """

    rows: tuple[Considered, ...]
    chosen: str
    rule: str
    reason: str

    def with_known(self, costs: Mapping[str, float], shares: Mapping[str, float]) -> Explanation:
        """Fill in costs that the policy does not predict, and the shares of queries that each model answered."""
        rows = [
            replace(
                row,
                cost=costs.get(row.model, _NAN) if np.isnan(row.cost) else row.cost,
                share=shares.get(row.model, _NAN),
            )
            for row in self.rows
        ]
        return replace(self, rows=tuple(rows))


def explain(served: Model, request: Request) -> Explanation:
    """Explain what a policy in service does with a request.

    Models are asked only where the decision needs their answers. One that cannot answer (:class:`ModelError`) leaves
    the decision open: the explanation then says what it depends on.

    Parameters
    ----------
    served : Model
        What :func:`~pilotfish.route.deploy.serve` makes of a policy.
    request : Request
        What is asked.

    Raises
    ------
    InputError
        When the model is none that chooses among others.
    ModelError
        When a scorer asks a model that cannot answer.
    """
    if isinstance(served, Router):
        return _by_price(served, request)
    if isinstance(served, Gate):
        return _before_generation(served, request)
    if isinstance(served, Cascade):
        return _after_generation(served, request)
    if isinstance(served, Blender):
        return _by_rank(served, request)
    raise InputError(f"{type(served).__name__} chooses among no models: explain a router, a gate or a cascade.")


def _by_price(served: Router, request: Request) -> Explanation:
    scores, costs, winners = served.weigh([request])
    values = scores - served.price * costs
    rows = tuple(
        Considered(name, cost=float(costs[0, j]), verdict="cannot take this request")
        if np.isneginf(scores[0, j])
        else Considered(
            name,
            float(scores[0, j]),
            cost=float(costs[0, j]),
            value=float(values[0, j]),
            verdict="answers" if j == winners[0] else "not asked",
        )
        for j, name in enumerate(served.names)
    )
    best = rows[int(winners[0])]
    # Within a budget a dear model may do better than is predicted, and be chosen for its very cost.
    price = f"{'less' if served.price >= 0 else 'plus'} {abs(served.price):.4g}"
    return Explanation(
        rows,
        best.model,
        f"The model of highest predicted score {price} a dollar answers; ties go to the cheaper.",
        f"{best.model} answers: {best.score:.3f} {price} x ${best.cost:.3g} is {best.value:.3f}."
        + _grouped(served, request),
    )


def _grouped(served: Router, request: Request) -> str:
    groups = served.scorer.likeliest_groups([request.prompt]) if isinstance(served.scorer, KernelQuality) else []
    return "".join(f" It looks like a query of {name!r} ({share:.0%})." for name, share in groups)


def _before_generation(served: Gate, request: Request) -> Explanation:
    weak, strong = served.weak_name, served.strong_name
    score, passed = _judged(served.scores([request]), served.rule)
    chosen = weak if passed else strong
    return Explanation(
        (
            Considered(weak, score, served.rule.at, verdict="answers" if passed else "not asked"),
            Considered(strong, verdict="not asked" if passed else "answers"),
        ),
        chosen,
        f"{weak} answers where the prompt's score ({_named(served.scorer)}) {_demanded(served.rule)}, else {strong}.",
        f"{chosen} answers: the prompt scores {score:.4g}."
        if score == score
        else f"{chosen} answers: the prompt has no score, or is not one that {weak} can take.",
    )


def _after_generation(served: Cascade, request: Request) -> Explanation:
    rows: list[Considered] = []
    before: list[Reply] = []
    chosen = unknown = reason = ""
    for stage in served.stages:
        row = Considered(stage.name, needs=_least(stage.rule))
        if chosen:
            row = replace(row, verdict="not asked")
        elif unknown:
            row = replace(row, verdict=f"asked where {unknown} is passed on")
        elif (asked := _exchange(stage, request, before, len(rows))) is not None:
            before.append(asked.reply)
            score, passed = _judged(stage.scorer.score([asked]), stage.rule)
            row = replace(row, score=score, verdict="answers" if passed else "passed on")
            if passed:
                chosen, reason = stage.name, f"{stage.name} answers: its answer scores {score:.4g}."
        elif row.needs == -np.inf:
            chosen, row = stage.name, replace(row, verdict="answers")
            reason = f"{stage.name} answers: its answer is enough whatever it scores."
        elif row.needs == np.inf:
            row = replace(row, verdict="asked, never enough")
        else:
            unknown, row = stage.name, replace(row, verdict="asked; its answer decides")
            reason = f"It depends on what {unknown} answers, which is not known here."
        rows.append(row)
    last, verdict = served.last_name, "not asked"
    if unknown:
        verdict = f"asked where {unknown} is passed on"
    elif not chosen:
        chosen, verdict, reason = last, "answers", f"{last} answers: no answer before its own is enough."
    rows.append(Considered(last, verdict=verdict))
    stages = ", else of ".join(f"{stage.name} {_kept(stage)}" for stage in served.stages)
    return Explanation(tuple(rows), chosen, f"Returned is the answer of {stages}, else of {last}.", reason)


def _by_rank(served: Blender, request: Request) -> Explanation:
    rule = "All are asked; the answer that the ranker prefers to the others is returned."
    replies = [_reply(model, request) for model in served.models]
    known = [reply.text for reply in replies if reply is not None]
    if len(known) < len(replies):
        rows = tuple(Considered(name, verdict="asked; its answer decides") for name in served.names)
        unknown = [name for name, reply in zip(served.names, replies, strict=True) if reply is None]
        return Explanation(rows, "", rule, f"It depends on what {', '.join(unknown)} answers, which is not known here.")
    rates = served.ranker.win_rates(request.prompt, known)
    best = int(np.argmax(rates))
    rows = tuple(
        Considered(name, float(rates[j]), verdict="answers" if j == best else "asked, ranked lower")
        for j, name in enumerate(served.names)
    )
    return Explanation(rows, rows[best].model, rule, f"{rows[best].model} answers: {rates[best]:.0%} of its pairs won.")


def _reply(model: Model, request: Request) -> Reply | None:
    try:
        [reply] = model.generate([request])
    except ModelError:
        return None
    return reply


def _exchange(stage: Stage, request: Request, before: Sequence[Reply], n_before: int) -> Exchange | None:
    """What the stage's scorer is shown; None where a model it needs has not answered."""
    replies = [_reply(model, request) for model in (stage.model, *stage.beside)]
    given = [reply for reply in replies if reply is not None]
    if len(given) < len(replies) or (stage.compares and len(before) < n_before):
        return None
    return Exchange(request, given[0], samples=[*(before if stage.compares else ()), *given[1:]])


def _judged(scores: FloatArray, rule: Rule) -> tuple[float, bool]:
    score = float(np.asarray(scores, dtype=np.float64)[0])
    return score, not np.isnan(score) and rule.decide(np.array([score])).indices.size > 0


def _least(rule: Rule) -> float:
    return rule.at if isinstance(rule, Threshold) else _NAN


def _kept(stage: Stage) -> str:
    least = _least(stage.rule)
    if np.isinf(least):
        return "whatever it scores" if least < 0 else "never"
    return f"where its score ({_named(stage.scorer)}) {_demanded(stage.rule)}"


def _demanded(rule: Rule) -> str:
    least = _least(rule)
    if np.isinf(least):
        return "is anything" if least < 0 else "is infinite, which it never is"
    return f"is at least {least:.4g}"


def _named(scorer: object) -> str:
    return type(scorer).__name__
