"""The small cross-encoder: it learns a rule from examples, and runs as it was trained."""

from __future__ import annotations

import numpy as np
import pytest

from pilotfish.errors import InputError
from pilotfish.scorers.entailment import SmallEntailment, joined
from pilotfish.training.entailment import Inference, _logits, corrupted, train_entailment
from tests.toy_encoder import write_toy_encoder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    pytest.importorskip("torch").set_num_threads(1)
    pytest.importorskip("transformers")
    return write_toy_encoder(tmp_path_factory.mktemp("toy") / "encoder")


def examples(n, seed=0):
    rng = np.random.default_rng(seed)
    who, what = ["man", "cat", "dog"], ["sleeps", "runs", "rests", "walks"]
    made = []
    for _ in range(n):
        a, b = rng.choice(who), rng.choice(what)
        kind = int(rng.integers(3))
        hypothesis = (f"the {a} {b}", f"the {a} is red", f"the {a} is not {b}")[kind]
        label = ("entailment", "not entailment", "contradiction")[kind]
        made.append(Inference(f"a {a} {b} on the mat .", hypothesis, label))
    return made


def test_it_learns_and_the_graph_gives_what_training_saw(base, tmp_path):
    folder = train_entailment(
        examples(400), tmp_path / "nli", base=base, n_epochs=3, n_frozen=0, learning_rate=3e-3, batch_tokens=400
    )
    test = examples(60, seed=1)
    p = SmallEntailment(folder).probabilities([(e.premise, e.hypothesis) for e in test])
    assert p.sum(axis=1) == pytest.approx(1.0)
    right = [row.argmax() == 0 if e.label == "entailment" else row.argmax() > 0 for row, e in zip(p, test, strict=True)]
    assert np.mean(right) > 0.95
    against = np.array([e.label == "contradiction" for e in test])
    assert p[against, 2].mean() > 0.8
    import torch
    import transformers
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    model = transformers.BertModel(transformers.BertConfig.from_json_file(str(folder / "config.json")), False).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    saved = load_file(folder / "head.safetensors")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.encode(joined(e.premise, e.hypothesis)).ids for e in test[:5]]
    with torch.inference_mode():
        logits = _logits(model, lambda x: x @ saved["weight"] + saved["bias"], ids)
    assert torch.softmax(logits, -1).numpy() == pytest.approx(p[:5], abs=1e-4)
    again = train_entailment(examples(100), tmp_path / "more", base=folder, n_epochs=1, learning_rate=1e-5)
    near = SmallEntailment(again).probabilities([(e.premise, e.hypothesis) for e in test])
    assert np.abs(near - p).mean() < 0.1
    assert not list(tmp_path.glob(".*"))


def test_bad_examples_are_refused(tmp_path):
    with pytest.raises(InputError, match="at least 100"):
        train_entailment(examples(10), tmp_path / "x")
    with pytest.raises(InputError, match="'maybe'"):
        train_entailment([Inference("a", "b", "maybe")] * 200, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_corrupted_examples_hold_or_do_not():
    document = " ".join(
        f"In {1900 + k} the town of Ashford built bridge number {k + 3} on the river. Later Maria Holt opened it."
        for k in range(8)
    )
    made = corrupted([document, "Too short."], 80)
    assert {e.label for e in made} == {"entailment", "not entailment"}
    for e in made:
        assert (e.hypothesis in e.premise) == (e.label == "entailment") or e.hypothesis in document
    assert corrupted(["Too short."], 10) == []
    assert made == corrupted([document, "Too short."], 80)
