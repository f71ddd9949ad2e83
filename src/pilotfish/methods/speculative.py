"""Speculation: something cheap drafts, the target checks all of it in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pilotfish.decoding.copying import Lookup, Retrieval
from pilotfish.decoding.decoder import Decoder
from pilotfish.decoding.drafting import (
    Drafter,
    EarlyExit,
    OtherVocabulary,
    SmallModel,
    TokenIntersection,
)
from pilotfish.methods import method
from pilotfish.protocols import WhiteBoxModel

_GENERATE = "pilotfish generate TEXT --target qwen2.5-coder-0.5b-instruct --stats --draft "


@method(
    "speculative_decoding",
    paper="Leviathan 2023, arXiv:2211.17192",
    group="speculative",
    needs="weights",
    command="pilotfish generate TEXT --target qwen2.5-coder-1.5b-instruct --draft qwen2.5-coder-0.5b-instruct --stats",
)
def speculative_decoding(target: WhiteBoxModel, small: WhiteBoxModel, k: int | None = None) -> Decoder:
    """Let a small model of the same vocabulary draft and the target check; at temperature 0 the output is identical."""
    return Decoder(target, [SmallModel(small)], k=k)


@method(
    "speculative_sampling",
    paper="Chen 2023a, arXiv:2302.01318",
    group="speculative",
    needs="weights",
    command="pilotfish generate TEXT --target qwen2.5-coder-1.5b-instruct --draft qwen2.5-coder-0.5b-instruct "
    "--temperature 1",
)
def speculative_sampling(target: WhiteBoxModel, small: WhiteBoxModel, k: int = 4) -> Decoder:
    """Draw drafts of a fixed length from a small model, and correct them to the target's own distribution."""
    return Decoder(target, [SmallModel(small, least=0.0)], k=k)


@method(
    "lookup_drafting",
    paper="Xia 2024a, arXiv:2401.07851; REST, arXiv:2311.08252",
    group="speculative",
    needs="weights",
    command=_GENERATE + "lookup",
)
def lookup_drafting(target: WhiteBoxModel, texts: Iterable[str] = ()) -> Decoder:
    """Copy what followed the same tokens in the prompt, or else in texts of before, such as the replies of a log."""
    kept = list(texts)
    drafters: list[Drafter] = [Lookup(), *([Retrieval(kept)] if kept else [])]
    return Decoder(target, drafters)


@method(
    "self_drafting",
    paper="Xia 2024a, arXiv:2401.07851, section 5",
    group="speculative",
    needs="weights",
    command=_GENERATE + "exit:8",
)
def self_drafting(target: WhiteBoxModel, n_layers: int) -> Decoder:
    """Let the first layers of the target draft for all of them."""
    return Decoder(target, [EarlyExit(n_layers)])


@method(
    "cross_vocabulary",
    paper="Timor 2025, arXiv:2502.05202",
    group="speculative",
    needs="weights",
    command=_GENERATE + "smollm2-135m-instruct",
)
def cross_vocabulary(target: WhiteBoxModel, small: WhiteBoxModel, by: str = "string") -> Decoder:
    """Let a small model of another family draft, through text (``string``) or the tokens both have (``token``)."""
    return Decoder(target, [OtherVocabulary(small) if by == "string" else TokenIntersection(small)])


@method(
    "speed_controller",
    paper="ours: Leviathan 2023, section 3.4, with measured costs",
    group="speculative",
    needs="weights",
    command=_GENERATE + "lookup --draft smollm2-135m-instruct",
)
def speed_controller(target: WhiteBoxModel, drafters: Sequence[Drafter]) -> Decoder:
    """Draft as much as pays by measured costs and acceptance, or nothing."""
    return Decoder(target, drafters)
