"""Domain adaptation of a large model with small ones, its weights untouched."""

from __future__ import annotations

from pilotfish.decoding.decoder import Decoder, fuse
from pilotfish.decoding.fusion import Product, ProxyTuning
from pilotfish.methods import method
from pilotfish.protocols import WhiteBoxModel
from pilotfish.training.combination import LearnedCombination


@method(
    "proxy_tuning",
    paper="Liu 2024a, arXiv:2401.08565",
    group="adaptation",
    needs="token probabilities",
    command="pilotfish generate TEXT --target qwen2.5-coder-0.5b-instruct --fusion proxy_tuning:alpha=1.0 "
    "--model expert=TUNED_FOLDER --model anti_expert=smollm2-135m-instruct",
)
def proxy_tuning(base: WhiteBoxModel, expert: WhiteBoxModel, anti_expert: WhiteBoxModel, alpha: float = 1.0) -> Decoder:
    """Move a large model by what tuning did to a small one, of the same vocabulary or another."""
    return fuse(fusion=ProxyTuning(alpha), base=base, expert=expert, anti_expert=anti_expert)


@method(
    "comblm",
    paper="Ormazabal 2023, arXiv:2305.16876",
    group="adaptation",
    needs="token probabilities",
    command="pilotfish generate TEXT --target qwen2.5-coder-0.5b-instruct --fusion comblm:file=COMBINATION.npz "
    "--model other=smollm2-135m-instruct",
)
def comblm(large: WhiteBoxModel, small: WhiteBoxModel, combination: LearnedCombination) -> Decoder:
    """Combine a large model with a tuned small one by weights learned from how sure the two are."""
    return fuse(fusion=combination, base=large, other=small)


@method(
    "inference_policy_adapter",
    paper="Lu 2023b, arXiv:2305.15065",
    group="adaptation",
    needs="training",
    command="pilotfish generate TEXT --target smollm2-135m-instruct --fusion product:alpha=1.0 "
    "--model adapter=ADAPTER_FOLDER",
)
def inference_policy_adapter(base: WhiteBoxModel, adapter: WhiteBoxModel, alpha: float = 1.0) -> Decoder:
    """Multiply a frozen large model with an adapter trained by policy gradient on a small one."""
    return fuse(fusion=Product(alpha), base=base, adapter=adapter)
