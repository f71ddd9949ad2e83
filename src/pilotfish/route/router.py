"""The router as a model: scores prompts per model, decides by value minus price, and asks the model that won."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilotfish.cascade import ask
from pilotfish.errors import ContextLengthError, InputError
from pilotfish.files import read_arrays, write_arrays
from pilotfish.protocols import FloatArray, IntArray, Model
from pilotfish.rules import value_minus_price
from pilotfish.scorers.costs import CostModel
from pilotfish.scorers.kernel import KernelQuality
from pilotfish.scorers.quality import QualityScorer
from pilotfish.scorers.spending import charged, counted, shared
from pilotfish.traffic.table import ReplyTable
from pilotfish.types import Reply, Request

__all__ = ["Candidate", "Router"]

_CHARACTERS_PER_TOKEN = 3.5
_FORMAT_VERSION = 2  # 1 had no name of what reads the prompts


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a router knows about a model besides its quality.

    Parameters
    ----------
    name : str
        The model's name in the table.
    context : int or None
        Longest prompt in tokens; None means no limit.
    tools, images : bool
        Whether it takes tool definitions and images.
    price_in, price_cached : float
        Dollars per million prompt tokens, fresh and from the provider's prompt cache. The model that answered the turn
        before reads the conversation so far at the second price, every other at the first.
    """

    name: str
    context: int | None = None
    tools: bool = True
    images: bool = True
    price_in: float = 0.0
    price_cached: float = 0.0

    def can_answer(self, request: Request) -> bool:
        """Whether the request fits the context and asks for nothing the model does not take."""
        if self.context is not None and count_tokens(request) + (request.max_tokens or 0) > self.context:
            return False
        if not self.tools and (request.extra.get("tools") or request.extra.get("functions")):
            return False
        return self.images or not _has_images(request)


