"""Scorers: anything that gives an item a number. The metrics of answers have their public names here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilotfish.scorers.arithmetic import ArithmeticCheck as ArithmeticCheck
    from pilotfish.scorers.bertscore import BertScore as BertScore
    from pilotfish.scorers.combination import Combination as Combination
    from pilotfish.scorers.confidence import Confidence as Confidence
    from pilotfish.scorers.grounding import Grounding as Grounding
    from pilotfish.scorers.judges import GradeJudge as GradeJudge
    from pilotfish.scorers.judges import JudgePanel as JudgePanel
    from pilotfish.scorers.judges import PairJudge as PairJudge
    from pilotfish.scorers.likelihood import BartScore as BartScore
    from pilotfish.scorers.likelihood import MachineText as MachineText
    from pilotfish.scorers.reference import Bleu as Bleu
    from pilotfish.scorers.reference import Chrf as Chrf
    from pilotfish.scorers.reference import Rouge as Rouge
    from pilotfish.scorers.selfcheck import SelfCheck as SelfCheck
    from pilotfish.scorers.selfcheck import SemanticEntropy as SemanticEntropy

_PUBLIC = {
    "ArithmeticCheck": "arithmetic",
    "BartScore": "likelihood",
    "BertScore": "bertscore",
    "Bleu": "reference",
    "Chrf": "reference",
    "Combination": "combination",
    "Confidence": "confidence",
    "GradeJudge": "judges",
    "Grounding": "grounding",
    "JudgePanel": "judges",
    "MachineText": "likelihood",
    "PairJudge": "judges",
    "Rouge": "reference",
    "SelfCheck": "selfcheck",
    "SemanticEntropy": "selfcheck",
}

__all__ = [
    "ArithmeticCheck",
    "BartScore",
    "BertScore",
    "Bleu",
    "Chrf",
    "Combination",
    "Confidence",
    "GradeJudge",
    "Grounding",
    "JudgePanel",
    "MachineText",
    "PairJudge",
    "Rouge",
    "SelfCheck",
    "SemanticEntropy",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pilotfish.scorers' has no attribute {name!r}")
    return getattr(import_module(f"pilotfish.scorers.{_PUBLIC[name]}"), name)
