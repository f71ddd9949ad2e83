"""Language of a text: a fastText model, held to the languages that are written in the text's script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pilotfish.curation.documents import Document
from pilotfish.curation.scan import Batch, Plan
from pilotfish.curation.short_texts import ShortTexts
from pilotfish.curation.steps import Verdict
from pilotfish.curation.words import character_at
from pilotfish.errors import InputError
from pilotfish.models.fasttext import FastTextModel
from pilotfish.protocols import FloatArray, IntArray
from pilotfish.rules import Threshold

__all__ = ["Language", "LanguageIdentifier"]

# First and last character of each script's blocks, and the labels of lid.176 that are written in it.
_SCRIPTS: tuple[tuple[str, tuple[tuple[int, int], ...], str], ...] = (
    ("Latin", ((0x41, 0x24F), (0x1E00, 0x1EFF)), "*"),
    ("Cyrillic", ((0x400, 0x52F),), "ru uk bg be mk sr kk ky tg tt ba cv ce os sah tyv kv krc av lez mn xal bxr rue "
     "mhr mrj myv uz sh az"),
    ("Arabic", ((0x600, 0x77F), (0x8A0, 0x8FF)), "ar fa ur ps ckb sd ug arz azb pnb lrc mzn ku az ks"),
    ("Devanagari", ((0x900, 0x97F),), "hi mr ne sa bh mai new gom dty"),
    ("Han", ((0x3400, 0x9FFF),), "zh yue wuu ja ko"),
    ("Kana", ((0x3040, 0x30FF),), "ja"),
    ("Hangul", ((0x1100, 0x11FF), (0xAC00, 0xD7A3)), "ko"),
    ("Greek", ((0x370, 0x3FF), (0x1F00, 0x1FFF)), "el"),
    ("Hebrew", ((0x590, 0x5FF),), "he yi"),
    ("Armenian", ((0x530, 0x58F),), "hy"),
    ("Georgian", ((0x10A0, 0x10FF),), "ka xmf"),
    ("Thai", ((0xE00, 0xE7F),), "th"),
    ("Lao", ((0xE80, 0xEFF),), "lo"),
    ("Khmer", ((0x1780, 0x17FF),), "km"),
    ("Myanmar", ((0x1000, 0x109F),), "my"),
    ("Tibetan", ((0xF00, 0xFFF),), "bo"),
    ("Bengali", ((0x980, 0x9FF),), "bn as bpy"),
    ("Gurmukhi", ((0xA00, 0xA7F),), "pa"),
    ("Gujarati", ((0xA80, 0xAFF),), "gu"),
    ("Oriya", ((0xB00, 0xB7F),), "or"),
    ("Tamil", ((0xB80, 0xBFF),), "ta"),
    ("Telugu", ((0xC00, 0xC7F),), "te"),
    ("Kannada", ((0xC80, 0xCFF),), "kn"),
    ("Malayalam", ((0xD00, 0xD7F),), "ml"),
    ("Sinhala", ((0xD80, 0xDFF),), "si"),
    ("Ethiopic", ((0x1200, 0x137F),), "am"),
    ("Thaana", ((0x780, 0x7BF),), "dv"),
)  # fmt: skip
_MIXED = frozenset(["sr", "uz", "az", "ku", "sh"])
_FEWEST = 3
# Characters up to which lingua is right more often than lid.176, on stretches of manual pages of 58 languages.
_SHORT = 100


class LanguageIdentifier:
    """Probability of each language of a text.

    Parameters
    ----------
    model : str or path
        A fastText model of the catalog, or a file; labels such as ``en`` or ``eng_Latn``.
    longest : int
        Bytes of each text that are read; 0 reads all.
    check_script : bool
        Give no probability to a language that is not written in the script of most letters.
    short_texts : ShortTexts, optional
        Judges texts of fewer than 100 characters instead.

    Examples
    --------
    >>> LanguageIdentifier().longest
    400

    References
    ----------
    Joulin 2016 (arXiv:1607.01759); Kargaran 2023 (GlotLID, arXiv:2310.16248), on scripts.
    """

    def __init__(
        self,
        model: str | Path = "lid.176",
        longest: int = 400,
        check_script: bool = True,
        short_texts: ShortTexts | None = None,
    ) -> None:
        self.model = model
        self.longest = longest
        self.check_script = check_script
        self.short_texts = short_texts

    @property
    def labels(self) -> list[str]:
        """Languages, in the order of the columns of probabilities."""
        self._loaded()
        return self._labels

    def of(self, batch: Batch) -> FloatArray:
        """Probability of every language for every text of a batch, (n, n_labels)."""
        model = self._loaded()
        probabilities = model.of(batch.buffer, batch.offsets, self.longest)
        if self.check_script:
            scripts = np.empty(len(batch), dtype=np.int64)
            _main_script(batch.buffer, batch.offsets, self.longest, _blocks(), scripts)
            probabilities *= self._allowed[scripts]
        return probabilities if self.short_texts is None else self._with_short(self.short_texts, batch, probabilities)

    def predict(self, texts: Sequence[str]) -> tuple[list[str], FloatArray]:
        """The likeliest language of each text and its probability; empty where there is none."""
        probabilities = self.of(Batch(texts))
        best = probabilities.argmax(axis=1)
        top = probabilities[np.arange(len(texts)), best] if len(texts) else np.zeros(0)
        labels = self.labels
        return [labels[i] if p > 0 else "" for i, p in zip(best.tolist(), top.tolist(), strict=True)], top

    def _loaded(self) -> FastTextModel:
        if not hasattr(self, "_model"):
            model = FastTextModel(self.model).load()
            self._allowed = _allowed(model.labels_)
            self._labels = list(model.labels_)
            if self.short_texts is not None:
                names = _as_labelled(model.labels_, self.short_texts)
                self._labels += [name for name in names if name not in self._labels]
                self._columns = [self._labels.index(name) for name in names]
            self._model = model
        return self._model

    def _with_short(self, short_texts: ShortTexts, batch: Batch, probabilities: FloatArray) -> FloatArray:
        ends = batch.offsets.tolist()
        # A character has four bytes at most.
        texts = {
            i: batch.buffer[a:b].tobytes().decode("utf-8", "replace")
            for i, (a, b) in enumerate(pairwise(ends))
            if b - a < 4 * _SHORT
        }
        rows = [i for i, text in texts.items() if len(text) < _SHORT]
        made = np.zeros((len(batch), len(self._labels)))
        made[:, : probabilities.shape[1]] = probabilities
        made[rows] = 0
        made[np.ix_(rows, self._columns)] = short_texts.of([texts[i] for i in rows])
        return made


class Language:
    """Keep documents whose likeliest language is one of those wanted, with enough probability.

    Parameters
    ----------
    languages : str, sequence of str, or mapping
        Languages wanted; a mapping gives each its own least probability.
    least : float
        Least probability.
    identifier : LanguageIdentifier, optional
        Gives the probabilities; ``lid.176`` when left out.
    least_short, short : float, int
        Least probability for texts of fewer than ``short`` characters, which are often mistaken.

    Examples
    --------
    >>> Language({"en": 0.65, "de": 0.8}).limits["de"]
    0.8
    """

    name = "language"

    def __init__(
        self,
        languages: str | Sequence[str] | Mapping[str, float],
        least: float = 0.65,
        identifier: LanguageIdentifier | None = None,
        least_short: float = 0.65,
        short: int = 40,
    ) -> None:
        if isinstance(languages, str):
            languages = [languages]
        self.limits = dict(languages) if isinstance(languages, Mapping) else dict.fromkeys(languages, least)
        if not self.limits or not all(0 <= limit <= 1 for limit in self.limits.values()):
            raise InputError(f"Language limits are {self.limits}: name languages with probabilities from 0 to 1.")
        self.identifier = identifier or LanguageIdentifier()
        self.least_short = least_short
        self.short = short

    def plan(self, plan: Plan) -> None:
        """The model reads the same buffer by itself."""

    def judge(self, batch: Batch, rows: IntArray, documents: Sequence[Document]) -> Verdict:
        """Judge the documents of the given rows of the batch."""
        if rows.size < len(batch):
            batch = Batch([d.text for d in documents])
        labels = self.identifier.labels
        unknown = sorted(set(self.limits) - set(labels))
        if unknown:
            raise InputError(f"The model knows no language {unknown[0]!r}: use its labels, such as {labels[:3]}.")
        probabilities = self.identifier.of(batch)
        best = probabilities.argmax(axis=1)
        top = probabilities[np.arange(rows.size), best]
        names = [labels[i] if p > 0 else "none" for i, p in zip(best.tolist(), top.tolist(), strict=True)]
        limits = np.array([self.limits.get(name, np.inf) for name in names])
        short = np.array([len(d.text) < self.short for d in documents])
        limits = np.where(short, np.maximum(limits, self.least_short), limits)
        kept = np.zeros(rows.size, dtype=bool)
        kept[Threshold(0.0).decide(np.where(np.isinf(limits), -1.0, top - limits)).indices] = True
        return Verdict(kept, [f"language {name}" for name in names], top)


def _as_labelled(labels: Sequence[str], short_texts: ShortTexts) -> list[str]:
    """The model's label of each language of the other, which goes by two letters, three, or has the two of its own."""
    of_code = {label.partition("_")[0]: label for label in reversed(labels)}
    of_code.setdefault("nb", of_code.get("no", "nb"))
    return [of_code.get(a) or of_code.get(b, a) for a, b in zip(short_texts.labels, short_texts.codes, strict=True)]


