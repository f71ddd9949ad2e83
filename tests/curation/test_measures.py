"""The kernels against the plainest Python for the same measures, and against words split by hand."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.curation.characters import tables
from pilotfish.curation.ngrams import hash_words, permutations
from pilotfish.curation.scan import Batch, Plan, Signing
from pilotfish.curation.steps import Rules
from pilotfish.curation.words import decode, split_words
from tests.curation.texts import prose

ODD = [
    "",
    "\n",
    "\n\n\n",
    " \n\t\n ",
    "a",
    "one\n\ntwo\n\none\n\none",
    "x\r\ny\r\n",
    "line one...\nline two…\n- bullet\n• b",
    "同じ 文。同じ 文。\nעברית and English مرحبا.",
    "nul\x00byte and \x85 next\u2028line",
    "[12] Said so before.[3][edit]\n",
    "This line is here to stay. And this.\nuses cookies and more words here.\nThe javascript must be enabled now.",
    "word " * 300,
    "\x85\n",
    "a\r\n\x0b\nb",
    "Lorem ipsum dolor sit amet, it goes on and on.",
    "a function { returns one thing. }",
]


def words_of(text: str) -> list[str]:
    buffer = np.frombuffer(text.encode(), np.uint8)
    n = buffer.size + 1
    codes, kinds = np.empty(n, np.uint32), np.empty(n, np.uint16)
    starts, ends, hashes = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.uint64)
    count = split_words(codes, kinds, decode(buffer, 0, buffer.size, tables()[0], codes, kinds), starts, ends, hashes)
    assert (
        hash_words([text[a:b] for a, b in zip(starts[:count], ends[:count], strict=True)]) == np.unique(hashes[:count])
    ).all()
    return [text[a:b] for a, b in zip(starts[:count], ends[:count], strict=True)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't stop, can't he'd", ["do", "n't", "stop", ",", "ca", "n't", "he", "'d"]),
        ("The U.S. and Mr. Smith.", ["The", "U.S.", "and", "Mr.", "Smith", "."]),
        ("well-known (3.14%)...", ["well", "-", "known", "(", "3.14", "%", ")", "..."]),
        ("see http://a.org/b?c=1, or me@x.org.", ["see", "http://a.org/b?c=1", ",", "or", "me@x.org", "."]),
        ("x=y a/b foo.Bar", ["x", "=", "y", "a", "/", "b", "foo", ".", "Bar"]),
        ("dogs' “Élan”…", ["dogs", "'", "“", "Élan", "”", "…"]),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def repeated(parts: list[str]) -> tuple[int, int]:
    seen, n, size = set(), 0, 0
    for part in parts:
        n, size = (n + 1, size + len(part)) if part in seen else (n, size)
        seen.add(part)
    return n, size


def expected(text: str) -> dict[str, float]:
    words = words_of(text)
    lines = [line for line in text.split("\n") if line.strip()]
    out = {"characters": len(text), "words": len(words), "newlines": text.count("\n"), "hashes": text.count("#")}
    out["lines"] = len(text.splitlines())
    out["ellipses"] = text.count("...") + text.count("…")
    out["alphabetic_words"] = sum(any(c.isalpha() for c in w) for w in words)
    out["repeated_paragraphs"], out["repeated_paragraph_characters"] = repeated(re.split(r"\n{2,}", text.strip()))
    out["repeated_pieces"], out["repeated_piece_characters"] = repeated(re.split(r"\n+", text))
    out["filled_lines"], out["repeated_line_characters"] = len(lines), repeated(lines)[1]
    out["short_lines"] = sum(len(line) <= 30 for line in lines)
    for n in (2, 3, 4):
        grams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
        gram, count = grams.most_common(1)[0] if grams else ("", 0)
        out[f"top_{n}_grams"] = len(gram) * count
    for n in range(5, 11):
        seen, size, i = set(), 0, 0
        while i < len(words) - n + 1:
            gram = tuple(words[i : i + n])
            if gram in seen:
                size, i = size + sum(map(len, gram)), i + n
            else:
                seen.add(gram)
                i += 1
        out[f"repeated_{n}_grams"] = size
    return out


def check(texts: list[str]) -> None:
    batch = Batch(texts).scan(Plan(measures=True))
    for i, text in enumerate(texts):
        for name, value in expected(text).items():
            assert batch.column(name)[i] == value, (name, text)


def test_measures_of_odd_texts():
    check(ODD)


def test_measures_of_prose():
    check([prose(i, 20) + "\n\n" + prose(i % 3, 8) + "\n" + prose(i % 2, 4) for i in range(6)])


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab .\n-'#…é中\r\x85,"), max_size=120))
def test_measures_of_any_text(text):
    check([text])


def test_c4_lines():
    good = "This is a sentence of words. "
    texts = [
        good * 5,
        good * 4,
        good * 4 + "\nThe javascript goes on here.",
        good * 5 + "\nIt has {one} bracket.",
        good * 5 + "\nSome lorem ipsum stands here.",
        good * 4 + "\nThis one was said.[12]",
        good * 4 + "\nSee our privacy policy.",
    ]
    verdict = Rules.c4().judge(Batch(texts).scan(Plan(measures=True)), np.arange(len(texts)), [])
    said = ["" if kept else rule for kept, rule in zip(verdict.kept, verdict.rules, strict=True)]
    assert said == [
        "",
        "too_few_sentences",
        "too_few_sentences",
        "curly_bracket",
        "lorem_ipsum",
        "",
        "too_few_sentences",
    ]


def test_blocked_words_count_in_each_case():
    batch = Batch(["Bad bad BAD badly", "good"]).scan(Plan(measures=True, blocked={"bad"}))
    assert batch.column("blocked_words").tolist() == [3, 0]


def test_signatures_estimate_jaccard():
    a = [f"w{i}" for i in range(400)]
    texts = [" ".join(a), " ".join(a[:300] + [f"v{i}" for i in range(100)])]
    batch = Batch(texts).scan(Plan(signing=Signing(3, permutations(1000), 10)))
    grams = [{tuple(t.split()[i : i + 3]) for i in range(398)} for t in texts]
    true = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
    assert np.mean(batch.signatures[0] == batch.signatures[1]) == pytest.approx(true, abs=0.05)
    assert batch.n_grams.tolist() == [398, 398]


def test_one_pass_is_the_sum_of_its_parts():
    texts = [prose(i) for i in range(4)]
    weights = [np.linspace(-1, 1, 512, dtype=np.float32), np.ones(512, dtype=np.float32)]
    signing = Signing(5, permutations(16), 4)
    whole = Batch(texts).scan(Plan(measures=True, signing=signing, weights=weights))
    assert (whole.rows == Batch(texts).scan(Plan(measures=True)).rows).all()
    assert (whole.bands == Batch(texts).scan(Plan(signing=signing)).bands).all()
    n = [len(re.findall(r"\w+|[^\w\s]+", text)) for text in texts]
    assert whole.n_runs.tolist() == n
    assert whole.sums[:, 1] == pytest.approx([2 * k - 1 for k in n])
