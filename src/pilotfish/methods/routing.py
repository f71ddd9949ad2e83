"""Routing: which model should answer, decided from the prompt or by ranking outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from pilotfish.errors import InputError
from pilotfish.methods import method
from pilotfish.protocols import Embedder, FloatArray, Model, PromptKind
from pilotfish.route.compare import Report, compare
from pilotfish.route.compound import OptionGate, RankPolicy, TableGate
from pilotfish.route.policies import GatePolicy, Policy, RoutePolicy
from pilotfish.scorers.agreement import OutputAgreement
from pilotfish.scorers.kernel import KernelQuality
from pilotfish.scorers.preferences import MatrixFactorisation, PairRanker, SimilarityElo
from pilotfish.scorers.prompts import PromptFeatures
from pilotfish.scorers.quality import (
    NeighbourQuality,
    PenalisedQuality,
    QualityScorer,
    RetargetedQuality,
)
from pilotfish.scorers.tags import KeywordTagger, ModelTagger, TagQuality
from pilotfish.scorers.verification import OptionSetSize
from pilotfish.traffic.table import ReplyTable

_COMPARE = "pilotfish route compare --table t.jsonl --budget 2usd/1k --policy "


@method(
    "cp_router",
    paper="Su 2025, arXiv:2505.19970",
    group="routing",
    needs="token probabilities",
    command=_COMPARE + 'cp_router --model small=qwen2.5-coder-0.5b-instruct --option \'options=["A", "B"]\'',
)
def cp_router(models: Sequence[str], weak: Model, options: Sequence[str], delta: float = 0.1) -> GatePolicy:
    """Keep a multiple-choice question on the small model where its conformal set holds one option."""
    return GatePolicy("cp_router", models[0], models[-1], OptionGate(OptionSetSize(weak, options, delta)))


@method(
    "smoothie", paper="Guha 2024, arXiv:2412.04692", group="routing", needs="black box", command=_COMPARE + "smoothie"
)
def smoothie(embedder: Embedder, k: int = 20) -> RoutePolicy:
    """Without labels: trust the model whose outputs lie nearest to the others', near the prompt or overall."""
    return RoutePolicy("smoothie", OutputAgreement(embedder, k))  # type: ignore[arg-type]


@method(
    "tag_router",
    paper="Chen 2025b, arXiv:2506.12473",
    group="routing",
    needs="black box",
    command=_COMPARE + "tag_router",
)
def tag_router(tagger: Model | None = None) -> RoutePolicy:
    """Add up what each model did on prompts with the same semantic tags."""
    return RoutePolicy("tag_router", TagQuality(ModelTagger(tagger) if tagger else None))


@method(
    "llm_blender",
    paper="Jiang 2023a, arXiv:2306.02561",
    group="routing",
    needs="black box",
    command=_COMPARE + "llm_blender",
)
def llm_blender(models: Sequence[str]) -> RankPolicy:
    """Ask all, rank the answers in pairs, return the first; see Blender for the fusing model."""
    return RankPolicy("llm_blender", tuple(models), PairRanker())


def _described(features: PromptKind | PromptFeatures) -> PromptFeatures:
    return PromptFeatures.of(features) if isinstance(features, str) else features


def _kernel(features: PromptKind | PromptFeatures, second_stage: bool = True) -> KernelQuality:
    return KernelQuality(_described(features), second_stage=second_stage)


def _gini_split(weak: FloatArray, strong: FloatArray) -> float:
    gaps = np.unique(strong - weak)
    shares = np.array([np.mean(weak >= strong - t) for t in gaps])
    return float(gaps[np.argmax(shares * (1 - shares))])


@method(
    "hybrid_llm",
    paper="Ding 2024b, arXiv:2404.14618",
    group="routing",
    needs="black box",
    command=_COMPARE + "hybrid_llm",
)
def hybrid_llm(
    models: Sequence[str],
    label: Literal["deterministic", "probabilistic", "transformed"] = "deterministic",
    features: PromptKind | PromptFeatures = "words",
) -> GatePolicy:
    """Predict whether the small model is good enough: as good, likely as good, or within the gap that splits best."""

    def target(weak: FloatArray, strong: FloatArray) -> FloatArray:
        if label == "probabilistic":
            return np.clip(0.5 + (weak - strong) / 2, 0, 1)
        slack = _gini_split(weak, strong) if label == "transformed" else 0.0
        return np.asarray(weak >= strong - slack, dtype=np.float64)

    return GatePolicy("hybrid_llm", models[0], models[-1], TableGate(_kernel(features, False), target))


