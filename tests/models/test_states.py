"""States of a language model as vectors: against a plain pass of a tiny random one, and what a real one tells apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pilotfish.errors import InputError
from pilotfish.models.states import StateEmbedder, _by_name, reading_told
from pilotfish.models.transformers import TransformersModel
from tests.models.fixtures import pulled

TEXTS = ["my card is lost", "why", "the rate of exchange for euros in the morning", ""]
TOLD = "Say what it is about."


class Tokens:
    """One token a character; the template marks who speaks, as chat templates do."""

    bos_token_id = 1
    eos_token_id = 2

    def __init__(self, chat_template: str | None = "") -> None:
        self.chat_template = chat_template

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(c) % 60 for c in text]}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "".join(f"<{m['role']}>{m['content']}\n" for m in messages) + "<assistant>"


def _model(tokens: Tokens, n_layers: int = 3) -> TransformersModel:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=n_layers, num_attention_heads=2,
        max_position_embeddings=256,
    )  # fmt: skip
    made = TransformersModel("a tiny one")
    made._loaded = (tokens, transformers.LlamaForCausalLM(config).eval())
    return made


def _plain(model: TransformersModel, head: str, text: str, tail: str) -> NDArray[np.float32]:
    """The same from the definition: one pass over everything, a text at a time."""
    import torch

    tokens, network = model._parts()
    ids = [tokens(part)["input_ids"] for part in (head, text, tail)]
    with torch.inference_mode():
        states = network(torch.tensor([[*ids[0], *ids[1], *ids[2]]]), output_hidden_states=True).hidden_states
    n_head, n = len(ids[0]), max(len(ids[1]), 1)
    halves = states[-1][0, -1].numpy(), states[2][0, n_head : n_head + n].mean(dim=0).numpy()
    halves = tuple(np.sign(half) * np.sqrt(np.abs(half)) for half in halves)
    return np.concatenate([half / np.linalg.norm(half) for half in halves])


@pytest.mark.parametrize("batch_tokens", [1, 60, 768])
def test_vectors_are_the_states_of_a_plain_pass_however_texts_are_batched(batch_tokens: int) -> None:
    model = _model(Tokens())
    embedder = StateEmbedder(model, instruction=TOLD, batch_tokens=batch_tokens)
    told: list[tuple[int, int]] = []
    found = embedder.embed(TEXTS, lambda done, total: told.append((done, total)))
    assert told[-1] == (len(TEXTS), len(TEXTS))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    expected = [_plain(model, f"<system>{TOLD}\n<user>", text, "\n<assistant>") for text in TEXTS]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found.shape == (len(TEXTS), embedder.n_dimensions)
    np.testing.assert_allclose(embedder.embed(TEXTS[1:2]), found[1:2], atol=2e-5)
    assert embedder.embed([]).shape == (0, embedder.n_dimensions)


def test_what_reads_deep_within_is_told_of_too() -> None:
    embedder, told = StateEmbedder(_model(Tokens())), list[tuple[int, int]]()
    with reading_told(lambda done, total: told.append((done, total))):
        embedder.embed(TEXTS)
    assert told[-1] == (len(TEXTS), len(TEXTS))
    n_told = len(told)
    embedder.embed(TEXTS)
    assert len(told) == n_told


def test_without_a_template_the_instruction_comes_first_and_a_line_ends_the_text() -> None:
    model = _model(Tokens(None))
    found = StateEmbedder(model, instruction=TOLD).embed(TEXTS)
    np.testing.assert_allclose(found, [_plain(model, f"{TOLD}\n\n", text, "\n") for text in TEXTS], atol=2e-5)


def test_a_long_text_is_cut_and_its_end_is_still_read() -> None:
    model = _model(Tokens())
    found = StateEmbedder(model, max_length=9).embed(["a transfer of money", "a transfer that failed"])
    np.testing.assert_allclose(found[0], _plain(model, "<user>", "a transfe", "\n<assistant>"), atol=2e-5)
    np.testing.assert_allclose(found[0], found[1], atol=2e-5)


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="list of texts"):
        StateEmbedder(_model(Tokens())).embed("one text")
    with pytest.raises(InputError, match=r"texts\[1\] is a int"):
        StateEmbedder(_model(Tokens())).embed(["a", 3])  # type: ignore[list-item]
    model = _model(Tokens())
    del model._parts()[1].model
    with pytest.raises(InputError, match="no 'model' beneath"):
        StateEmbedder(model).embed(["a"])


def test_a_real_model_puts_texts_together_that_are_about_the_same() -> None:
    pulled("smollm2-135m-instruct")
    texts = ["My card was stolen.", "I have lost my card!", "How many euros for a dollar?", "What is the rate for yen?"]
    vectors = StateEmbedder("smollm2-135m-instruct", instruction="Is it about cards or currencies?").embed(texts)
    vectors -= vectors.mean(axis=0)
    near = (vectors @ vectors.T - 10 * np.eye(4)).argmax(axis=1)
    assert near.tolist() == [1, 0, 3, 2]


@pytest.mark.parametrize(("multiplies", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_a_name_is_read_in_the_numbers_that_the_processor_multiplies(monkeypatch, multiplies, dtype):
    monkeypatch.setattr("pilotfish.models.states.multiplies_bfloat16", lambda: multiplies)
    _by_name.cache_clear()
    assert _by_name("smollm2-135m-instruct").dtype == dtype
    _by_name.cache_clear()
