"""Evaluation with references: how near an answer comes to one that is known to be right."""

from __future__ import annotations

from pathlib import Path

from pilotfish.methods import method
from pilotfish.models.embedder import TokenPrecision
from pilotfish.models.reading import Reader
from pilotfish.scorers.bertscore import BertScore
from pilotfish.scorers.likelihood import BartScore
from pilotfish.scorers.reference import Bleu, Chrf, Rouge

_COMMAND = "pilotfish evaluate outputs.jsonl --metrics "


@method("bleu", paper="Papineni 2002", group="reference_based", needs="black box", command=_COMMAND + "bleu")
def bleu(tokenize: str = "13a") -> Bleu:
    """Share of the answer's word n-grams that a reference has, by sacrebleu."""
    return Bleu(tokenize)


@method("chrf", paper="Popovic 2015", group="reference_based", needs="black box", command=_COMMAND + "chrf")
def chrf() -> Chrf:
    """F-score of character n-grams, by sacrebleu: the best cheap metric for translation."""
    return Chrf()


@method("rouge", paper="Lin 2004", group="reference_based", needs="black box", command=_COMMAND + "rouge")
def rouge(kind: str = "rougeL") -> Rouge:
    """F-score of the longest common subsequence, or of words and pairs of words, by rouge-score."""
    return Rouge(kind)


@method(
    "bertscore",
    paper="Zhang 2020, arXiv:1904.09675",
    group="reference_based",
    needs="black box",
    command=_COMMAND + "bertscore",
)
def bertscore(
    encoder: str | Path = "minilm", idf: bool = False, layer: int | None = None, precision: TokenPrecision = "int16"
) -> BertScore:
    """Greedy match of the tokens of answer and reference in a small encoder's space."""
    return BertScore(encoder, idf=idf, layer=layer, precision=precision)


@method(
    "bartscore",
    paper="Yuan 2021, arXiv:2106.11520",
    group="reference_based",
    needs="black box",
    command=_COMMAND + "bartscore --reader smollm2-135m-instruct",
)
def bartscore(reader: Reader, direction: str = "f") -> BartScore:
    """Probability of the answer after its reference and the other way round, by any small language model."""
    return BartScore(reader, direction)
