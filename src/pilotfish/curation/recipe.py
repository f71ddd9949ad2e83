"""Recipes: the steps of a run as a TOML file."""

from __future__ import annotations

import importlib
import inspect
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pilotfish.curation.classifiers import EducationalQuality, NgramClassifier, ParetoSample
from pilotfish.curation.dedup import ExactDedup, MinHashDedup
from pilotfish.curation.documents import Document
from pilotfish.curation.importance import ImportanceResampling
from pilotfish.curation.language import Language, LanguageIdentifier
from pilotfish.curation.perplexity import ErrorLength, Perplexity, thirds
from pilotfish.curation.picks import OF_A_MODEL, PICKS, Picked, pick
from pilotfish.curation.privacy import Privacy, PrivacyTagger
from pilotfish.curation.reading import read, shards
from pilotfish.curation.run import AnyStep, Settings
from pilotfish.curation.semantic import D4, SemanticDedup
from pilotfish.curation.short_texts import ShortTexts
from pilotfish.curation.steps import Filter, OwnRule, Rules
from pilotfish.errors import ConfigError, InputError
from pilotfish.files import sha256_of
from pilotfish.models.arpa import ArpaModel, KenLMModel, is_kenlm
from pilotfish.models.ngram import NGramModel
from pilotfish.models.openai import OpenAIModel
from pilotfish.models.transformers import TransformersModel
from pilotfish.rules import Between, Threshold

__all__ = ["Recipe"]

