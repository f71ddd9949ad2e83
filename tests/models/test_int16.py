"""Encoders in 16-bit products: near double precision, whatever the numbers; texts don't see each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.errors import InputError
from pilotfish.models import int16
from pilotfish.models.bert import build_onnx
from pilotfish.models.embedder import OnnxEmbedder
from pilotfish.models.int16 import Int16Encoder, can_read
from pilotfish.models.tiles import COLUMNS
from tests.models.encoders import encoder_states, toy_mpnet, toy_weights
from tests.models.fixtures import pulled
from tests.toy_encoder import write_toy_encoder

needs_instructions = pytest.mark.skipif(
    not can_read({"hidden_size": 4 * COLUMNS, "num_attention_heads": 4}), reason="this processor lacks the instructions"
)
ROWS = [[3, 7, 9, 2], [5, 1, 1, 40, 41, 42, 43], [8], list(range(31))]


def _unit_rows(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@needs_instructions
@pytest.mark.parametrize("n_layers", [0, 1, 2])
def test_the_vectors_are_those_of_a_bert_encoder(n_layers):
    weights, config = toy_weights(size=128)
    found = Int16Encoder(weights, config, n_layers).read(ROWS)
    for row, vectors in zip(ROWS, found, strict=True):
        assert np.abs(vectors - _unit_rows(encoder_states(weights, row, 4, n_layers))).max() < 2e-4
        assert np.array_equal(Int16Encoder(weights, config, n_layers).read([row])[0], vectors)


@needs_instructions
@pytest.mark.filterwarnings("ignore")
def test_an_mpnet_encoder_equals_transformers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model, config, rows = toy_mpnet(128, 2, 2, 192)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    for row, vectors in zip(rows, Int16Encoder(weights, config.to_dict()).read(rows), strict=True):
        with torch.inference_mode():
            wanted = model(torch.tensor([row])).last_hidden_state[0].numpy()
        assert np.abs(vectors - _unit_rows(wanted)).max() < 2e-4


@needs_instructions
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60), outlier=st.sampled_from([1.0, 1e3, 1e15]), sign=st.booleans()
)
def test_a_product_is_near_the_exact_one_whatever_the_numbers(seed, n, outlier, sign):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 192)).astype(np.float32)
    weight = rng.normal(size=(64, 192)).astype(np.float32)
    if sign:  # all products of one sign: the greatest sums there can be
        x, weight = np.abs(x), np.ones_like(weight)
    x[:, rng.integers(192)] *= np.float32(outlier)
    x[rng.integers(n)] = 0
    packed, steps = int16._rounded([weight])
    out, bias = np.empty((n, 64), np.float32), rng.normal(size=64).astype(np.float32)
    whole, room = np.empty((n, 192), np.int16), np.empty((len(steps), n), np.float32)
    int16._multiply(x, int16._aligned([packed])[0], steps, bias, whole, room, out)
    wanted = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    lengths = np.linalg.norm(x.astype(np.float64), axis=1)[:, None] * np.linalg.norm(weight, axis=1) + 1
    assert (np.abs(out - wanted) / lengths).max() < 2e-4


@needs_instructions
def test_real_vectors_are_near_those_of_fp32():
    pulled("all-minilm-l6-v2")
    exact, fast = (OnnxEmbedder(precision=p, poolings=("tokens@3",), n_threads=2) for p in ("fp32", "int16"))
    texts = ["", "The cat sleeps.", "words of a longer text " * 60, "日本 🙂"] * 40
    ids = exact.token_ids(texts)
    for a, b in zip(exact.token_vectors(ids), fast.token_vectors(ids), strict=True):
        assert (a * b).sum(axis=1).min() > 1 - 1e-5
    assert (fast.window, fast.n_dimensions) == (exact.window, exact.n_dimensions)


def test_what_this_machine_or_the_widths_do_not_allow_is_read_in_fp32(tmp_path: Path, monkeypatch):
    folder = write_toy_encoder(tmp_path / "encoder", size=128)
    assert not can_read({"hidden_size": 4 * COLUMNS + 4, "num_attention_heads": 4})
    assert not can_read({"hidden_size": 4 * COLUMNS, "num_attention_heads": 4, "intermediate_size": COLUMNS + 1})
    monkeypatch.setattr(int16, "HAS_SHORT", False)
    exact, same = (OnnxEmbedder(folder, precision=p, poolings=("tokens",)) for p in ("fp32", "int16"))
    ids = exact.token_ids(["the cat sleeps"])
    assert np.array_equal(exact.token_vectors(ids)[0], same.token_vectors(ids)[0])
    with pytest.raises(InputError, match=r"'int16'.*use fp32"):
        Int16Encoder(*toy_weights(size=128))


@needs_instructions
def test_bad_weights_are_told():
    weights, config = toy_weights(size=128)
    broken = {**weights, "encoder.layer.1.output.dense.weight": np.full((128, 384), np.nan, np.float32)}
    with pytest.raises(InputError, match="not finite"):
        Int16Encoder(broken, config)
    del weights["encoder.layer.1.output.dense.bias"]
    with pytest.raises(InputError, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        Int16Encoder(weights, config)


def test_int16_is_for_tokens(tmp_path: Path):
    with pytest.raises(InputError, match=r"'int16' and poolings \('mean',\): use \('tokens',\)"):
        OnnxEmbedder(write_toy_encoder(tmp_path / "a"), precision="int16").embed(["a"])
    weights, config = toy_weights()
    build_onnx(weights, config, tmp_path / "a" / "tokens.onnx", poolings=["tokens"])
    with pytest.raises(InputError, match="use token_vectors"):
        OnnxEmbedder(tmp_path / "a" / "tokens.onnx").embed(["a"])
