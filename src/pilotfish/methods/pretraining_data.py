"""Pre-training data: steps that filter, choose and weigh a corpus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np

from pilotfish.curation import mixing, scaling
from pilotfish.curation.classifiers import EducationalQuality, NgramClassifier, ParetoSample
from pilotfish.curation.dedup import ExactDedup, MinHashDedup
from pilotfish.curation.importance import GumbelTopK, ImportanceWeight
from pilotfish.curation.language import Language
from pilotfish.curation.perplexity import ErrorLength, LogProbModel, Perplexity, thirds
from pilotfish.curation.privacy import Privacy, PrivacyTagger, Span
from pilotfish.curation.semantic import SemanticDedup, prototypicality
from pilotfish.curation.steps import Filter, Rules
from pilotfish.methods import method
from pilotfish.protocols import Embedder, FloatArray, IntArray, Model, WhiteBoxModel
from pilotfish.rules import Between, Threshold, TopK

_CURATE = "pilotfish curate corpus/ -r web.toml -o clean/"
_SELECT = "pilotfish select raw/ --like target.jsonl -n 1000 -o chosen/ --method "
_MIX = "pilotfish mix domains/ -o weights.json --method "
_GROUP = "pretraining_data"


@method(
    "heuristic_rules",
    paper="Raffel 2020 (C4); Rae 2021 (Gopher); Penedo 2023, 2024 (RefinedWeb, FineWeb)",
    group=_GROUP,
    needs="black box",
    command=_CURATE,
)
def heuristic_rules() -> Rules:
    """Drop documents by their words, lines and repetitions: the rules of Gopher, C4 and FineWeb in one pass."""
    return Rules.gopher() + Rules.c4() + Rules.fineweb()


@method("exact_dedup", paper="Raffel 2020, arXiv:1910.10683", group=_GROUP, needs="black box", command=_CURATE)
def exact_dedup() -> ExactDedup:
    """Drop a document whose text has been seen."""
    return ExactDedup()


@method(
    "minhash_dedup",
    paper="Broder 1997; Penedo 2023, arXiv:2306.01116",
    group=_GROUP,
    needs="black box",
    command=_CURATE,
)
def minhash_dedup(n_bands: int = 14, n_rows: int = 8, least: float = 0.5) -> MinHashDedup:
    """Drop near-duplicates: word n-grams, MinHash, bands, connected components."""
    return MinHashDedup(n_bands, n_rows, least=least)


@method("semantic_dedup", paper="Abbas 2023, arXiv:2303.09540", group=_GROUP, needs="black box", command=_CURATE)
def semantic_dedup(least: float = 0.95, embedder: Embedder | None = None) -> SemanticDedup:
    """Drop documents whose embeddings nearly agree."""
    return SemanticDedup(least, embedder)


@method("d4", paper="Tirumala 2023, arXiv:2308.12284", group=_GROUP, needs="black box", command=_SELECT + "d4")
def d4(vectors: FloatArray, k: int, n_clusters: int = 100, seed: int = 0) -> IntArray:
    """Choose the k documents, of deduplicated ones, that are farthest from the centres of their clusters."""
    return TopK(k).decide(-prototypicality([vectors], n_clusters, seed)).indices


@method(
    "quality_classifier",
    paper="Brown 2020, arXiv:2005.14165; Du 2022 (GLaM); Chowdhery 2023 (PaLM)",
    group=_GROUP,
    needs="training",
    command=_CURATE,
)
def quality_classifier(curated: Sequence[str], raw: Sequence[str], alpha: float = 9.0) -> Filter:
    """Keep documents like a curated corpus, by a linear classifier and a Pareto-sampled threshold."""
    return Filter("quality", NgramClassifier().fit(curated, raw), ParetoSample(alpha))


@method("toxicity_filter", paper="Arnett 2024; Kamphuis 2024", group=_GROUP, needs="training", command=_CURATE)
def toxicity_filter(toxic: Sequence[str], clean: Sequence[str], most: float) -> Filter:
    """Drop documents that a small classifier gives more than a stated probability of being toxic."""
    return Filter("toxicity", NgramClassifier().fit(toxic, clean), Between(high=most))


@method(
    "privacy_filter", paper="Subramani 2023, arXiv:2302.13510; Yu 2023", group=_GROUP, needs="training", command=_CURATE
)
def privacy_filter(texts: Sequence[str] = (), spans: Sequence[Sequence[Span]] = ()) -> Privacy:
    """Mask personal data by patterns with check digits and, given labelled spans, a small tagger."""
    return Privacy(PrivacyTagger().fit(texts, spans) if texts else None)


@method(
    "educational_quality",
    paper="Penedo 2024 (FineWeb-Edu), arXiv:2406.17557",
    group=_GROUP,
    needs="black box",
    command=_CURATE,
)
def educational_quality(
    sample: Sequence[str], ratings: Sequence[float] | Model, least: float = 3.0, embedder: Embedder | None = None
) -> Filter:
    """Keep documents rated useful for teaching: a large model rates a sample, a regressor on embeddings the rest."""
    return Filter("educational_quality", EducationalQuality(embedder).fit(sample, ratings), Threshold(least))


@method(
    "perplexity_filter",
    paper="Wenzek 2020 (CCNet), arXiv:1911.00359; Marion 2023, arXiv:2309.04564",
    group=_GROUP,
    needs="training",
    command=_CURATE,
)
def perplexity_filter(
    model: LogProbModel | WhiteBoxModel, sample: Sequence[str], variant: Literal["perplexity", "el2n"] = "perplexity"
) -> Filter:
    """Keep the middle third of documents by a language model's perplexity or EL2N, the thirds cut on a sample."""
    scorer = ErrorLength([cast(WhiteBoxModel, model)]) if variant == "el2n" else Perplexity(cast(LogProbModel, model))
    return Filter(variant, scorer, Between(*thirds(scorer.score(sample))))


