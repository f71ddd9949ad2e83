"""Fine-tuning data: choose the examples worth tuning on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pilotfish.curation.influence import chosen_by_gradients
from pilotfish.curation.selection import diverse_best, in_context_worth, needed, representative
from pilotfish.methods import method
from pilotfish.models.embedder import StaticEmbedder
from pilotfish.protocols import Embedder, FloatArray, IntArray
from pilotfish.rules import TopK

_SELECT = "pilotfish select raw.jsonl --like target.jsonl -n 1000 -o chosen/ --method "
_MODEL = " --model smollm2-135m-instruct"
_GROUP = "finetuning_data"
Example = tuple[str, str]


@method(
    "representative_selection",
    paper="Liu 2025",
    group=_GROUP,
    needs="black box",
    command=_SELECT + "representative_selection",
)
def representative_selection(
    texts: Sequence[str], target: Sequence[str], k: int, embedder: Embedder | None = None
) -> IntArray:
    """Choose k examples close to the target and unlike each other, by a small model's embeddings."""
    used = embedder or StaticEmbedder()
    return representative(used.embed(texts).astype(float), used.embed(target).astype(float), k)


@method("lima", paper="Zhou 2023, arXiv:2305.11206", group=_GROUP, needs="black box", command=_SELECT + "lima")
def lima(texts: Sequence[str], quality: FloatArray, k: int = 1000, embedder: Embedder | None = None) -> IntArray:
    """Choose k examples of quality and diversity: the best of each of k groups."""
    return diverse_best((embedder or StaticEmbedder()).embed(texts).astype(float), quality, k)


@method("mods", paper="Du 2023, arXiv:2311.15653", group=_GROUP, needs="training", command=_SELECT + "mods")
def mods(
    texts: Sequence[str],
    quality: FloatArray,
    k: int,
    tuned: Callable[[IntArray], FloatArray],
    least: float = 0.0,
    embedder: Embedder | None = None,
) -> IntArray:
    """Choose k examples by quality, then coverage, then where a model tuned on these still fails."""
    return needed((embedder or StaticEmbedder()).embed(texts).astype(float), quality, k, tuned, least)


@method("less", paper="Xia 2024, arXiv:2402.04333", group=_GROUP, needs="weights", command=_SELECT + "less" + _MODEL)
def less(model_name: str, pool: Sequence[Example], target: Sequence[Example], k: int, seed: int = 0) -> IntArray:
    """Choose k examples whose Adam steps on a small model point where the target's gradients do."""
    return chosen_by_gradients(model_name, pool, target, k, seed)


@method(
    "data_whisperer",
    paper="Wang 2025, arXiv:2505.12212",
    group=_GROUP,
    needs="weights",
    command=_SELECT + "data_whisperer" + _MODEL,
)
def data_whisperer(model_name: str, pool: Sequence[Example], k: int, seed: int = 0) -> IntArray:
    """Choose k examples that, shown in a prompt, get attention and make a small model answer well."""
    return TopK(k).decide(in_context_worth(model_name, pool, seed=seed)).indices