def _allowed(labels: Sequence[str]) -> NDArray[np.float64]:
    """Which label may be written in which script, (n_scripts + 1, n_labels); the last row allows every one."""
    plain = [label.partition("_")[0] for label in labels]
    table = np.zeros((len(_SCRIPTS) + 1, len(labels)))
    table[-1] = 1
    listed = {label for _, _, named in _SCRIPTS[1:] for label in named.split()}
    for row, (script, _, named) in zip(table, _SCRIPTS, strict=False):
        members = set(named.split())
        for i, label in enumerate(plain):
            stated = labels[i].partition("_")[2]
            if stated:
                row[i] = stated[:4] == script[:4] or (
                    script in ("Han", "Kana") and stated in ("Jpan", "Hani", "Hans", "Hant")
                )
            else:
                row[i] = label in members if script != "Latin" else label not in listed or label in _MIXED
    table[:, table.sum(axis=0) <= 1] = 1
    return table


@lru_cache(maxsize=1)
def _blocks() -> NDArray[np.int8]:
    """Script of each character below 0x10000, -1 for none."""
    made = np.full(0x10000, -1, dtype=np.int8)
    for number, (_, ranges, _) in enumerate(_SCRIPTS):
        for first, last in ranges:
            made[first : last + 1] = number
    for mark in (*range(0x5B, 0x61), *range(0x7B, 0xC0), 0xD7, 0xF7):
        made[mark] = -1
    return made


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _main_script(buffer: Any, offsets: Any, longest: int, blocks: Any, scripts: Any) -> None:
    """The script of most letters of each text; -1 where another has over a third of them, or there are few."""
    counts = np.zeros(32, dtype=np.int64)
    for d in range(offsets.size - 1):
        counts[:] = 0
        i, end = offsets[d], offsets[d + 1]
        if longest and end - i > longest:
            end = i + longest
            while buffer[end] & 0xC0 == 0x80:
                end -= 1
        while i < end:
            c, i = character_at(buffer, i)
            if c < blocks.size and blocks[c] >= 0:
                counts[blocks[c]] += 1
        # Japanese mixes two scripts: any kana decides.
        if counts[5] > 2 and counts[5] * 10 > counts[4]:
            counts[5] += counts[4]
            counts[4] = 0
        total, best = counts.sum(), counts.argmax()
        scripts[d] = best if total >= _FEWEST and counts[best] * 3 > total * 2 else -1