class Router:
    """A model that asks, for each request, the model of best predicted score minus price.

    Parameters
    ----------
    models : mapping of str to Model
        The models by the names the scorer knows.
    scorer : QualityScorer
        Fitted; predicts each model's score on a prompt.
    cost : CostModel
        Fitted; predicts each model's dollars on a prompt.
    price : float
        Score that a dollar must bring.
    candidates : sequence of Candidate
        Limits and prices; a model left out has no limits.

    Notes
    -----
    Tools, images and every other field of a request pass through untouched; a model that cannot take them is ruled out.
    In a conversation, ``metadata["answered_by"]`` names the model that answered the turn before, whose prompt cache is
    warm.

    Examples
    --------
    >>> from pilotfish.scorers.quality import NeighbourQuality
    >>> class Says:
    ...     def __init__(self, text): self.text = text
    ...     def generate(self, requests): return [Reply(self.text) for _ in requests]
    >>> asked = ["add 1 and 2", "add 3 and 4", "who wrote it", "who said it"]
    >>> table = ReplyTable.of(asked, {"small": [0, 0, 1, 1], "large": [1, 1, 1, 1]}, {"small": 0.1, "large": 1.0})
    >>> router = Router.fit({"small": Says("s"), "large": Says("l")}, table, NeighbourQuality(k=1), price=0.5)
    >>> [r.text for r in router.generate([Request.of("add 5 and 6"), Request.of("who is it")])]
    ['l', 's']
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        scorer: QualityScorer,
        cost: CostModel,
        price: float,
        candidates: Sequence[Candidate] = (),
    ) -> None:
        missing = [name for name in scorer.models_ if name not in models]
        if missing:
            raise InputError(
                f"models has no {missing[0]!r}, which the scorer routes to: give {', '.join(scorer.models_)}."
            )
        self.models = dict(models)
        self.scorer = scorer
        self.cost = cost
        self.price = price
        known = {candidate.name: candidate for candidate in candidates}
        self.candidates = tuple(known.get(name, Candidate(name)) for name in scorer.models_)
        self._added: dict[str, _Added] = {}

    @classmethod
    def fit(
        cls,
        models: Mapping[str, Model],
        table: ReplyTable,
        scorer: QualityScorer | None = None,
        *,
        price: float = 0.0,
        candidates: Sequence[Candidate] = (),
    ) -> Router:
        """Fit scorer and costs on a table of recorded replies."""
        fitted = (scorer or KernelQuality()).fit(table.queries, table.scores, table.models, table.groups)
        return cls(models, fitted, CostModel().fit(table.queries, table.costs), price, candidates)

    @property
    def names(self) -> tuple[str, ...]:
        """Models routed to, in the order of the columns of :meth:`predict`."""
        return (*self.scorer.models_, *self._added)

    def predict(self, prompts: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """Predicted scores and dollars of every model, each (n, m)."""
        scores, costs = self.scorer.predict(prompts), self.cost.predict(prompts)
        for added in self._added.values():
            scores = np.column_stack([scores, added.score(scores[:, : len(self.scorer.models_)])])
            costs = np.column_stack([costs, added.cost.predict(prompts)])
        return scores, costs

    def add_model(self, name: str, model: Model, table: ReplyTable, candidate: Candidate | None = None) -> None:
        """Add a model from a few labelled queries, 10 to 50 say, without retraining what is there.

        Its score is a ridge regression on the scores predicted for the other models, shrunk towards its own mean.

        Raises
        ------
        InputError
            When the name is taken, fewer than 5 queries are scored, or the scorer predicts in no unit of scores.
        """
        if getattr(self.scorer, "relative", False):
            raise InputError(
                f"Model {name!r} cannot be added to {type(self.scorer).__name__}, which predicts in no unit of scores: "
                "record the model's replies to the queries of the table, and fit anew."
            )
        if name in self.names:
            raise InputError(f"Model {name!r} is already routed to: give the new model another name.")
        column = table.column(name)
        known = np.flatnonzero(np.isfinite(table.scores[:, column]))
        if known.size < 5:
            raise InputError(f"Model {name!r} has {known.size} scored queries: give at least 5.")
        part = table.subset(known)
        cost = CostModel().fit(part.queries, part.costs[:, [column]])
        self._added[name] = _Added.fit(self.scorer.predict(part.queries), part.scores[:, column], cost)
        self.models[name] = model
        self.candidates = (*self.candidates, candidate or Candidate(name))

    def weigh(self, requests: Sequence[Request]) -> tuple[FloatArray, FloatArray, IntArray]:
        """Predict scores and dollars of every model on each request, each (n, m), and find the winner's column, (n,).

        A model that cannot take a request has score minus infinity. Earlier turns are paid for at each model's price of
        a prompt, at that of a cached one where the model answered the turn before.

        Raises
        ------
        ContextLengthError
            When no model can take a request.
        """
        scores, costs = self.predict([request.prompt for request in requests])
        for i, request in enumerate(requests):
            n_tokens = count_tokens(request)
            n_instructions, n_turns = _count_before(request)
            before = request.metadata.get("answered_by")
            for j, candidate in enumerate(self.candidates):
                # Recorded costs are those of single prompts, their instructions included: earlier turns come on top.
                cost = costs[i, j] + n_turns * candidate.price_in / 1e6
                if not candidate.can_answer(request):
                    scores[i, j] = -np.inf
                elif before == candidate.name:
                    cost -= (n_instructions + n_turns) * (candidate.price_in - candidate.price_cached) / 1e6
                costs[i, j] = max(cost, 0.0)
            if np.isneginf(scores[i]).all():
                raise ContextLengthError(
                    f"No model takes this request of about {n_tokens:.0f} tokens, its tools and images: "
                    "add one that does."
                )
        return scores, costs, value_minus_price(scores, costs, self.price)

    def decide(self, requests: Sequence[Request]) -> list[tuple[str, str]]:
        """Choose a model for each request: its name and the reason.

        Raises
        ------
        ContextLengthError
            When no model can take a request.
        """
        if not requests:
            return []
        scores, costs, chosen = self.weigh(requests)
        return [
            (self.names[j], f"router: {self.names[j]} predicted {scores[i, j]:.3f} for ${costs[i, j]:.3g}")
            for i, j in enumerate(chosen.tolist())
        ]

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: each model is asked once for all the requests it won; where it fails, the next best answers.

        Raises
        ------
        ContextLengthError
            When no model can take a request.
        ModelError
            When every model that can take a request fails.
        """
        if not requests:
            return []
        with counted() as asides:
            scores, costs, chosen = self.weigh(requests)
        spent = shared(asides, len(requests))
        replies: dict[int, Reply] = {}
        tried = [""] * len(requests)
        left = list(range(len(requests)))
        while left:
            for j in np.unique(chosen[left]).tolist():
                at = [i for i in left if chosen[i] == j]
                answered, lost = ask(self.models[self.names[j]], [requests[i] for i in at])
                for k, reply in answered.items():
                    i = at[k]
                    said = f"{tried[i]}router: {self.names[j]} predicted {scores[i, j]:.3f} for ${costs[i, j]:.3g}"
                    own = f"; {reply.reason}" if reply.reason else ""
                    replies[i] = reply.replace(reason=said + own, model=self.names[j], usage=reply.usage + spent[i])
                for k, error in lost.items():
                    i = at[k]
                    tried[i] += f"{self.names[j]} failed ({type(error).__name__}); "
                    scores[i, j] = -np.inf
                    if np.isneginf(scores[i]).all():
                        with charged([*spent, *(reply.usage for reply in replies.values())]):
                            raise error
            left = [i for i in left if i not in replies]
            chosen[left] = value_minus_price(scores[left], costs[left], self.price)
        return [replies[i] for i in range(len(requests))]

    def save(self, path: Path | str) -> None:
        """Write the router to one npz file, whole or not at all, without its models and without pickle.

        Raises
        ------
        InputError
            When the scorer is one that cannot be saved.
        """
        if not isinstance(self.scorer, KernelQuality):
            raise InputError(f"{type(self.scorer).__name__} cannot be saved: route with KernelQuality.")
        arrays = {f"scorer.{k}": v for k, v in self.scorer.to_arrays().items()}
        arrays["cost.lines"] = self.cost.lines_
        for k, (name, added) in enumerate(self._added.items()):
            arrays[f"added.{k}.weights"], arrays[f"added.{k}.lines"] = added.weights, added.cost.lines_
            arrays[f"added.{k}.name"] = np.array(name)
        about = {"version": _FORMAT_VERSION, "price": self.price, "candidates": [asdict(c) for c in self.candidates]}
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        write_arrays(path, arrays, private=True)

    @staticmethod
    def candidates_in(path: Path | str) -> tuple[Candidate, ...]:
        """Read from a saved router which models it routes to, and their limits.

        Raises
        ------
        InputError
            When the file is not a saved router.
        """
        with read_arrays(path, "router") as file:
            return _known(_about(path, file))

    @classmethod
    def load(cls, path: Path | str, models: Mapping[str, Model], scorer: KernelQuality | None = None) -> Router:
        """Read a router; ``models`` bring what answers, and ``scorer`` the embedders, where there were any.

        Raises
        ------
        InputError
            When the file is not a saved router, or of another format, or a model is missing.
        """
        with read_arrays(path, "router") as file:
            arrays = dict(file)
            about = _about(path, arrays)
            parts = {k.removeprefix("scorer."): v for k, v in arrays.items() if k.startswith("scorer.")}
            quality = KernelQuality.from_arrays(parts, scorer.features if scorer else None)
            cost = CostModel()
            cost.lines_ = arrays["cost.lines"]
            candidates, price = _known(about), float(about["price"])
            n_added = sum(name.startswith("added.") and name.endswith(".name") for name in arrays)
            added = {}
            for k in range(n_added):
                own = CostModel()
                own.lines_ = arrays[f"added.{k}.lines"]
                added[str(arrays[f"added.{k}.name"])] = _Added(arrays[f"added.{k}.weights"], own)
        for name in added:
            if name not in models:
                raise InputError(f"models has no {name!r}, which the router routes to: give it.")
        made = cls(models, quality, cost, price)
        made._added, made.candidates = added, candidates
        return made


