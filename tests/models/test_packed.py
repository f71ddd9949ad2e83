"""A packed model says what the plain one says; its caches are written in place, and no text shows in another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilotfish.models.packed import is_packed, packed
from pilotfish.models.sessions import TorchSession
from pilotfish.models.transformers import TransformersModel
from pilotfish.training.tuning import tune
from tests.decoding.small import tiny_model

TEXT = [i * 7 % 27 for i in range(90)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("packed") / "tiny")


@pytest.fixture(autouse=True, scope="module")
def every_layer() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pilotfish.models.packed._LARGE", 0)
        yield


@pytest.fixture(scope="module")
def networks(tiny: Path) -> tuple[Any, Any]:
    model = TransformersModel(tiny)
    return model._trainable()[1], model._parts()[1]


def test_passes_of_any_length_are_those_of_the_plain_model(networks: tuple[Any, Any]) -> None:
    plain, fast = networks
    assert is_packed(fast)
    assert not is_packed(plain)
    for lengths in ([1] * 6, [2, 5, 1, 9], [40, 3, 33, 1], [90]):
        one, other = (TorchSession(network, 128) for network in (plain, fast))
        start = 0
        for n in lengths:
            rows = [session.extend(TEXT[start : start + n]).log_probs() for session in (one, other)]
            assert rows[1] == pytest.approx(rows[0], abs=1e-4)
            start += n


@pytest.mark.parametrize("family", ["Gemma3Text", "Qwen2", "Mistral", "Phi3"])
def test_other_families_and_sliding_windows(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(
        vocab_size=29, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, max_position_embeddings=128, sliding_window=8, pad_token_id=0, eos_token_id=28,
    )  # fmt: skip
    network = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    one, other = TorchSession(network, 128), TorchSession(packed(network), 128)
    start = 0
    for n in (1, 1, 12, 3, 40, 5, 1):
        rows = [session.extend(TEXT[start : start + n]).log_probs() for session in (one, other)]
        assert rows[1] == pytest.approx(rows[0], abs=1e-4)
        start += n
        if n > 2:
            one.rewind(2)
            other.rewind(2)
            start -= 2


def test_generated_batches_are_those_of_the_plain_model(networks: tuple[Any, Any]) -> None:
    import torch

    ids = torch.tensor([TEXT[:6], [28, 28, *TEXT[6:10]]])
    mask = (ids != 28).long()
    made = [
        network.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=28).tolist()
        for network in networks
    ]
    assert made[0] == made[1]


def test_a_cache_is_written_in_place_and_a_fork_is_not(networks: tuple[Any, Any]) -> None:
    session = TorchSession(networks[1], 128)
    session.extend(TEXT[:5])

    def where() -> int:
        return int(session._cache.layers[0].keys.data_ptr())

    before = where()
    session.extend(TEXT[5:8])
    assert where() == before
    twin = session.fork()
    session.rewind(2)
    session.extend([1, 2, 3])
    wanted = TorchSession(networks[1], 128)
    wanted.extend(TEXT[:8])
    assert twin.extend([4]).log_probs() == pytest.approx(wanted.extend([4]).log_probs(), abs=1e-4)


def test_bfloat16_is_packed_where_the_processor_multiplies_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = TransformersModel(tiny, dtype="bfloat16")
    plain = model._trainable()[1]
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert packed(plain) is plain
    monkeypatch.undo()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no products of bfloat16")
    fast = packed(plain)
    assert is_packed(fast)
    ids = torch.tensor([TEXT[:40], TEXT[7:47]])
    with torch.inference_mode():
        one, other = (torch.log_softmax(network(ids).logits.float(), -1) for network in (plain, fast))
    assert (one - other).abs().max() < 0.05


def test_what_cannot_be_packed_is_left(tiny: Path) -> None:
    network = TransformersModel(tiny, dtype="float16")._parts()[1]
    assert not is_packed(network)
    assert packed(network) is network


def test_a_packed_model_can_still_be_tuned(tiny: Path) -> None:
    model = TransformersModel(tiny)
    before = model.session().extend(TEXT[:9]).log_probs()
    tuned = tune(model, [("", "abcabcabc")], n_steps=3, learning_rate=1e-2)
    assert model.session().extend(TEXT[:9]).log_probs() == pytest.approx(before, abs=1e-6)
    assert is_packed(tuned._parts()[1])
    assert tuned.session().extend(TEXT[:9]).log_probs() != pytest.approx(before, abs=1e-2)
