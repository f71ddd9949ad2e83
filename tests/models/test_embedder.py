from __future__ import annotations

import functools
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pilotfish.errors import InputError
from pilotfish.models.embedder import OnnxEmbedder, StaticEmbedder, build_onnx
from tests.models.encoders import encoder_states, toy_mpnet, toy_weights, unit
from tests.models.fixtures import pulled

TEXTS = [
    "I want to know why my card payment was declined this morning",
    "hi",
    "",
    "The quick brown fox jumps over the lazy dog, again and again and again, until the dog wakes up and barks.",
    "¿Dónde está mi tarjeta? 🙂 日本語",
    "word " * 400,
]


@pytest.fixture(scope="module")
def minilm() -> Path:
    return pulled("all-minilm-l6-v2")


def _run(path: Path, rows: list[list[int]]) -> NDArray[np.float32]:
    import onnxruntime

    longest = max(len(row) for row in rows)
    ids = np.array([row + [0] * (longest - len(row)) for row in rows], dtype=np.int32)
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], dtype=np.int32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})[0]
    return result


def test_the_graph_is_a_bert_encoder(tmp_path: Path) -> None:
    weights, config = toy_weights()
    rows = [[3, 7, 9, 2], [5, 1, 1, 40, 41, 42, 43], [8]]
    build_onnx(
        {"bert." + name: value for name, value in weights.items()},
        config,
        tmp_path / "m.onnx",
        poolings=["mean", "max@1"],
    )
    found = _run(tmp_path / "m.onnx", rows)
    for row, vector in zip(rows, found, strict=True):
        mean = unit(encoder_states(weights, row, 4, 2).mean(axis=0))
        greatest = unit(encoder_states(weights, row, 4, 1).max(axis=0))
        assert vector == pytest.approx(np.concatenate([mean, greatest]), abs=2e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_int8_is_close_and_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    weights, config = toy_weights(size=32)
    rows = [[3, 7, 9, 2], [5, 1, 1, 40, 41, 42, 43]]
    build_onnx(weights, config, tmp_path / "m.onnx", precision="int8")
    found = _run(tmp_path / "m.onnx", rows)
    for row, vector in zip(rows, found, strict=True):
        assert float(vector @ unit(encoder_states(weights, row, 4, 2).mean(axis=0))) > 0.99
        assert _run(tmp_path / "m.onnx", [row])[0] == pytest.approx(vector, abs=1e-6)


def test_a_wrong_architecture_is_told(tmp_path: Path) -> None:
    weights, config = toy_weights()
    with pytest.raises(InputError, match="hidden_act"):
        build_onnx(weights, {**config, "hidden_act": "relu"}, tmp_path / "m")
    with pytest.raises(InputError, match="no hidden_size"):
        build_onnx(weights, {"num_hidden_layers": 1, "num_attention_heads": 1, "layer_norm_eps": 0}, tmp_path / "m")
    with pytest.raises(InputError, match=r"mean@3"):
        build_onnx(weights, config, tmp_path / "m", poolings=["mean@3"])
    del weights["encoder.layer.1.output.dense.bias"]
    with pytest.raises(InputError, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        build_onnx(weights, config, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_an_mpnet_encoder_equals_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model, config, rows = toy_mpnet(32, 3, 4, 48)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    for poolings in (["mean", "mean@2"], ["max@1"]):
        build_onnx(weights, config.to_dict(), tmp_path / "m.onnx", poolings=poolings)
        found = _run(tmp_path / "m.onnx", rows)
        for row, vector in zip(rows, found, strict=True):
            with torch.inference_mode():
                states = model(torch.tensor([row]), output_hidden_states=True).hidden_states
            layers = [states[int(pooling.partition("@")[2] or 3)][0] for pooling in poolings]
            parts = [layer.max(0).values if "max" in poolings[0] else layer.mean(0) for layer in layers]
            assert np.abs(vector - torch.cat([part / part.norm() for part in parts]).numpy()).max() < 2e-6
    build_onnx(weights, config.to_dict(), tmp_path / "m8.onnx", precision="int8", poolings=["max@1"], calibration=rows)
    assert (_run(tmp_path / "m8.onnx", rows) * found).sum(axis=1).min() > 0.995


@pytest.mark.filterwarnings("ignore")
def test_fp32_equals_transformers(minilm: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    expected = []
    with torch.inference_mode():
        for text in TEXTS:
            inputs = tokenizer([text], return_tensors="pt", truncation=True, max_length=256, padding=False)
            states = model(**inputs, output_hidden_states=True).hidden_states
            parts = [states[6][0].mean(0), states[6][0].max(0).values, states[3][0].mean(0)]
            expected.append(torch.cat([part / part.norm() for part in parts]).numpy())
    found = OnnxEmbedder(poolings=("mean", "max", "mean@3")).embed(TEXTS)
    assert np.abs(found - np.array(expected)).max() < 2e-6


def test_int8_keeps_the_directions_and_neighbours(minilm: Path, data_dir: Path) -> None:
    import gzip

    with gzip.open(data_dir / "banking77" / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for _, line in zip(range(200), lines, strict=False)]
    exact, rounded = (OnnxEmbedder(precision=p).embed(texts) for p in ("fp32", "int8"))
    cosines = (exact * rounded).sum(axis=1)
    assert cosines.mean() > 0.997
    assert cosines.min() > 0.99
    nearest = [np.argsort(-(v @ v.T) + 9 * np.eye(200), axis=1)[:, 0] for v in (exact, rounded)]
    assert (nearest[0] == nearest[1]).mean() > 0.85


def test_static_vectors_equal_the_original_package(tmp_path: Path) -> None:
    wordllama = pytest.importorskip("wordllama")
    folder = pulled("wordllama")
    for kind, file, name in (
        ("weights", "model.safetensors", "l2_supercat_256.safetensors"),
        ("tokenizers", "tokenizer.json", "l2_supercat_tokenizer_config.json"),
    ):
        (tmp_path / kind).mkdir()
        shutil.copy(folder / file, tmp_path / kind / name)
    theirs = wordllama.WordLlama.load(cache_dir=tmp_path, disable_download=True)
    texts = [text for text in TEXTS if text]
    assert np.abs(StaticEmbedder().embed(texts) - theirs.embed(texts, norm=True)).max() < 1e-6


def test_the_graph_is_kept_beside_the_weights_and_follows_them(minilm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        shutil.copy(minilm / name, folder / name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    built = folder / "pilotfish-fp32-mean.onnx"
    first = OnnxEmbedder(folder).embed(["hello"])
    written = built.stat().st_mtime_ns
    assert np.array_equal(OnnxEmbedder(folder).embed(["hello"]), first)
    assert built.stat().st_mtime_ns == written
    built.write_bytes(b"damaged")
    assert np.array_equal(OnnxEmbedder(folder).embed(["hello"]), first)
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    (folder / "model.safetensors").touch()
    assert not np.allclose(OnnxEmbedder(folder).embed(["hello"]), first)
    assert np.array_equal(OnnxEmbedder(built).embed(["hello"]), OnnxEmbedder(folder).embed(["hello"]))
    longest = OnnxEmbedder(built, max_length=10_000).embed(["word " * 9000, "word " * 510])
    assert np.array_equal(longest[0], longest[1])
    copy = pickle.loads(pickle.dumps(OnnxEmbedder(folder, max_length=9)))
    assert (copy.max_length, copy.model) == (9, folder)


def test_a_folder_that_cannot_be_written_does(minilm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        (folder / name).symlink_to(minilm / name)
    (folder / "pilotfish-fp32-mean@0.onnx").mkdir()
    assert OnnxEmbedder(folder, poolings=("mean@0",)).embed(["hello"]).shape == (1, 384)


def test_bad_input_is_told(minilm: Path) -> None:
    embedder = OnnxEmbedder()
    with pytest.raises(InputError, match="list"):
        embedder.embed("one text")
    with pytest.raises(InputError, match=r"texts\[1\] is a NoneType"):
        embedder.embed(["a", None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="precision"):
        OnnxEmbedder(precision="int4").embed(["a"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_length"):
        OnnxEmbedder(max_length=2).embed(["a"])
    with pytest.raises(InputError, match="neither a path"):
        OnnxEmbedder("no-such-model").embed(["a"])


@functools.cache
def _static() -> StaticEmbedder:
    return StaticEmbedder(pulled("wordllama"))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet=st.sampled_from("ab e.,'\n\t\u2581 é日🙂<s>/"), max_size=40), min_size=2, max_size=4))
def test_a_text_alone_has_the_vector_it_has_in_a_batch(texts: list[str]) -> None:
    embedder = _static()
    together = embedder.embed([*TEXTS, *texts])
    for text, vector in zip([*TEXTS, *texts], together, strict=True):
        np.testing.assert_allclose(embedder.embed([text])[0], vector, atol=1e-6)
