"""Where small models and large ones compete: telling what one has written."""

from __future__ import annotations

from pilotfish.methods import method
from pilotfish.models.reading import CausalReader, Reader
from pilotfish.scorers.likelihood import Binoculars, MachineText


@method(
    "text_detection",
    paper="Mireshghallah 2023, arXiv:2305.09859; Bao 2024, arXiv:2310.05130",
    group="competition",
    needs="token probabilities",
    command="pilotfish evaluate outputs.jsonl --metrics text_detection --reader smollm2-135m-instruct",
)
def text_detection(
    reader: Reader, kind: str = "curvature", observer: CausalReader | str | None = None
) -> MachineText | Binoculars:
    """Tell machine text from human by a small model's likelihood, rank or curvature, or by the ratio of two models'."""
    if observer is not None and isinstance(reader, CausalReader):
        return Binoculars(reader, CausalReader(observer) if isinstance(observer, str) else observer)
    return MachineText(reader, kind)
