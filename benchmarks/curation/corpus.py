"""Make a corpus of the texts on this machine: manuals, notes, licences, sources, translations, and planted copies."""

from __future__ import annotations

import gettext
import gzip
import hashlib
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Run

__all__ = ["Corpus", "corpus"]

N_DOCUMENTS, N_EXACT, N_EDITED = 100_000, 6_000, 2_000
LEVELS = (0.01, 0.02, 0.04, 0.08)
N_SHARDS = 8
VERSION = 4
_LANGUAGES = frozenset(
    [
        "cs",
        "da",
        "de",
        "el",
        "es",
        "fi",
        "fr",
        "hu",
        "id",
        "it",
        "ja",
        "ko",
        "nb",
        "nl",
        "pl",
        "pt",
        "ro",
        "ru",
        "sk",
        "sl",
        "sr",
        "sv",
        "tr",
        "uk",
        "vi",
        "zh",
        "ca",
        "eo",
        "et",
        "ga",
        "gl",
        "hr",
        "lt",
        "lv",
        "bg",
        "he",
        "ar",
        "fa",
        "hi",
        "ta",
        "te",
        "th",
    ]
)
_MACRO = re.compile(r"^[.'].*$|\\f[A-Z]|\\[&|^c]|\\s[-+]?\d", re.MULTILINE)


@dataclass(frozen=True)
class Corpus:
    """Files of the corpus, and what is known of it.

    Parameters
    ----------
    files : list of Path
        JSON lines: id, text, lang ("" where unknown), kind.
    pairs : dict
        By share of words edited ("0" for exact): pairs of document numbers.
    n_bytes, n_documents : int
        Size.
    """

    files: list[Path]
    pairs: dict[str, list[tuple[int, int]]]
    n_bytes: int
    n_documents: int

    def documents(self) -> Iterator[dict[str, Any]]:
        """Every document, in order."""
        for path in self.files:
            with path.open("rb") as lines:
                for line in lines:
                    yield json.loads(line)


def corpus(run: Run) -> Corpus:
    """The corpus, made once and cached outside the repository; a tenth of it in quick runs."""
    share = 10 if run.quick else 1
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pilotfish" / "benchmarks"
    folder = home / f"corpus-{VERSION}-{N_DOCUMENTS // share}"
    about = folder / "about.json"
    if not about.exists():
        print(f"making the corpus under {folder}", file=sys.stderr, flush=True)
        _make(folder, share, run)
    known = json.loads(about.read_text(encoding="utf-8"))
    pairs = {level: [(a, b) for a, b in found] for level, found in known["pairs"].items()}
    return Corpus(sorted(folder.glob("*.jsonl")), pairs, known["n_bytes"], known["n_documents"])


