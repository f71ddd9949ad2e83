"""Repair: what large models are weak at, found and mended by small ones."""

from __future__ import annotations

from pilotfish.decoding.decoder import Decoder, fuse
from pilotfish.decoding.fusion import ContextAware, Contrastive, Mixture, SourceContrastive
from pilotfish.methods import method
from pilotfish.methods.build_decoder import without_context, wrong_source
from pilotfish.protocols import WhiteBoxModel
from pilotfish.scorers.arithmetic import ArithmeticCheck
from pilotfish.scorers.calibration import GroupCalibration
from pilotfish.scorers.entailment import Entailment
from pilotfish.scorers.grounding import Grounding

_GENERATE = "pilotfish generate TEXT --target qwen2.5-coder-1.5b-instruct --fusion "


@method(
    "contrastive_decoding",
    paper="Li 2023b, arXiv:2210.15097; O'Brien and Lewis 2023, arXiv:2309.09117",
    group="repair",
    needs="token probabilities",
    command=_GENERATE + "contrastive:alpha=0.1,beta=0.5 --model amateur=qwen2.5-coder-0.5b-instruct",
)
def contrastive_decoding(
    expert: WhiteBoxModel, amateur: WhiteBoxModel, alpha: float = 0.1, beta: float = 0.5
) -> Decoder:
    """Prefer what the large model finds likelier than a small one does, among what it finds plausible."""
    return fuse(fusion=Contrastive(alpha, beta), expert=expert, amateur=amateur)


@method(
    "contrastive_grounding",
    paper="Sennrich 2024, arXiv:2309.07098; Shi 2023, arXiv:2305.14739; Wang 2024, arXiv:2409.07394",
    group="repair",
    needs="token probabilities",
    command=_GENERATE + "context_aware:alpha=0.5,adaptive=false,copied=true --system CONTEXT",
)
def contrastive_grounding(model: WhiteBoxModel, alpha: float = 0.5, wrong: float | None = None) -> Decoder:
    """Contrast with the same model without the context (the system message), or, with ``wrong``, with a wrong one."""
    if wrong is not None:
        view = {"wrong_source": wrong_source}
        return fuse(fusion=SourceContrastive(wrong), views=view, source=model, wrong_source=model)
    fusion = ContextAware(alpha, adaptive=False, copied=True)
    return fuse(fusion=fusion, views={"without_context": without_context}, with_context=model, without_context=model)


@method(
    "induce_then_contrast",
    paper="Zhang 2023b, arXiv:2312.15710",
    group="repair",
    needs="training",
    command=_GENERATE + "contrastive:alpha=0.1,beta=1.0 --model amateur=INDUCED_FOLDER",
)
def induce_then_contrast(
    model: WhiteBoxModel, induced: WhiteBoxModel, alpha: float = 0.1, beta: float = 1.0
) -> Decoder:
    """Contrast with the model after it was tuned to hallucinate (:func:`pilotfish.training.tuning.tune`)."""
    return fuse(fusion=Contrastive(alpha, beta), expert=model, amateur=induced)


@method(
    "private_contrast",
    paper="CoGenesis, Zhang 2024a, arXiv:2403.03129: the logit half",
    group="repair",
    needs="token probabilities",
    command="pilotfish generate TEXT --target qwen2.5-coder-0.5b-instruct --fusion private:weight=0.5 "
    "--model other=qwen2.5-coder-1.5b-instruct --system PRIVATE",
)
def private_contrast(local: WhiteBoxModel, large: WhiteBoxModel, weight: float = 0.5) -> Decoder:
    """Mix a local model that reads the private context with the logits of a large one that is never shown it."""
    return fuse(fusion=Mixture(weight), views={"other": without_context}, base=local, other=large)


@method(
    "hallucination_detector",
    paper="Cheng 2024, arXiv:2406.11277; Manakul 2023",
    group="repair",
    needs="black box",
    command="pilotfish evaluate outputs.jsonl --metrics hallucination_detector",
)
def hallucination_detector(entailment: Entailment | None = None) -> Grounding:
    """Flag sentences that the context does not support: facts by rule first, then overlap and entailment."""
    return Grounding(entailment)


@method(
    "reconfidencing",
    paper="Chen 2024b, arXiv:2402.04957",
    group="repair",
    needs="black box",
    command="pilotfish evaluate outputs.jsonl --metrics mean_log_prob",
)
def reconfidencing(n_leaves: int = 8) -> GroupCalibration:
    """Calibrate confidence within groups that a small tree finds, not only on average."""
    return GroupCalibration(n_leaves)


@method(
    "self_contradiction_numbers",
    paper='the survey\'s "9.11 > 9.9", arXiv:2409.06857',
    group="repair",
    needs="black box",
    command="pilotfish evaluate outputs.jsonl --metrics self_contradiction_numbers",
)
def self_contradiction_numbers() -> ArithmeticCheck:
    """Check every sum, product and comparison of numbers in an answer exactly; ``mended`` puts the false ones right."""
    return ArithmeticCheck()
