"""Backed-off n-gram models that KenLM and SRILM wrote: ARPA files, and KenLM's own binary ones."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pilotfish.errors import InputError, missing_extra
from pilotfish.protocols import FloatArray

__all__ = ["ArpaModel", "KenLMModel", "is_kenlm"]

_LN10 = math.log(10)
_MAGIC = b"mmap lm http://kheafield.com/code"


class ArpaModel:
    """An n-gram model read from an ARPA file, plain or gzip.

    Words are what white space separates; a word that the file does not have is ``<unk>``.

    Parameters
    ----------
    path : path
        The file.

    References
    ----------
    Heafield 2011 (KenLM); the back-off of Katz 1987, equation 4.

    Examples
    --------
    >>> ArpaModel("nowhere.arpa")
    Traceback (most recent call last):
        ...
    pilotfish.errors.InputError: nowhere.arpa cannot be read ([Errno 2] ...): give an ARPA file.
    """

    def __init__(self, path: str | Path) -> None:
        self.order = 0
        self._grams: dict[tuple[str, ...], tuple[float, float]] = {}
        try:
            content = Path(path).read_bytes()
            self._read((gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode().splitlines())
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read ({error}): give an ARPA file.") from error
        except (ValueError, IndexError) as error:
            raise InputError(f"{path} is no ARPA file ({error}): give one that KenLM or SRILM wrote.") from error
        if not self._grams:
            raise InputError(f"{path} has no n-gram: give an ARPA file.")

    def _read(self, lines: Iterable[str]) -> None:
        size = 0
        for line in lines:
            line = line.strip()
            if match := re.fullmatch(r"\\(\d+)-grams:", line):
                size = int(match[1])
                self.order = max(self.order, size)
            elif line == "\\end\\":
                return
            elif size and line:
                parts = re.split(r"[\t ]+", line)
                back = float(parts[size + 1]) if len(parts) > size + 1 else 0.0
                self._grams[tuple(parts[1 : size + 1])] = (float(parts[0]) * _LN10, back * _LN10)

    def log_prob(self, text: str) -> FloatArray:
        """Natural log-probability of each word of a text and of its end, (n_words + 1,)."""
        words = [word if (word,) in self._grams else "<unk>" for word in text.split()]
        context: tuple[str, ...] = ("<s>",)
        out = []
        for word in [*words, "</s>"]:
            out.append(self._after(context[-(self.order - 1) :] if self.order > 1 else (), word))
            context = (*context, word)[-self.order :]
        return np.array(out)

    def perplexity(self, texts: Iterable[str]) -> float:
        """Exponential of the mean negative log-probability of a word; lower means more like the fitted texts."""
        return float(np.exp(-np.concatenate([self.log_prob(text) for text in texts]).mean()))

    def _after(self, context: tuple[str, ...], word: str) -> float:
        backed = 0.0
        while True:
            found = self._grams.get((*context, word))
            if found is not None:
                return backed + found[0]
            if not context:
                return backed + self._grams.get(("<unk>",), (-100.0, 0.0))[0]
            backed += self._grams.get(context, (0.0, 0.0))[1]
            context = context[1:]


class KenLMModel:
    """An n-gram model in KenLM's own binary format, read by the package ``kenlm``.

    Parameters
    ----------
    path : path
        The file, as ``build_binary`` or ``lmplz`` wrote it; the package reads ARPA files too.

    References
    ----------
    Heafield 2011, KenLM: faster and smaller language model queries.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import kenlm
        except ImportError:
            raise missing_extra("kenlm", "kenlm", "Reading a binary file of KenLM") from None
        try:
            self._model = kenlm.Model(str(path))
        except (OSError, RuntimeError) as error:
            why = str(error).strip().splitlines()[-1]
            raise InputError(f"{path} cannot be read ({why}): give a file that KenLM wrote.") from error
        self.order = int(self._model.order)

    def log_prob(self, text: str) -> FloatArray:
        """Natural log-probability of each word of a text and of its end, (n_words + 1,)."""
        return np.array([found[0] for found in self._model.full_scores(text)]) * _LN10


def is_kenlm(path: str | Path) -> bool:
    """Whether a file is in KenLM's binary format."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC
