"""Texts that the tests of curation share."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "have",
    "with",
    "that",
    "be",
    "river",
    "mountain",
    "small",
    "model",
    "large",
    "data",
    "reads",
    "writes",
    "keeps",
    "clean",
    "water",
    "fish",
    "shark",
    "swims",
    "beside",
    "every",
    "morning",
    "light",
    "answers",
    "question",
    "teacher",
    "student",
    "learns",
    "slowly",
    "quickly",
    "paper",
    "city",
    "garden",
    "winter",
]


def prose(seed: int, n_sentences: int = 12) -> str:
    rng = random.Random(seed)
    lines = []
    for _ in range(n_sentences):
        words = [rng.choice(WORDS) for _ in range(rng.randint(9, 16))]
        words[rng.randrange(len(words))] = f"item{rng.randrange(10_000)}"
        lines.append(" ".join(words).capitalize() + ".")
    return " ".join(lines[: n_sentences // 2]) + "\n" + " ".join(lines[n_sentences // 2 :])


def edited(text: str, n: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    words = text.split(" ")
    for i in rng.sample(range(len(words)), n):
        words[i] = "changed"
    return " ".join(words)


def write_lines(path: Path, texts: list[str], first: int = 0) -> Path:
    rows = [json.dumps({"id": f"d{first + i}", "text": text}) for i, text in enumerate(texts)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def kept_ids(folder: Path) -> list[str]:
    return [json.loads(line)["id"] for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