@method("zooter", paper="Lu 2023a, arXiv:2311.08692", group="routing", needs="black box", command=_COMPARE + "zooter")
def zooter(
    smoothing: float = 0.3, temperature: float = 0.5, features: PromptKind | PromptFeatures = "words"
) -> RoutePolicy:
    """Distil reward scores, smoothed by tags, into a router of queries."""
    if not (0 <= smoothing <= 1 and temperature > 0):
        raise InputError(f"smoothing is {smoothing:g} and temperature {temperature:g}: give 0 to 1, and above 0.")

    def target(prompts: Sequence[str], scores: FloatArray, models: Sequence[str]) -> FloatArray:
        tags = TagQuality(KeywordTagger().fit(prompts)).fit(prompts, scores, models)
        smoothed = (1 - smoothing) * scores + smoothing * tags.predict(prompts)
        weights = np.exp((smoothed - np.nanmax(smoothed, axis=1, keepdims=True)) / temperature)
        return np.asarray(weights / np.nansum(weights, axis=1, keepdims=True))

    return RoutePolicy("zooter", RetargetedQuality(_kernel(features), target))


@method(
    "tryage",
    paper="Narayanan Hari 2023, arXiv:2308.11601",
    group="routing",
    needs="black box",
    command=_COMPARE + "tryage",
)
def tryage(
    penalties: Mapping[str, float] | None = None, features: PromptKind | PromptFeatures = "words"
) -> RoutePolicy:
    """Predict each model's loss on the prompt and add what the user's flags put on size and latency."""
    return RoutePolicy("tryage", PenalisedQuality(_kernel(features, False), penalties or {}))


@method(
    "orchestra_llm",
    paper="Lee 2024a, arXiv:2311.09758",
    group="routing",
    needs="black box",
    command=_COMPARE + "orchestra_llm",
)
def orchestra_llm(k: int = 10, features: PromptKind | PromptFeatures = "words") -> RoutePolicy:
    """Let the nearest solved examples vote on who answers."""
    return RoutePolicy("orchestra_llm", NeighbourQuality(k, _described(features), by_similarity=True))


@method(
    "route_llm", paper="Ong 2024, arXiv:2406.18665", group="routing", needs="black box", command=_COMPARE + "route_llm"
)
def route_llm(
    models: Sequence[str],
    kind: Literal["similarity", "matrix", "classifier", "kernel"] = "matrix",
    features: PromptKind | PromptFeatures = "words",
) -> GatePolicy:
    """Route between two models by preferences: similarity-weighted Elo, matrix factorisation, a classifier."""
    if kind == "classifier":
        gate = TableGate(_kernel(features, False), lambda w, s: np.asarray(w >= s, dtype=np.float64))
        return GatePolicy("route_llm classifier", models[0], models[-1], gate)
    scorers: dict[str, QualityScorer] = {
        "similarity": SimilarityElo(features=_described(features)),
        "matrix": MatrixFactorisation(features=_described(features)),
        "kernel": _kernel(features),
    }
    return GatePolicy(f"route_llm {kind}", models[0], models[-1], TableGate(scorers[kind]))


@method("forc", paper="Sakota 2024, arXiv:2308.06077", group="routing", needs="black box", command=_COMPARE + "forc")
def forc(by_budget: bool = True, features: PromptKind | PromptFeatures = "words") -> RoutePolicy:
    """Regress score and cost of every model on the prompt, then assign by an integer program over the cost."""
    return RoutePolicy("forc", _kernel(features, False), by_budget=by_budget, n_settings=15)


@method(
    "kernel_router",
    paper="ours: stacked kernel regression; arXiv:2308.06077 for value minus price",
    group="routing",
    needs="black box",
    command=_COMPARE + "kernel_router",
)
def kernel_router(features: PromptKind | PromptFeatures = "words") -> RoutePolicy:
    """Predict every model's score from the prompt, then from the predictions, and take the best value at a price."""
    return RoutePolicy("kernel_router", _kernel(features))


@method(
    "routing_benchmark",
    paper="RouterBench (Hu 2024b, arXiv:2403.12031); Shnitzer 2023",
    group="routing",
    needs="black box",
    command="pilotfish route compare --table t.jsonl --budget 2usd/1k --html report.html",
)
def routing_benchmark(table: ReplyTable, policies: Sequence[Policy], budget: float | str) -> Report:
    """Compare policies by convex hulls, AIQ and the gap they recover, beside honest baselines."""
    return compare(table, policies, budget)
