"""Deficiency repair: what large models get wrong in known ways, found and mended by small parts."""

from __future__ import annotations

from pilotfish.methods import method
from pilotfish.models.reading import CausalReader, Reader
from pilotfish.scorers.arithmetic import ArithmeticCheck
from pilotfish.scorers.calibration import GroupCalibration
from pilotfish.scorers.entailment import Entailment
from pilotfish.scorers.grounding import Grounding
from pilotfish.scorers.likelihood import Binoculars, MachineText

# Evaluation: detectors and confidence.


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
    command="python -m benchmarks uncertainty",
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


@method(
    "text_detection",
    paper="Mireshghallah 2023, arXiv:2305.09859; Bao 2024, arXiv:2310.05130",
    group="competition",
    needs="token probabilities",
    command="pilotfish evaluate outputs.jsonl --metrics text_detection --reader smollm2-135m-instruct",
)
def text_detection(
    reader: Reader, kind: str = "curvature", observer: CausalReader | None = None
) -> MachineText | Binoculars:
    """Tell machine text from human by a small model's likelihood, rank or curvature, or by the ratio of two models'."""
    if observer is not None and isinstance(reader, CausalReader):
        return Binoculars(reader, observer)
    return MachineText(reader, kind)
