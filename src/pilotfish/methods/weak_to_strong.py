"""Weak-to-strong: small models that guide or teach a larger one."""

from __future__ import annotations

from typing import cast

from pilotfish.decoding.search import BlackBoxSearch, ChunkSearch
from pilotfish.methods import method
from pilotfish.protocols import Model, WhiteBoxModel


@method(
    "weak_to_strong_search",
    paper="Zhou 2024b, arXiv:2405.19262",
    group="weak_to_strong",
    needs="token probabilities",
    command="pilotfish generate TEXT --target qwen2.5-coder-0.5b-instruct "
    "--search tuned=TUNED_FOLDER,untuned=smollm2-135m-instruct",
)
def weak_to_strong_search(
    model: Model, tuned: WhiteBoxModel, untuned: WhiteBoxModel, n_beams: int = 2, n_draws: int = 2, chunk: int = 8
) -> ChunkSearch | BlackBoxSearch:
    """Search a large model's chunks for what tuning made likelier in a small one; a black box is asked for chunks."""
    if hasattr(model, "session"):
        return ChunkSearch(cast(WhiteBoxModel, model), tuned, untuned, n_beams=n_beams, n_draws=n_draws, chunk=chunk)
    return BlackBoxSearch(model, tuned, untuned, n_beams=n_beams, n_draws=n_draws, chunk=chunk)
