"""Recipes: the steps of a run as a TOML file."""

from __future__ import annotations

import importlib
import inspect
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from pilotfish.curation.classifiers import EducationalQuality, NgramClassifier, ParetoSample
from pilotfish.curation.dedup import ExactDedup, MinHashDedup
from pilotfish.curation.described import described
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
        _check_types("The recipe", data, get_type_hints(Settings))
        settings = Settings(**data)
        made: list[AnyStep] = []
        hashes: list[str] = []
        for number, options in enumerate(steps, 1):
            if not isinstance(options, dict):
                raise ConfigError(f"Step {number} is {options!r}: write it as a table, under [[step]].")
            step, files = _step(number, dict(options), folder, settings.field)
            made.append(step)
            hashes += [f"{number} {key} {_content(path)}" for key, path in sorted(files.items()) if path.exists()]
            if options["use"] == "python":
                hashes.append(described(step))
        return cls(tuple(made), settings, "\n".join([text, *hashes]))


def _content(path: Path) -> str:
    """The hash of a file, or of all files of a folder with their names."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return " ".join(f"{file.relative_to(path)} {sha256_of(file)}" for file in files)


def _check_types(what: str, options: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    for key, value in options.items():
        try:
            TypeAdapter(hints[key]).validate_python(value, strict=True)
        except ValidationError as error:
            wanted = " or ".join(dict.fromkeys(_wanted(one["type"], one["msg"]) for one in error.errors()))
            raise ConfigError(f"{what} has {key} = {value!r}: give {wanted}.") from error


def _wanted(kind: str, message: str) -> str:
    return "a list" if kind == "sequence_str" else message.removeprefix("Input should be ")


def _step(number: int, options: dict[str, Any], folder: Path, field: str) -> tuple[AnyStep, dict[str, Path]]:
    """The step, and the files whose content decides what it does, by key."""
    name = options.pop("use", None)
    if name not in _STEPS:
        raise ConfigError(f"Step {number} uses {name!r}: use one of {', '.join(sorted(_STEPS))}.")
    make = _STEPS[name]
    takes = dict(inspect.signature(make, eval_str=True).parameters)
    # The documents of a step's own files have their text where those of the run have it.
    more = {"field": field} if takes.pop("field", None) else {}
    unknown = sorted(set(options) - set(takes))
    if unknown:
        raise ConfigError(f"Step {number} ({name}) has key {unknown[0]!r}: it takes {', '.join(takes) or 'none'}.")
    missing = [key for key, p in takes.items() if p.default is p.empty and key not in options]
    if missing:
        raise ConfigError(f"Step {number} ({name}) has no key {missing[0]!r}: give it.")
    _check_types(f"Step {number} ({name})", options, {key: p.annotation for key, p in takes.items()})
    if options.get("seed", 0) < 0:
        raise ConfigError(f"Step {number} ({name}) has seed = {options['seed']}: give a number from 0 on.")
    files = {key: folder / options[key] for key in _PATHS & set(options) if options[key]}
    # A model may also be a name of the catalog.
    model = str(options.get("model", ""))
    if model.endswith((".npz", ".arpa", ".arpa.gz")) or (model and (folder / model).exists()):
        files["model"] = folder / model
    options.update({key: str(path) for key, path in files.items()})
    try:
        made = make(**options, **more)
    except (TypeError, AttributeError, OSError, ValueError) as error:
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
    if not made.rules:
        raise InputError("it has no rule: give sets or blocked_words")
    return made.limits(**(limits or {})).without(*without)


def _python(function: str, name: str = "", low: float = float("-inf"), high: float = float("inf")) -> Rules:
    """A function of a document, as ``module:function``, that gives a number."""
    module, _, attribute = function.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"function {function!r} is not found: write 'module:function'") from error
    if not callable(found):
        raise InputError(f"{function!r} is {found!r} and no function")
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


def _documents(path: str, field: str) -> list[Document]:
    found = [d for shard in shards([path]) for documents, _ in read(shard, field) for d in documents]
    if not found:
        raise InputError(f"{path} has no document with a text in field {field!r}")
    return found


def _texts(path: str, field: str) -> list[str]:
    return [d.text for d in _documents(path, field)]


def _labelled(path: str, field: str) -> tuple[list[str], list[str]]:
    """Texts of label 1 and texts of label 0."""
    found = _documents(path, field)
    return tuple([d.text for d in found if d.fields.get("label") == label] for label in (1, 0))  # type: ignore[return-value]


def _quality(curated: str, raw: str, least: float | None = None, alpha: float = 9.0, *, field: str = "text") -> Filter:
    """Likeness to curated text: Pareto-sampled, or by the least probability given."""
    model = NgramClassifier().fit(_texts(curated, field), _texts(raw, field))
    return Filter("quality", model, ParetoSample(alpha) if least is None else Threshold(least))


def _toxicity(labelled: str, most: float, *, field: str = "text") -> Filter:
    """Probability of label 1, as learned from texts with labels 1 and 0."""
    return Filter("toxicity", NgramClassifier().fit(*_labelled(labelled, field)), Between(high=most))


def _classifier(model: str, name: str, least: float = 0.0, most: float = 1.0) -> Filter:
    """A classifier that was saved."""
    return Filter(name, NgramClassifier.load(model), Between(least, most))


def _privacy(tagger: str = "", labelled: str = "", most: float = float("inf"), *, field: str = "text") -> Privacy:
    """Masks by patterns and a tagger: one that was saved, or is learned from ``spans`` (start, end, kind) and saved."""
    if not tagger:
        return Privacy(most=most)
    if labelled and not Path(tagger).exists():
        found = _documents(labelled, field)
        spans = [[(int(a), int(b), str(kind)) for a, b, kind in d.fields.get("spans", ())] for d in found]
        PrivacyTagger().fit([d.text for d in found], spans).save(tagger)
    return Privacy(PrivacyTagger.load(tagger), most=most)


def _language_model(model: str, train: str, field: str) -> Any:
    """An n-gram model: saved, or learned from texts and saved, or of KenLM; or else a causal language model."""
    if train and not Path(model).exists():
        NGramModel().fit(_texts(train, field)).save(model)
    if model.endswith(".npz"):
        return NGramModel.load(model)
    if is_kenlm(model):
        return KenLMModel(model)
    return ArpaModel(model) if model.endswith((".arpa", ".gz")) else TransformersModel(model)


def _within(
    name: str, scorer: Perplexity | ErrorLength, low: float | None, high: float | None, sample: str, field: str
) -> Filter:
    """Scores from ``low`` to ``high``; the middle third of a sample where neither is given."""
    if low is None and high is None:
        if not sample:
            raise InputError("it has neither low, high nor a sample to take the middle third of")
        low, high = thirds(scorer.score(_texts(sample, field)))
    return Filter(name, scorer, Between(-math.inf if low is None else low, math.inf if high is None else high))


def _perplexity(
    model: str,
    low: float | None = None,
    high: float | None = None,
    sample: str = "",
    train: str = "",
    longest: int = 5000,
    *,
    field: str = "text",
) -> Filter:
    """Mean log-probability of a token."""
    return _within("perplexity", Perplexity(_language_model(model, train, field), longest), low, high, sample, field)


def _el2n(
    model: str,
    low: float | None = None,
    high: float | None = None,
    sample: str = "",
    train: str = "",
    longest: int = 1000,
    *,
    field: str = "text",
) -> Filter:
    """Mean length of a token's error vector."""
    return _within("el2n", ErrorLength([_language_model(model, train, field)], longest), low, high, sample, field)


