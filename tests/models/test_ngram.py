from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.errors import InputError, NotFittedError
from pilotfish.models.ngram import NGramModel
from pilotfish.types import Request

LONG = "the cat sat on the mat and then the other cat sat on the hat that the first cat had on that day"
TEXTS = [
    *(LONG[i : i + 30] for i in range(0, 80, 7)),
    "abracadabra",
    "abba",
    "cab",
    "a",
    "",
    "bacab bacab",
    "abracadabra!",
    "dada cadabra",
]


class Reference:
    """Modified interpolated Kneser-Ney written straight from its definition, with dictionaries."""

    def __init__(self, texts: list[str], order: int) -> None:
        self.order = order
        rows = [["<s>"] * (order - 1) + list(t) + ["</s>"] for t in texts]
        self.size = len({c for t in texts for c in t}) + 2
        self.counts: list[Counter[tuple[str, ...]]] = []
        for n in range(1, order + 1):
            if n == order:
                grams = [tuple(r[i - n + 1 : i + 1]) for r in rows for i in range(order - 1, len(r))]
                self.counts.append(Counter(grams))
            else:
                longer = {tuple(r[i - n : i + 1]) for r in rows for i in range(order - 1, len(r))}
                self.counts.append(Counter(g[1:] for g in longer))
        self.discounts = []
        for counts in self.counts:
            n1, n2, n3, n4 = (sum(v == k for v in counts.values()) for k in (1, 2, 3, 4))
            if 0 in (n1, n2, n3, n4):
                self.discounts.append([0.5, 1.0, 1.5])
                continue
            y = n1 / (n1 + 2 * n2)
            d = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            self.discounts.append([min(max(x, 0.05), k - 0.05) for k, x in enumerate(d, 1)])

    def probability(self, context: tuple[str, ...], token: str) -> float:
        p = 1 / self.size
        for n in range(1, self.order + 1):
            c = context[len(context) - n + 1 :]
            followers = {g[-1]: v for g, v in self.counts[n - 1].items() if g[:-1] == c}
            if not followers:
                return p
            total = sum(followers.values())
            d = self.discounts[n - 1]
            left = sum(d[min(v, 3) - 1] for v in followers.values()) / total
            own = followers.get(token, 0)
            p = ((own - d[min(own, 3) - 1]) / total if own else 0.0) + left * p
        return p

    def log_prob(self, text: str) -> list[float]:
        row = ["<s>"] * (self.order - 1) + list(text) + ["</s>"]
        return [
            math.log(self.probability(tuple(row[i - self.order + 1 : i]), row[i]))
            for i in range(self.order - 1, len(row))
        ]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_are_those_of_the_definition(order: int) -> None:
    model, reference = NGramModel(order, "char").fit(TEXTS), Reference(TEXTS, order)
    for text in [*TEXTS, "xyz", "abcabc", "dab!"]:
        assert model.log_prob(text) == pytest.approx(reference.log_prob(text), rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text("abc", max_size=8), min_size=1, max_size=6), st.text("abcx", max_size=6), st.integers(1, 4))
def test_distributions_sum_to_one_and_agree_with_log_prob(texts: list[str], prefix: str, order: int) -> None:
    model = NGramModel(order, "char").fit(texts)
    p = model.distribution(prefix)
    assert p.sum() == pytest.approx(1)
    assert p[0] == 0
    assert p[1:].min() > 0
    assert np.log(p[1]) == pytest.approx(model.log_prob(prefix)[-1])


def test_a_bigram_by_hand() -> None:
    # After a come b, b and c. Distinct tokens before a, b and c: one each, before the end: two. Five can be written.
    # So little text has the discounts 0.5 for a count of one and 1 for a count of two.
    model = NGramModel(2, "char").fit(["ab", "ab", "ac"])
    unigram = (1 - 0.5) / 5 + (3 * 0.5 + 1) / 5 / 5
    expected = (2 - 1) / 3 + (1 + 0.5) / 3 * unigram
    assert model.distribution("a")[model.vocabulary_.index("b")] == pytest.approx(expected)


def test_real_text_is_likelier_than_shuffled_text(data_dir: Path) -> None:
    import gzip
    import json

    with gzip.open(data_dir / "sst2" / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    key = "text" if "text" in rows[0] else "content"
    texts = [row[key] for row in rows]
    model = NGramModel(3, min_count=2).fit(texts[:5000])
    rng = np.random.default_rng(0)
    held = texts[5000:5500]
    shuffled = [" ".join(rng.permutation(text.split())) for text in held]
    unigram = NGramModel(1, min_count=2).fit(texts[:5000])
    assert model.perplexity(held) < unigram.perplexity(held) * 0.8
    assert model.perplexity(held) < model.perplexity(shuffled) * 0.8


def test_sampling_follows_the_distribution() -> None:
    model = NGramModel(2, "char").fit(TEXTS)
    first = Counter(model.sample(n_tokens=1, seed=i) for i in range(4000))
    p = model.distribution()
    p[2] = 0
    for token, share in zip(model.vocabulary_[3:], p[3:] / p.sum(), strict=True):
        assert first[token] / 4000 == pytest.approx(share, abs=4 * math.sqrt(share / 4000) + 1e-3)


def test_it_is_a_model() -> None:
    model = NGramModel(4, "char").fit(["hello world"] * 3)
    (reply,) = model.generate([Request.of("hello w", temperature=0, log_probs=0)])
    assert reply.text == "orld"
    assert reply.finish_reason == "stop"
    assert [t.token for t in reply.log_probs] == list("orld")
    words = NGramModel(3).fit(["Yes, of course."])
    assert words.sample("Yes", temperature=0) == ", of course."


def test_saving_and_loading(tmp_path: Path) -> None:
    model = NGramModel(3, "char", min_count=2).fit(TEXTS)
    model.save(tmp_path / "m.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]
    loaded = NGramModel.load(tmp_path / "m.npz")
    assert loaded.log_prob("abracax").tolist() == model.log_prob("abracax").tolist()
    assert loaded.vocabulary_ == model.vocabulary_
    (tmp_path / "bad.npz").write_bytes(b"garbage")
    with pytest.raises(InputError, match="no saved n-gram model"):
        NGramModel.load(tmp_path / "bad.npz")


def test_bad_input_is_told() -> None:
    with pytest.raises(InputError, match="at least one"):
        NGramModel().fit([])
    with pytest.raises(InputError, match="order 0"):
        NGramModel(0).fit(["a"])
    with pytest.raises(NotFittedError):
        NGramModel().log_prob("a")


def test_rare_tokens_are_one_unknown_token() -> None:
    model = NGramModel(2, min_count=2).fit(["a b", "a c", "a d"])
    assert model.vocabulary_[3:] == ["a"]
    counts: dict[str, float] = defaultdict(float)
    for token in ("b", "c", "zebra"):
        counts[token] = float(model.log_prob(f"a {token}")[1])
    assert len(set(counts.values())) == 1
