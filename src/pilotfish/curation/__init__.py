"""Curation: what a large model learns from, chosen by rules and small models at the speed of the machine."""

from __future__ import annotations

from pilotfish.curation.dedup import ExactDedup, MinHashDedup
from pilotfish.curation.documents import Document
from pilotfish.curation.importance import ImportanceResampling
from pilotfish.curation.language import Language, LanguageIdentifier
from pilotfish.curation.run import Settings, curate, curate_files
from pilotfish.curation.semantic import D4, SemanticDedup
from pilotfish.curation.short_texts import ShortTexts
from pilotfish.curation.steps import Filter, OwnRule, Rules, TextRule
from pilotfish.curation.tally import Tally

__all__ = [
    "D4",
    "Document",
    "ExactDedup",
    "Filter",
    "ImportanceResampling",
    "Language",
    "LanguageIdentifier",
    "MinHashDedup",
    "OwnRule",
    "Rules",
    "SemanticDedup",
    "Settings",
    "ShortTexts",
    "Tally",
    "TextRule",
    "curate",
    "curate_files",
]