def _educational(
    model: str, least: float = 3.0, sample: str = "", rater: str = "", endpoint: str = "", *, field: str = "text"
) -> Filter:
    """A rating model that was saved, or is learned from a sample that a large model rates, and saved."""
    if sample and not Path(model).exists():
        EducationalQuality().fit(_texts(sample, field), OpenAIModel(rater, endpoint or None)).save(model)
    return Filter("educational_quality", EducationalQuality.load(model), Threshold(least))


def _semantic(least: float = 0.95, index: str | None = None, longest: int = 4000) -> SemanticDedup:
    return SemanticDedup(least, index=index, longest=longest)


def _d4(share: float, least: float = 0.95, n_clusters: int = 100, longest: int = 4000, seed: int = 1) -> D4:
    return D4(share, least, n_clusters, longest=longest, seed=seed)


def _resampling(like: str, n: int, seed: int = 0, *, field: str = "text") -> ImportanceResampling:
    """So many documents, drawn with probabilities like the target's."""
    return ImportanceResampling(_texts(like, field), n, seed)


def _picking(method: str) -> Callable[..., Picked]:
    """A step that looks at all documents at once."""

    def by_text(like: str, n: int, seed: int = 0, *, field: str = "text") -> Picked:
        return Picked(method, pick(method, n, seed=seed), _documents(like, field))

    def by_model(
        like: str, n: int, model: str, answer: str = "answer", seed: int = 0, *, field: str = "text"
    ) -> Picked:
        return Picked(method, pick(method, n, model=model, answer=answer, seed=seed), _documents(like, field))

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
