"""Reading with a language model: a tiny random one against a plain computation, windows, and what does not fit."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from pilotfish.errors import InputError
from pilotfish.models.reading import CausalReader
from pilotfish.scorers.likelihood import BartScore, Binoculars, MachineText, NegativePerplexity
from pilotfish.types import Exchange, Reply, Request


class Tokens:
    """One token a word, by its length and first letter."""

    bos_token_id: int | None = 1
    pad_token_id = 0

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [2 + (ord(w[0]) * 7 + len(w)) % 28 for w in text.split()]}


class Others(Tokens):
    """Splits text otherwise."""

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [3]}


class Loaded:
    """A tiny random model that is there already."""

    def __init__(self, seed=0, bos=1, positions=64):
        torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=positions,
        )  # fmt: skip
        self.model = transformers.LlamaForCausalLM(config).eval()
        self.tokens = Tokens()
        self.tokens.bos_token_id = bos

    def _parts(self):
        return self.tokens, self.model


def plain(loaded, ids, first):
    """Log-probabilities, ranks, expectations and variances from the definition, one text at a time."""
    import torch

    with torch.inference_mode():
        logs = torch.log_softmax(loaded.model(torch.tensor([ids])).logits[0].float(), -1).double().numpy()
    rows = []
    for at in range(first, len(ids)):
        p, log = np.exp(logs[at - 1]), logs[at - 1]
        mean = (p * log).sum()
        rows.append((log[ids[at]], (log > log[ids[at]]).sum(), mean, (p * (log - mean) ** 2).sum()))
    return np.array(rows).T


@pytest.mark.parametrize("bos", [1, None])
def test_readings_are_the_definition_whatever_the_batch(bos):
    loaded = Loaded(bos=bos)
    reader = CausalReader(loaded, batch_tokens=40)
    texts = ["the cat sat on the mat", "a", "dogs run fast in spring and autumn", ""]
    prefixes = ["", "once upon a time", "said he", "x"]
    head = [1] if bos else []
    for text, prefix, found in zip(texts, prefixes, reader.read(texts, prefixes), strict=True):
        given = head + reader.tokens_of(prefix)
        ids = given + reader.tokens_of(text)
        expected = plain(loaded, ids, max(len(given), 1)) if text else np.empty((4, 0))
        for value, name in zip(expected, ("log_probs", "ranks", "expected", "variances"), strict=True):
            assert getattr(found, name) == pytest.approx(value, abs=1e-5)


def test_a_long_text_is_read_by_windows_every_token_once():
    reader = CausalReader(Loaded(positions=16), max_length=16)
    text = " ".join(f"w{'x' * (k % 9)}" for k in range(150))
    [found] = reader.read([text])
    assert found.log_probs.size == 150
    [start] = reader.read([" ".join(text.split()[:10])])
    assert found.log_probs[:10] == pytest.approx(start.log_probs, abs=1e-5)
    [cut] = reader.read(["a b c"], ["word " * 1000])
    assert cut.log_probs.size == 3


def test_many_texts_take_time_by_their_number(monkeypatch):
    monkeypatch.setattr("pilotfish.models.reading._statistics", lambda logits, ids: (ids.numpy(),) * 4)
    reader = CausalReader(Loaded(), batch_tokens=4096)
    texts = [f"{'x' * (k % 9)}a b" for k in range(30_000)]
    started = time.process_time()
    found = reader.read(texts)
    assert time.process_time() - started < 15  # a look at all texts for each of them takes a minute
    assert [r.ranks.tolist() for r in found[:20]] == [reader.tokens_of(text) for text in texts[:20]]


def test_scores_of_readings():
    loaded = Loaded()
    reader = CausalReader(loaded)
    asked = Request.of("Say it.")
    item = Exchange(asked, Reply("the cat sat"), ("a cat sat down", "it rains"))
    empty = Exchange(asked, Reply(""))
    joint = " then "

    def mean(given, text):
        head = [1, *reader.tokens_of(given + joint)]
        return plain(loaded, head + reader.tokens_of(text), len(head))[0].mean()

    precision = max(mean(r, "the cat sat") for r in item.references)
    recall = max(mean("the cat sat", r) for r in item.references)
    for direction, value in (("precision", precision), ("recall", recall), ("f", (precision + recall) / 2)):
        assert BartScore(reader, direction, joint).score([item, empty])[0] == pytest.approx(value, abs=1e-5)
    assert BartScore(reader, "faithfulness", joint).score([item])[0] == pytest.approx(
        mean("Say it.", "the cat sat"), abs=1e-5
    )
    log_probs, ranks, expected, variances = plain(loaded, [1, *reader.tokens_of("the cat sat")], 1)
    values = {
        "likelihood": log_probs.mean(),
        "rank": -ranks.mean(),
        "log_rank": -np.log1p(ranks).mean(),
        "curvature": (log_probs.sum() - expected.sum()) / math.sqrt(variances.sum()),
    }
    for kind, value in values.items():
        found = MachineText(reader, kind).score([item, empty])
        assert found[0] == pytest.approx(value, abs=1e-4)
        assert math.isnan(found[1])
    assert NegativePerplexity(reader).score([item])[0] == pytest.approx(-math.exp(-log_probs.mean()), rel=1e-5)
    for wrong in (lambda: BartScore(reader, "back").score([item]), lambda: MachineText(reader, "x").score([item])):
        with pytest.raises(InputError, match="use "):
            wrong()
    with pytest.raises(InputError, match="1 prefixes for 2 texts"):
        reader.read(["a", "b"], ["c"])


def test_binoculars_is_a_ratio_of_perplexity_to_cross_entropy():
    import torch

    first, second = Loaded(0), Loaded(1)
    performer, observer = CausalReader(first), CausalReader(second)
    ids = torch.tensor([[1, *performer.tokens_of("the cat sat on the mat")]])
    with torch.inference_mode():
        p, q = (torch.log_softmax(m.model(ids).logits[0, :-1].float(), -1) for m in (first, second))
    perplexity = -p.gather(1, ids[0, 1:, None]).mean()
    crossed = -(q.exp() * p).sum(-1).mean()
    items = [Exchange(Request.of("?"), Reply(t)) for t in ("the cat sat on the mat", "")]
    found = Binoculars(performer, observer).score(items)
    assert found[0] == pytest.approx(-float(perplexity / crossed), rel=1e-5)
    assert math.isnan(found[1])
    other = CausalReader(Loaded(2))
    other.model.tokens = type(
        "Other", (Tokens,), {"__call__": lambda self, text, add_special_tokens=True: {"input_ids": [3]}}
    )()
    with pytest.raises(InputError, match="different tokens"):
        Binoculars(performer, other).score(items)