def _about(path: Path | str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(arrays["about"].tobytes())
    if about["version"] not in (1, _FORMAT_VERSION):
        raise InputError(
            f"The router in {path} has format version {about['version']} and this is version {_FORMAT_VERSION}: "
            "upgrade Pilotfish or fit it anew."
        )
    return about


def _known(about: Mapping[str, Any]) -> tuple[Candidate, ...]:
    return tuple(Candidate(**known) for known in about["candidates"])


@dataclass(frozen=True, slots=True, eq=False)
class _Added:
    """A model added later: a line through the scores predicted for the others."""

    weights: FloatArray
    cost: CostModel

    @classmethod
    def fit(cls, others: FloatArray, scores: FloatArray, cost: CostModel) -> _Added:
        centre, mean = others.mean(axis=0), float(scores.mean())
        x = others - centre
        penalty = max(0.5, 0.02 * scores.size)
        slope = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (scores - mean))
        return cls(np.concatenate([slope, [mean - centre @ slope]]), cost)

    def score(self, others: FloatArray) -> FloatArray:
        return np.asarray(others @ self.weights[:-1] + self.weights[-1])


def count_tokens(request: Request) -> float:
    """About how many tokens the conversation and its tool definitions take, by their characters."""
    texts = [message.text for message in request.messages]
    tools = [str(request.extra[name]) for name in ("tools", "functions") if request.extra.get(name)]
    return sum(map(len, [*texts, *tools])) / _CHARACTERS_PER_TOKEN


def _count_before(request: Request) -> tuple[float, float]:
    """About how many tokens the instructions and the turns before the last question take."""
    last = max((k for k, message in enumerate(request.messages) if message.role == "user"), default=0)
    counts = [0, 0]
    for message in request.messages[:last]:
        counts[message.role not in ("system", "developer")] += len(message.text)
    return counts[0] / _CHARACTERS_PER_TOKEN, counts[1] / _CHARACTERS_PER_TOKEN


def _has_images(request: Request) -> bool:
    return any(
        part.get("type") in ("image_url", "input_image")
        for message in request.messages
        if not isinstance(message.content, str)
        for part in message.content
    )
