"""Recipes: the steps of a run as a TOML file."""

from __future__ import annotations

import importlib
import inspect
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pilotfish.curation.dedup import ExactDedup, MinHashDedup
from pilotfish.curation.language import Language, LanguageIdentifier
from pilotfish.curation.run import AnyStep, Settings
from pilotfish.curation.steps import OwnRule, Rules
from pilotfish.errors import ConfigError, InputError

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
    source : str
        The text it was read from.

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
    source: str = ""

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe file; paths in it are relative to its folder.

        Raises
        ------
        ConfigError
            When the file is missing, is no TOML, or has a key or value that is wrong.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
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
        made = tuple(_step(i + 1, dict(options), folder) for i, options in enumerate(steps))
        return cls(made, Settings(**data), text)


def _step(number: int, options: dict[str, Any], folder: Path) -> AnyStep:
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
    for key in _PATHS & set(options):
        options[key] = str(folder / options[key])
    try:
        return make(**options)
    except (TypeError, AttributeError, InputError) as error:
        raise ConfigError(f"Step {number} ({name}) cannot be made ({error}): mend its keys.") from error


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
        words = Path(blocked_words).read_text(encoding="utf-8").split()
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
    languages: str | list[str] | dict[str, float], least: float = 0.65, model: str = "lid.176", longest: int = 1000
) -> Language:
    return Language(languages, least, LanguageIdentifier(model, longest))


_PATHS = {"index", "blocked_words", "curated", "raw", "labelled"}
_STEPS: dict[str, Callable[..., AnyStep]] = {
    "rules": _rules,
    "python": _python,
    "language": _language,
    "exact_dedup": ExactDedup,
    "minhash_dedup": MinHashDedup,
}