_SETS: Mapping[str, Callable[[], Rules]] = {
    "gopher": Rules.gopher,
    "gopher_quality": Rules.gopher_quality,
    "gopher_repetition": Rules.gopher_repetition,
    "c4": Rules.c4,
    "fineweb": Rules.fineweb,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps, and how files are read and written.

    Parameters
    ----------
    steps : tuple of step
        In their order.
    settings : Settings
        Of files.
    fingerprint : str
        The text it was read from, and the hash of each file that its steps read: what tells its runs from others.

    Examples
    --------
    >>> recipe = Recipe.from_toml('''
    ... [[step]]
    ... use = "rules"
    ... sets = ["gopher", "c4"]
    ... [[step]]
    ... use = "minhash_dedup"
    ... n_bands = 14
    ... ''')
    >>> [step.name for step in recipe.steps]
    ['rules', 'minhash_dedup']
    """

    steps: tuple[AnyStep, ...]
    settings: Settings
    fingerprint: str = ""

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe file; paths in it are relative to its folder.

        Raises
        ------
        ConfigError
            When the file is missing, is no TOML, or has a key or value that is wrong.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"Recipe {path} cannot be read ({error}): give a TOML file.") from error
        return cls.from_toml(text, Path(path).parent)

    @classmethod
    def from_toml(cls, text: str, folder: Path = Path()) -> Recipe:
        """Read a recipe from its text."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"The recipe is no TOML ({error}): mend that line.") from error
        steps = data.pop("step", [])
        known = {f.name for f in fields(Settings)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ConfigError(f"The recipe has key {unknown[0]!r}: use {', '.join(sorted(known))} and [[step]].")
        if not isinstance(steps, list) or not steps:
            raise ConfigError("The recipe has no step: write at least one [[step]] with 'use'.")
        made: list[AnyStep] = []
        hashes: list[str] = []
        for number, options in enumerate(steps, 1):
            step, files = _step(number, dict(options), folder)
            made.append(step)
            hashes += [f"{number} {key} {_content(path)}" for key, path in sorted(files.items()) if path.exists()]
        return cls(tuple(made), Settings(**data), "\n".join([text, *hashes]))


def _content(path: Path) -> str:
    """The hash of a file, or of all files of a folder with their names."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return " ".join(f"{file.relative_to(path)} {sha256_of(file)}" for file in files)


def _step(number: int, options: dict[str, Any], folder: Path) -> tuple[AnyStep, dict[str, Path]]:
    """The step, and the files whose content decides what it does, by key."""
    name = options.pop("use", None)
    if name not in _STEPS:
        raise ConfigError(f"Step {number} uses {name!r}: use one of {', '.join(sorted(_STEPS))}.")
    make = _STEPS[name]
    takes = inspect.signature(make).parameters
    unknown = sorted(set(options) - set(takes))
    if unknown:
        raise ConfigError(f"Step {number} ({name}) has key {unknown[0]!r}: it takes {', '.join(takes) or 'none'}.")
    missing = [key for key, p in takes.items() if p.default is p.empty and key not in options]
    if missing:
        raise ConfigError(f"Step {number} ({name}) has no key {missing[0]!r}: give it.")
    files = {key: folder / options[key] for key in _PATHS & set(options) if options[key]}
    # A model may also be a name of the catalog.
    model = str(options.get("model", ""))
    if model.endswith((".npz", ".arpa", ".arpa.gz")) or (model and (folder / model).exists()):
        files["model"] = folder / model
    options.update({key: str(path) for key, path in files.items()})
    try:
        made = make(**options)
    except (TypeError, AttributeError, InputError) as error:
        raise ConfigError(f"Step {number} ({name}) cannot be made ({error}): mend its keys.") from error
    # An index grows by the run itself, and what a saved model was learned from is not read again.
    left_out = {"index", *_LEARNED_FROM.get(name, ())}
    return made, {key: path for key, path in files.items() if key not in left_out}


def _rules(
    sets: Sequence[str] = (),
    without: Sequence[str] = (),
    limits: Mapping[str, Mapping[str, float]] | None = None,
    blocked_words: str = "",
    blocked_most: int = 0,
) -> Rules:
    made = Rules()
    for name in sets:
        if name not in _SETS:
            raise InputError(f"there is no set of rules {name!r}, only {', '.join(_SETS)}")
        made += _SETS[name]()
    if blocked_words:
        words = Path(blocked_words).read_text(encoding="utf-8-sig").split()
        made += Rules.block_list(words, blocked_most)
    return made.limits(**(limits or {})).without(*without)


def _python(function: str, name: str = "", low: float = float("-inf"), high: float = float("inf")) -> Rules:
    """A function of a document, as ``module:function``, that gives a number."""
    module, _, attribute = function.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"function {function!r} is not found: write 'module:function'") from error
    return Rules(OwnRule(name or attribute, found, low, high))


def _language(
    languages: str | list[str] | dict[str, float],
    least: float = 0.65,
    model: str = "lid.176",
    longest: int = 400,
    short_texts: bool = False,
) -> Language:
    identifier = LanguageIdentifier(model, longest, short_texts=ShortTexts() if short_texts else None)
    return Language(languages, least, identifier)


def _documents(path: str) -> list[Document]:
    return [d for shard in shards([path]) for documents, _ in read(shard) for d in documents]


def _texts(path: str) -> list[str]:
    return [d.text for d in _documents(path)]


def _labelled(path: str) -> tuple[list[str], list[str]]:
    """Texts of label 1 and texts of label 0."""
    found = _documents(path)
    return tuple([d.text for d in found if d.fields.get("label") == label] for label in (1, 0))  # type: ignore[return-value]


def _quality(curated: str, raw: str, least: float | None = None, alpha: float = 9.0) -> Filter:
    """Likeness to curated text: Pareto-sampled, or by the least probability given."""
    model = NgramClassifier().fit(_texts(curated), _texts(raw))
    return Filter("quality", model, ParetoSample(alpha) if least is None else Threshold(least))


def _toxicity(labelled: str, most: float) -> Filter:
    """Probability of label 1, as learned from texts with labels 1 and 0."""
    return Filter("toxicity", NgramClassifier().fit(*_labelled(labelled)), Between(high=most))


def _classifier(model: str, name: str, least: float = 0.0, most: float = 1.0) -> Filter:
    """A classifier that was saved."""
    return Filter(name, NgramClassifier.load(model), Between(least, most))


def _privacy(tagger: str = "", labelled: str = "", most: float = float("inf")) -> Privacy:
    """Masks by patterns and a tagger: one that was saved, or is learned from ``spans`` (start, end, kind) and saved."""
    if not tagger:
        return Privacy(most=most)
    if labelled and not Path(tagger).exists():
        found = _documents(labelled)
        spans = [[(int(a), int(b), str(kind)) for a, b, kind in d.fields.get("spans", ())] for d in found]
        PrivacyTagger().fit([d.text for d in found], spans).save(tagger)
    return Privacy(PrivacyTagger.load(tagger), most=most)


def _language_model(model: str, train: str) -> Any:
    """An n-gram model: saved, or learned from texts and saved, or of KenLM; or else a causal language model."""
    if train and not Path(model).exists():
        NGramModel().fit(_texts(train)).save(model)
    if model.endswith(".npz"):
        return NGramModel.load(model)
    if is_kenlm(model):
        return KenLMModel(model)
    return ArpaModel(model) if model.endswith((".arpa", ".gz")) else TransformersModel(model)


def _within(name: str, scorer: Perplexity | ErrorLength, low: float | None, high: float | None, sample: str) -> Filter:
    """Scores from ``low`` to ``high``; the middle third of a sample where neither is given."""
    if low is None and high is None:
        if not sample:
            raise InputError("it has neither low, high nor a sample to take the middle third of")
        low, high = thirds(scorer.score(_texts(sample)))
    return Filter(name, scorer, Between(-math.inf if low is None else low, math.inf if high is None else high))


def _perplexity(
    model: str,
    low: float | None = None,
    high: float | None = None,
    sample: str = "",
    train: str = "",
    longest: int = 5000,
) -> Filter:
    """Mean log-probability of a token."""
    return _within("perplexity", Perplexity(_language_model(model, train), longest), low, high, sample)


def _el2n(
    model: str,
    low: float | None = None,
    high: float | None = None,
    sample: str = "",
    train: str = "",
    longest: int = 1000,
) -> Filter:
    """Mean length of a token's error vector."""
    return _within("el2n", ErrorLength([_language_model(model, train)], longest), low, high, sample)


def _educational(model: str, least: float = 3.0, sample: str = "", rater: str = "", endpoint: str = "") -> Filter:
    """A rating model that was saved, or is learned from a sample that a large model rates, and saved."""
    if sample and not Path(model).exists():
        EducationalQuality().fit(_texts(sample), OpenAIModel(rater, endpoint or None)).save(model)
    return Filter("educational_quality", EducationalQuality.load(model), Threshold(least))


def _semantic(least: float = 0.95, index: str | None = None, longest: int = 4000) -> SemanticDedup:
    return SemanticDedup(least, index=index, longest=longest)


def _d4(share: float, least: float = 0.95, n_clusters: int = 100, longest: int = 4000, seed: int = 1) -> D4:
    return D4(share, least, n_clusters, longest=longest, seed=seed)


def _resampling(like: str, n: int, seed: int = 0) -> ImportanceResampling:
    """So many documents, drawn with probabilities like the target's."""
    return ImportanceResampling(_texts(like), n, seed)


def _picking(method: str) -> Callable[..., Picked]:
    """A step that looks at all documents at once."""

    def by_text(like: str, n: int, seed: int = 0) -> Picked:
        return Picked(method, pick(method, n, seed=seed), _documents(like))

    def by_model(like: str, n: int, model: str, answer: str = "answer", seed: int = 0) -> Picked:
        return Picked(method, pick(method, n, model=model, answer=answer, seed=seed), _documents(like))

    return by_model if method in OF_A_MODEL else by_text


_LEARNED_FROM = {"perplexity": ["train"], "el2n": ["train"], "privacy": ["labelled"], "educational_quality": ["sample"]}
_PATHS = {"index", "blocked_words", "curated", "raw", "labelled", "tagger", "sample", "train", "like"}
_STEPS: dict[str, Callable[..., AnyStep]] = {
    **{method: _picking(method) for method in PICKS},
    "rules": _rules,
    "python": _python,
    "language": _language,
    "quality": _quality,
    "toxicity": _toxicity,
    "classifier": _classifier,
    "educational_quality": _educational,
    "perplexity": _perplexity,
    "el2n": _el2n,
    "privacy": _privacy,
    "semantic_dedup": _semantic,
    "d4": _d4,
    "importance_resampling": _resampling,
    "exact_dedup": ExactDedup,
    "minhash_dedup": MinHashDedup,
}