def _make(folder: Path, share: int, run: Run) -> None:
    n, n_exact, n_edited = N_DOCUMENTS // share, N_EXACT // share, N_EDITED // share
    n_base = n - n_exact - n_edited * len(LEVELS)
    base = []
    for document in _pieces(run):
        digest = hashlib.blake2b(document["text"].encode("utf-8", "replace"), digest_size=8).hexdigest()
        base.append((digest, document))
    base = list(dict(base).items())
    base.sort(key=lambda item: item[0])
    documents = [document for _, document in base[:n_base]]
    rng = np.random.default_rng(0)
    words = [word for d in documents[:2000] for word in d["text"].split() if word.isalpha()]
    long = [i for i, d in enumerate(documents) if len(d["text"].split()) >= 60]
    chosen = rng.choice(len(long), min(len(long), n_exact + n_edited * len(LEVELS)), replace=False)
    planted: dict[str, list[tuple[int, int]]] = {}
    copies = []
    for k, place in enumerate(chosen):
        source = long[place]
        level = 0.0 if k < n_exact else LEVELS[(k - n_exact) // n_edited % len(LEVELS)]
        text = documents[source]["text"]
        copies.append((source, level, {**documents[source], "text": _edited(text, level, words, rng)}))
    order = rng.permutation(len(documents) + len(copies))
    place_of = np.empty_like(order)
    place_of[order] = np.arange(order.size)
    for k, (source, level, _) in enumerate(copies):
        pair = sorted((int(place_of[source]), int(place_of[len(documents) + k])))
        planted.setdefault(f"{level:g}", []).append((pair[0], pair[1]))
    everything = documents + [copy for _, _, copy in copies]
    folder.mkdir(parents=True, exist_ok=True)
    n_bytes = 0
    for s, part in enumerate(np.array_split(order, N_SHARDS)):
        with (folder / f"{s:02d}.jsonl").open("w", encoding="utf-8") as file:
            for i in part:
                document = everything[i]
                n_bytes += len(document["text"].encode("utf-8", "replace"))
                file.write(json.dumps({"id": f"d{place_of[i]}", **document}, ensure_ascii=False) + "\n")
    about = {"pairs": planted, "n_bytes": n_bytes, "n_documents": len(everything)}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _edited(text: str, level: float, words: list[str], rng: np.random.Generator) -> str:
    parts = re.split(r"(\s+)", text)
    at = [i for i, part in enumerate(parts) if part and not part.isspace()]
    for i in rng.choice(len(at), round(level * len(at)), replace=False):
        parts[at[i]] = words[rng.integers(len(words))]
    return "".join(parts)


def _pieces(run: Run) -> Iterator[dict[str, Any]]:
    """Texts of this machine and of the shared data, cut at empty lines to some thousand characters."""
    for text, lang, kind in _texts(run):
        text = text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")
        piece: list[str] = []
        size = 0
        limit = 600 + int(hashlib.blake2b(text[:200].encode(), digest_size=2).hexdigest(), 16) % 2500
        for paragraph in re.split(r"\n\s*\n", text):
            piece.append(paragraph)
            size += len(paragraph)
            if size > limit:
                yield {"text": "\n\n".join(piece)[:20_000], "lang": lang, "kind": kind}
                piece, size = [], 0
        if size > 200:
            yield {"text": "\n\n".join(piece)[:20_000], "lang": lang, "kind": kind}


def _texts(run: Run) -> Iterator[tuple[str, str, str]]:
    for name, field in (("c4_sample/c4", "input"), ("c4_sample/toy_pile", "contents"), ("text_corpora/brown", "text")):
        for row in run.rows(f"{name}.jsonl.gz"):
            yield row[field], "en" if name != "c4_sample/toy_pile" else "", "shared"
    for name in ("abc", "inaugural", "state_union"):
        for row in run.rows(f"text_corpora/{name}.jsonl.gz"):
            yield row["text"], "en", "shared"
    for row in _grouped_sentences(run):
        yield row
    man = Path("/usr/share/man")
    for path in sorted(man.rglob("*.gz")) if man.is_dir() else ():
        top = path.relative_to(man).parts[0]
        lang = "en" if top.startswith("man") else top.split(".")[0].split("_")[0].split("@")[0]
        if not path.is_symlink() and (lang == "en" or lang in _LANGUAGES):
            yield _MACRO.sub("", _read(path)), lang, "manual"
    doc = Path("/usr/share/doc")
    for path in sorted(doc.rglob("*")) if doc.is_dir() else ():
        if path.is_file() and not path.is_symlink() and path.suffix in ("", ".gz", ".txt", ".md", ".rst"):
            prose = path.name.startswith(("copyright", "README", "LICENSE")) or path.suffix in (".md", ".rst", ".txt")
            yield _read(path), "en" if prose else "", "notes"
    for root in sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}):
        for path in sorted(Path(root).rglob("*")):
            if path.suffix in (".md", ".rst", ".txt", ".py") or path.name in ("METADATA", "LICENSE"):
                yield _read(path), "", "package"
    locale = Path("/usr/share/locale")
    for path in sorted(locale.glob("*/LC_MESSAGES/*.mo")) if locale.is_dir() else ():
        lang = path.relative_to(locale).parts[0].split("_")[0].split("@")[0]
        if lang in _LANGUAGES:
            yield _translations(path), lang, "translation"


def _grouped_sentences(run: Run) -> Iterator[tuple[str, str, str]]:
    """Sentences of 75 languages, forty to a document."""
    found: dict[str, list[str]] = {}
    for row in run.rows("langid_lingua75/sentences.jsonl.gz"):
        found.setdefault(row["lang"], []).append(row["text"])
    for lang, sentences in sorted(found.items()):
        for start in range(0, len(sentences) - 20, 40):
            yield "\n".join(sentences[start : start + 40]), lang, "sentences"


def _read(path: Path) -> str:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return content[:400_000].decode("utf-8")
    except (OSError, UnicodeDecodeError, EOFError):
        return ""


def _translations(path: Path) -> str:
    try:
        with path.open("rb") as file:
            catalog = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    except (OSError, UnicodeDecodeError, ValueError):
        return ""
    said = [text for key, text in catalog.items() if isinstance(text, str) and isinstance(key, str) and len(key) > 25]
    return "\n\n".join("\n".join(said[i : i + 12]) for i in range(0, len(said), 12))
