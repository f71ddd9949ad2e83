"""Attention is that of torch, and what a token sees is the same bit by bit however its text is read."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from pilotfish.models.attention import attend, attends, new_room  # noqa: E402
from pilotfish.models.packed import packed  # noqa: E402
from pilotfish.models.products import multiplies  # noqa: E402
from pilotfish.models.sessions import TorchSession  # noqa: E402

if not multiplies(torch.zeros(32, 2)):
    pytest.skip("this processor is multiplied for by torch", allow_module_level=True)

TEXT = [i * 7 % 27 for i in range(90)]


def texts(n_batch: int, n_heads: int, n_shared: int, n: int, n_keys: int, width: int = 64) -> tuple[Any, Any, Any]:
    """Queries, and keys and values in a room that holds rubbish behind them."""
    made = torch.Generator().manual_seed(n_keys)
    query = torch.randn(n_batch, n, n_heads, width, generator=made).transpose(1, 2)
    keys, values = (torch.randn(n_batch, n_shared, n_keys, size, generator=made) for size in (width, 2 * width))
    room = new_room(n_batch, n_shared, (width, 2 * width), n_keys)
    for whole, new in zip(room, (keys, values), strict=True):
        whole.fill_(torch.nan)
        whole[:, :, :n_keys] = new
    return query, room[0][:, :, :n_keys], room[1][:, :, :n_keys]


def wanted(query: Any, keys: Any, values: Any, seen: Any) -> Any:
    n_groups = query.shape[1] // keys.shape[1]
    keys, values = (part.double().repeat_interleave(n_groups, 1) for part in (keys, values))
    scores = (query.double() @ keys.transpose(2, 3)) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
    return (weights @ values).transpose(1, 2).float()


def causal(n: int, n_keys: int) -> Any:
    return torch.ones(n, n_keys, dtype=torch.bool).tril(n_keys - n)


@pytest.mark.parametrize(
    "shape",
    [(1, 9, 3, 1, 70), (1, 9, 3, 13, 100), (2, 4, 4, 5, 31), (1, 6, 2, 64, 64), (1, 2, 1, 33, 40), (3, 2, 2, 1, 1)],
)
def test_attention_is_that_of_float64(threads: int, shape: tuple[int, ...]) -> None:
    query, keys, values = texts(*shape)
    seen = causal(*shape[3:])
    assert torch.allclose(attend(query, keys, values), wanted(query, keys, values, seen), atol=1e-5)
    some = seen & (torch.rand(seen.shape, generator=torch.Generator().manual_seed(0)) < 0.7)
    some[0] = False  # sees nothing
    masked = attend(query, keys, values, some.expand(shape[0], -1, -1))
    assert torch.allclose(masked, wanted(query, keys, values, some), atol=1e-5)
    assert not masked[:, 0].any()
    last = some[shape[3] // 2 :]
    partly = attend(query, keys, values, last.expand(shape[0], -1, -1))
    both = torch.cat((seen[: shape[3] // 2], last))
    assert torch.allclose(partly, wanted(query, keys, values, both), atol=1e-5)


def test_a_scale_may_be_given() -> None:
    query, keys, values = texts(1, 2, 1, 3, 9)
    assert torch.allclose(attend(query, keys, values, scale=0.5), attend(4 * query, keys, values), atol=1e-5)


def test_a_row_is_the_same_alone_in_a_draft_and_behind_masked_keys(threads: int) -> None:
    query, keys, values = texts(1, 6, 2, 20, 150)
    together = attend(query, keys, values)
    for i in range(20):
        alone = attend(query[:, :, i : i + 1], *(part[:, :, : 131 + i] for part in (keys, values)))
        assert torch.equal(alone[:, 0], together[:, i])
    # The same with strangers among the keys, whose place is thereby another.
    at = torch.tensor([i for i in range(150) if i not in (97, 140, 141)])
    room = new_room(1, 2, (64, 128), at.numel())
    for whole, part in zip(room, (keys, values), strict=True):
        whole[:, :, : at.numel()] = part[:, :, at]
    few = attend(query[:, :, -1:], *(whole[:, :, : at.numel()] for whole in room))
    seen = torch.zeros(1, 1, 150, dtype=torch.bool)
    seen[..., at] = True
    assert torch.equal(attend(query[:, :, -1:], keys, values, seen), few)


def test_only_what_fits_is_attended_to() -> None:
    fits = torch.zeros(1, 1, 1, 64)
    assert attends(fits, fits)
    assert not attends(torch.zeros(1, 1, 1, 24), fits)
    assert not attends(fits.to(torch.bfloat16), fits)


def test_a_text_is_read_the_same_bit_by_bit_however_it_is_cut(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("pilotfish.models.packed._LARGE", 0)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, head_dim=32,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    network = packed(transformers.LlamaForCausalLM(config).eval().requires_grad_(False))

    def session() -> TorchSession:
        return TorchSession(network, 128)

    whole = session().extend(TEXT).values
    cut, rows, start = session(), [], 0
    for n in (40, 1, 13, 2, 1, 33):
        rows.append(cut.extend(TEXT[start : start + n]).values)
        start += n
    assert torch.equal(torch.cat(rows), whole)
    # A tree: of two branches the second is the text's own.
    tree = session()
    tree.extend(TEXT[:20])
    read = tree.extend_tree(TEXT[20:51], [3, TEXT[51], 4, TEXT[52], TEXT[53]], [-1, -1, 0, 1, 3]).values
    assert torch.equal(read[[0, 2, 4, 5]], whole[50:54])
    tree.keep(5, [1, 3, 4])
    assert torch.equal(tree.extend(TEXT[54:60]).values, whole[54:60])
