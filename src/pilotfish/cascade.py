"""Cascades: ask a small model first, score its answer, and go on to the next model only where the score is too low."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pilotfish.errors import InputError, ModelError
from pilotfish.protocols import FloatArray, Model, Rule, Scorer
from pilotfish.scorers.spending import charged, counted, shared
from pilotfish.types import Exchange, Reply, Request, Usage

__all__ = ["Cascade", "Stage", "ask", "score_each"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One model of a cascade, with the test its answers must pass.

    Parameters
    ----------
    model : Model
        Asked for an answer.
    scorer : Scorer of Exchange
        Gives each answer a number, higher is better.
    rule : Rule
        Chooses the answers that are returned; usually a :class:`~pilotfish.rules.Threshold`.
    name : str
        What the reason of a reply calls the stage; empty means the name the model gives itself.
    compares : bool
        Show the scorer the answers of the stages before, as the exchange's samples.
    beside : tuple of Model
        Asked as well wherever the stage is reached; the scorer sees their answers as samples, none is returned.
    """

    model: Model
    scorer: Scorer[Exchange]
    rule: Rule
    name: str = ""
    compares: bool = False
    beside: tuple[Model, ...] = ()


class Cascade:
    """A model made of stages and a last model that answers what no stage could.

    Each stage answers what is still open. Its rule returns the answers whose score is high enough; the rest goes on.
    The usage of a reply is the sum of everything that was tried for it, the calls that scorers make themselves included
    (in equal parts for what is scored together), and its ``reason`` says which stage answered and why. A stage passes a
    request on where its model fails, its scorer fails or gives no number (NaN), an answer to compare with is lacking,
    or the answer calls tools, which no scorer can read; a failure of the last model is raised.

    Parameters
    ----------
    stages : sequence of Stage
        From the cheapest to the dearest; empty means the last model answers everything.
    last : Model
        Answers what is left, unscored.
    last_name : str
        What the reason of a reply calls the last model; empty means the name the model gives itself.

    Examples
    --------
    >>> from pilotfish.rules import Threshold
    >>> class Echo:
    ...     def __init__(self, name): self.name = name
    ...     def generate(self, requests): return [Reply(r.prompt, self.name, Usage(1, 1, 1.0)) for r in requests]
    >>> class Shortness:
    ...     def score(self, items): return np.array([1.0 / len(e.reply.text) for e in items])
    >>> cascade = Cascade([Stage(Echo("small"), Shortness(), Threshold(0.2))], last=Echo("large"))
    >>> [(r.model, r.usage.cost) for r in cascade.generate([Request.of("hi"), Request.of("a long question")])]
    [('small', 1.0), ('large', 2.0)]
    """

    def __init__(self, stages: Sequence[Stage], last: Model, last_name: str = "") -> None:
        self.stages = tuple(stages)
        self.last = last
        self.last_name = last_name

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order.

        Raises
        ------
        InputError
            When a scorer returns another number of scores than it was given answers.
        ModelError
            When the last model fails.
        """
        replies: list[Reply | None] = [None] * len(requests)
        spent = [Usage()] * len(requests)
        tried: list[list[str]] = [[] for _ in requests]
        before: list[tuple[Reply, ...]] = [()] * len(requests)
        open_ = list(range(len(requests)))
        for number, stage in enumerate(self.stages, 1):
            if not open_:
                break
            answered, failed = ask(stage.model, [requests[i] for i in open_])
            for k, error in failed.items():
                tried[open_[k]].append(f"stage {number}{_called(stage.name)} failed ({type(error).__name__})")
            asked = [(open_[k], reply) for k, reply in answered.items()]
            samples = {i: list(before[i]) if stage.compares else [] for i, _ in asked}
            for model in stage.beside:
                others, _ = ask(model, [requests[i] for i, _ in asked])
                for k, reply in others.items():
                    i = asked[k][0]
                    samples[i].append(reply)
                    spent[i] = spent[i] + reply.usage
            # A scorer learned to compare so many answers: one that is missing leaves it nothing to say.
            n_compared = (number - 1 if stage.compares else 0) + len(stage.beside)
            whole = [
                k
                for k, (i, reply) in enumerate(asked)
                if len(samples[i]) == n_compared and not reply.extra.get("tool_calls")
            ]
            shown = [Exchange(requests[i], reply, samples=samples[i]) for i, reply in (asked[k] for k in whole)]
            scores = np.full(len(asked), np.nan)
            with counted() as asides:
                scores[whole] = score_each(stage.scorer, shown)
            for k, aside in zip(whole, shared(asides, len(whole)), strict=True):
                spent[asked[k][0]] += aside
            accepted = set(stage.rule.decide(np.where(np.isnan(scores), -np.inf, scores)).indices.tolist())
            for k, (i, reply) in enumerate(asked):
                name = stage.name or reply.model
                verdict = f"stage {number}{_called(name)} scored {scores[k]:.4g}"
                spent[i] = spent[i] + reply.usage
                before[i] = (*before[i], reply)
                if k in accepted and not np.isnan(scores[k]):
                    replies[i] = _final(reply, spent[i], [*tried[i], f"{verdict}: accepted"])
                else:
                    tried[i].append(f"{verdict}: passed on")
            open_ = [i for i in open_ if replies[i] is None]
        if open_:
            with charged(spent):
                last = self.last.generate([requests[i] for i in open_])
            for i, reply in zip(open_, last, strict=True):
                name = self.last_name or reply.model
                replies[i] = _final(reply, spent[i] + reply.usage, [*tried[i], f"last model{_called(name)} answered"])
        return [reply for reply in replies if reply is not None]


def ask(model: Model, requests: Sequence[Request]) -> tuple[dict[int, Reply], dict[int, ModelError]]:
    """Ask for a batch; when it fails, ask one by one, so that only the requests that fail are left unanswered.

    Returns
    -------
    tuple of dict
        Replies and errors, each by the request's place in the batch.
    """
    if not requests:
        return {}, {}
    try:
        return dict(enumerate(model.generate(requests))), {}
    except ModelError as error:
        if len(requests) == 1:
            return {}, {0: error}
    answered: dict[int, Reply] = {}
    failed: dict[int, ModelError] = {}
    for k, request in enumerate(requests):
        try:
            answered[k] = model.generate([request])[0]
        except ModelError as error:
            failed[k] = error
    return answered, failed


def score_each(scorer: Scorer[T], items: Sequence[T]) -> FloatArray:
    """Score a batch, (n,); where a model that the scorer asks fails, one by one, so that only what fails has no score.

    Raises
    ------
    InputError
        When the scorer returns another number of scores than it was given items.
    """
    if not items:
        return np.empty(0)
    try:
        scores = np.asarray(scorer.score(items), dtype=np.float64)
    except ModelError:
        if len(items) == 1:
            return np.array([np.nan])
        return np.concatenate([score_each(scorer, [item]) for item in items])
    if scores.shape != (len(items),):
        raise InputError(
            f"{type(scorer).__name__} gave scores of shape {scores.shape} for {len(items)} answers: "
            "give one number per answer."
        )
    return scores


def _final(reply: Reply, usage: Usage, reasons: list[str]) -> Reply:
    own = [reply.reason] if reply.reason else []
    return reply.replace(usage=usage, reason="; ".join([*reasons, *own]))


def _called(name: str) -> str:
    return f" ({name})" if name else ""
