"""A compiled decoder says what transformers says, and the same bit by bit however a text is cut into passes."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from pilotfish.errors import ContextLengthError, InputError  # noqa: E402
from pilotfish.models.causal import CausalDecoder, CausalSession  # noqa: E402
from pilotfish.models.packed import packed  # noqa: E402
from pilotfish.models.products import multiplies  # noqa: E402
from pilotfish.models.transformers import TransformersModel  # noqa: E402

if not multiplies(torch.zeros(32, 2)):
    pytest.skip("this processor is multiplied for by torch", allow_module_level=True)

TEXT = [i * 7 % 61 for i in range(200)]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(autouse=True)
def every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotfish.models.packed._LARGE", 0)


def network(family: str = "Llama", **more: Any) -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "head_dim": 32, "num_key_value_heads": 2, "max_position_embeddings": 256, "sliding_window": None,
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**settings | more)
    made = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, weight in made.named_parameters():
        if "norm" in name or "bias" in name:  # as made they are all ones and zeros
            weight.normal_(1 if "norm" in name else 0, 0.3)
    return made


def session(made: Any, window: int = 256) -> CausalSession:
    decoder = CausalDecoder.of(packed(made))
    assert decoder is not None
    return decoder.session(window)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("Llama", {}),
        ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4, "rope_parameters": LLAMA3}),
        ("Llama", {"attention_bias": False, "num_key_value_heads": 1, "head_dim": 64, "rms_norm_eps": 1e-2}),
        ("Mistral", {}),
        ("Qwen2", {"head_dim": 32}),
    ],
)
def test_logits_are_those_of_transformers(family: str, more: dict[str, Any], threads: int) -> None:
    made = network(family, **more)
    with torch.inference_mode():
        wanted = made(torch.tensor([TEXT])).logits[0]
    one = session(made)
    rows = [one.extend(TEXT[start:end]).values for start, end in ((0, 3), (3, 4), (4, 150), (150, 164), (164, 200))]
    assert torch.allclose(torch.cat(rows), wanted, atol=1e-4)
    assert torch.equal(session(made).extend(TEXT).values, torch.cat(rows))
    assert torch.equal(session(made).extend(TEXT, 2).values, torch.cat(rows)[-2:])


def test_a_tree_is_read_as_its_texts_are() -> None:
    made = network()
    whole = session(made).extend(TEXT[:80]).values
    tree = session(made)
    tree.extend(TEXT[:20])
    read = tree.extend_tree(TEXT[20:51], [3, TEXT[51], 4, TEXT[52], TEXT[53]], [-1, -1, 0, 1, 3]).values
    assert torch.equal(read[[0, 2, 4, 5]], whole[50:54])
    tree.keep(5, [1, 3, 4])
    assert tree.n_tokens == 54
    assert torch.equal(tree.extend(TEXT[54:80]).values, whole[54:80])
    tree.extend_tree([1], [2, 3], [-1, -1])
    tree.keep(2, [])
    assert tree.n_tokens == 81


def test_what_is_rewound_is_forgotten_and_what_is_forked_is_apart() -> None:
    made = network()
    wanted = session(made).extend(TEXT).values
    one = session(made)
    one.extend(TEXT[:100])
    one.extend([5, 6, 7])
    one.rewind(3)
    twin = one.fork()
    one.extend([9, 9])
    third = twin.fork()
    twin.extend_tree([8], [7, 6, 5], [-1, -1, 1])
    twin.keep(3, [1, 2])
    assert torch.equal(third.extend(TEXT[100:]).values, wanted[100:])
    one.rewind(102)
    assert torch.equal(one.extend(TEXT).values, wanted)
    with pytest.raises(InputError, match="rewind is 201"):
        one.rewind(201)
    with pytest.raises(InputError, match="no tokens"):
        one.extend([])
    with pytest.raises(ContextLengthError, match="window has 256"):
        one.extend([1] * 57)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("Llama", {"head_dim": 24}),
        ("Llama", {"hidden_act": "gelu"}),
        ("Llama", {"mlp_bias": True}),
        ("Llama", {"vocab_size": 61}),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}}),
        ("Mistral", {"sliding_window": 8}),
        ("Qwen3", {}),
    ],
)
def test_others_are_left_to_transformers(family: str, more: dict[str, Any]) -> None:
    assert CausalDecoder.of(packed(network(family, **more))) is None


def _in_a_copy(one: CausalSession, found: Any) -> None:
    torch.set_num_threads(1)  # torch's own threads stayed behind
    found.put(one.extend(TEXT[5:9]).values.tolist())


def test_a_copied_process_reads_too() -> None:
    one = session(network())
    one.extend(TEXT[:5])
    wanted = one.fork().extend(TEXT[5:9]).values.tolist()
    context = multiprocessing.get_context("fork")
    found: Any = context.Queue()
    child = context.Process(target=_in_a_copy, args=(one, found), daemon=True)
    child.start()
    try:
        assert found.get(timeout=120) == wanted
    finally:
        child.join(10)


def test_a_model_of_the_catalog_is_read_by_it() -> None:
    model = TransformersModel("smollm2-135m-instruct")
    one = model.session()
    assert isinstance(one, CausalSession)
    tokens = model.tokenizer.encode("The capital of France is Paris, and that of Italy is")
    logs = one.extend(tokens, 1).log_probs()[0]
    assert model.tokenizer.decode([int(logs.argmax())]) == " Rome"
    assert len(model.first_layers(4).session().extend(tokens, 1).values[0]) == model.tokenizer.n_vocabulary
