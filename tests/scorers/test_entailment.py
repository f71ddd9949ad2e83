"""Entailment models of few labels and small windows, and what reads with them."""

from __future__ import annotations

import numpy as np
import pytest

from pilotfish.scorers.entailment import HubEntailment
from pilotfish.scorers.selfcheck import SelfCheck, SemanticEntropy
from pilotfish.types import Exchange, Reply, Request


@pytest.fixture(scope="module")
def two_labels(tmp_path_factory):
    """A cross-encoder of two labels and 32 positions, whose tokenizer does not state its window."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("cross") / "encoder"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sleeps", "word", "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=32, id2label={0: "entailment", 1: "not_entailment"},
        label2id={"entailment": 0, "not_entailment": 1},
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return HubEntailment(folder)


def test_pairs_beyond_the_window_of_a_model_are_cut(two_labels):
    long, short = "word " * 300, "the cat sleeps ."
    found = two_labels.probabilities([(long, short), (short, long), (long, long), ("", ""), (short, short)])
    assert found.shape == (5, 3)
    assert np.allclose(found.sum(axis=1), 1)
    assert np.allclose(found[-1], two_labels.probabilities([(short, short)])[0], atol=1e-6)


def test_a_model_of_two_labels_says_what_does_not_follow(two_labels):
    said = Exchange(Request.of("?"), Reply("the cat sleeps ."), samples=(Reply("the word ."), Reply("cat .")))
    follows = two_labels.probabilities([(s.text, said.reply.text) for s in said.samples])[:, 0]
    assert SelfCheck(entailment=two_labels).score([said]) == pytest.approx([follows.mean()])


class Small:
    """Sees so many characters of a pair, the hypothesis first; a text follows where both end alike."""

    def probabilities(self, pairs):
        seen = [f"{hypothesis}|{premise}"[:1000].split("|") for premise, hypothesis in pairs]
        same = np.array([float(a.split()[-1:] == b.split()[-1:]) for a, b in seen])
        return np.column_stack([same, 1 - same, 0 * same])


def test_answers_to_long_questions_are_told_apart_by_a_small_window():
    asked = Request.of("It was told at length. " * 100 + "Which town?")
    item = Exchange(asked, Reply("Lima"), samples=(Reply("In Lima"), Reply("Oslo"), Reply("In Oslo")))
    metric = SemanticEntropy(Small())
    assert metric.score([item]) == pytest.approx([-np.log(2)])
    assert metric.detail_ == [[0, 0, 1, 1]]
