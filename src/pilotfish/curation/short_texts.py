"""Languages of short texts, which fastText often mistakes: the n-gram models of the package lingua."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pilotfish.errors import InputError, missing_extra
from pilotfish.protocols import FloatArray

__all__ = ["ShortTexts"]


class ShortTexts:
    """Probability of each of lingua's 75 languages; good from single words on, a thousand times slower than fastText.

    Every process that uses it holds about a gigabyte of n-grams when all languages may come.

    Parameters
    ----------
    languages : sequence of str, optional
        ISO 639-1 codes of those that may come, at least two; all by default.

    Raises
    ------
    InputError
        When a code is unknown, or there is one alone.
    MissingExtraError
        When lingua is not installed.

    Examples
    --------
    >>> short = ShortTexts(["en", "de", "fr"])
    >>> short.labels[short.of(["Guten Morgen"])[0].argmax()]
    'de'
    """

    def __init__(self, languages: Sequence[str] | None = None) -> None:
        try:
            import lingua
        except ImportError:
            raise missing_extra("lingua-language-detector", "language", "Languages of short texts") from None
        known = {language.iso_code_639_1.name.lower(): language for language in lingua.Language.all()}
        unknown = sorted(set(languages or ()) - set(known))
        chosen = sorted(known if languages is None else set(languages))
        if unknown or len(chosen) < 2:
            raise InputError(f"Field 'languages' is {chosen}, unknown {unknown}: give at least two of {sorted(known)}.")
        self.labels = chosen
        self.codes = [known[label].iso_code_639_3.name.lower() for label in self.labels]
        self._detector: Any = None

    def of(self, texts: Sequence[str]) -> FloatArray:
        """Probability of every language for every text, (n, n_labels); all 0 where a text has no letters."""
        if self._detector is None:
            from lingua import Language, LanguageDetectorBuilder

            chosen = [x for x in Language.all() if x.iso_code_639_1.name.lower() in self.labels]
            self._detector = LanguageDetectorBuilder.from_languages(*chosen).build()
        columns = {label.upper(): i for i, label in enumerate(self.labels)}
        found = np.zeros((len(texts), len(self.labels)))
        each = self._detector.compute_language_confidence_values_in_parallel(list(texts))
        for row, values in zip(found, each, strict=True):
            for value in values:
                row[columns[value.language.iso_code_639_1.name]] = value.value
        return found