@method(
    "importance_resampling",
    paper="Xie 2023 (DSIR), arXiv:2302.03169",
    group=_GROUP,
    needs="black box",
    command=_SELECT + "importance_resampling",
)
def importance_resampling(target: Sequence[str], raw: Sequence[str], k: int, seed: int = 0) -> IntArray:
    """Choose k raw documents with probabilities like the target's, by hashed n-grams and Gumbel noise."""
    return GumbelTopK(k, seed).decide(ImportanceWeight().fit(target, raw).score(raw)).indices


@method(
    "language_id",
    paper="Kargaran 2023 (GlotLID), arXiv:2310.16248; Burchell 2023 (OpenLID), arXiv:2305.13820",
    group=_GROUP,
    needs="black box",
    command=_CURATE,
)
def language_id(languages: str | Sequence[str] | Mapping[str, float], least: float = 0.65) -> Language:
    """Keep documents in given languages, each with its least probability, written in the right script."""
    return Language(languages, least)


@method("doremi", paper="Xie 2023, arXiv:2305.10429", group=_GROUP, needs="training", command=_MIX + "doremi")
def doremi(domains: Mapping[str, str], n_steps: int = 200, seed: int = 0) -> FloatArray:
    """Weigh domains by where a group-robust small model still loses to a reference."""
    return mixing.doremi(domains, n_steps, seed=seed)


@method("autoscale", paper="Kang 2024, arXiv:2407.20177", group=_GROUP, needs="training", command=_MIX + "autoscale")
def autoscale(
    domains: Mapping[str, str], held_out: Sequence[str], n_steps: int = 4000, seed: int = 0, **model: Any
) -> FloatArray:
    """Weigh domains for a large scale by laws fitted to trainings at a sixteenth and a quarter of it."""

    def loss_at(steps: FloatArray) -> FloatArray:
        learner = mixing.ByteModel(domains, seed=seed, **model)
        return learner.train(steps, max(1, round(float(steps.sum()))), averaged=0.25).held_out(held_out, 256)

    return scaling.autoscale(loss_at, (n_steps / 16, n_steps / 4), n_steps, len(domains))


@method("mixing_agent", paper="Yang 2025", group=_GROUP, needs="training", command=_MIX + "mixing_agent")
def mixing_agent(
    domains: Mapping[str, str], held_out: Sequence[str], **settings: Any
) -> Callable[[FloatArray, float], FloatArray]:
    """Learn from random trainings a policy that changes the mixture as training goes on."""
    return mixing.mixing_agent(domains, held_out, **settings)


@method("presence", paper="Thakkar 2023", group=_GROUP, needs="training", command=_MIX + "presence")
def presence(domains: Mapping[str, str], n_steps: int = 100, seed: int = 0) -> FloatArray:
    """Weigh examples by self-influence while a small model trains, and domains by what they keep in the end."""
    return np.asarray(mixing.presence(domains, n_steps, seed=seed)[1])
