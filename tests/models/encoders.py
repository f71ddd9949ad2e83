"""A BERT encoder of a few weights, and what it makes of tokens, written out in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def toy_weights(
    n_layers: int = 2, size: int = 16, seed: int = 0
) -> tuple[dict[str, NDArray[np.float32]], dict[str, object]]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (50, size),
        "embeddings.position_embeddings.weight": (32, size),
        "embeddings.token_type_embeddings.weight": (2, size),
        "embeddings.LayerNorm.weight": (size,),
        "embeddings.LayerNorm.bias": (size,),
    }
    for i in range(n_layers):
        layer = f"encoder.layer.{i}."
        for name, out, into in (
            ("attention.self.query", size, size),
            ("attention.self.key", size, size),
            ("attention.self.value", size, size),
            ("attention.output.dense", size, size),
            ("intermediate.dense", 3 * size, size),
            ("output.dense", size, 3 * size),
        ):
            shapes[f"{layer}{name}.weight"] = (out, into)
            shapes[f"{layer}{name}.bias"] = (out,)
        for name in ("attention.output", "output"):
            shapes[f"{layer}{name}.LayerNorm.weight"] = (size,)
            shapes[f"{layer}{name}.LayerNorm.bias"] = (size,)
    weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    config = {"hidden_size": size, "num_hidden_layers": n_layers, "num_attention_heads": 4, "layer_norm_eps": 1e-12}
    return weights, config


def encoder_states(
    weights: dict[str, NDArray[np.float32]], ids: list[int], n_heads: int, n_layers: int
) -> NDArray[np.float64]:
    """The states of a BERT encoder's last layer, written out in double precision."""
    from scipy.special import erf, softmax

    w = {name: value.astype(np.float64) for name, value in weights.items()}

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        centred = x - x.mean(axis=1, keepdims=True)
        return centred / np.sqrt(x.var(axis=1, keepdims=True) + 1e-12) * w[name + ".weight"] + w[name + ".bias"]

    def linear(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(n_layers):
        layer = f"encoder.layer.{i}."
        q, k, v = (linear(x, layer + "attention.self." + part) for part in ("query", "key", "value"))
        size = x.shape[1] // n_heads
        heads = []
        for h in range(n_heads):
            part = slice(h * size, (h + 1) * size)
            heads.append(softmax(q[:, part] @ k[:, part].T / np.sqrt(size), axis=1) @ v[:, part])
        x = norm(
            linear(np.concatenate(heads, axis=1), layer + "attention.output.dense") + x,
            layer + "attention.output.LayerNorm",
        )
        y = linear(x, layer + "intermediate.dense")
        x = norm(linear(y * 0.5 * (1 + erf(y / np.sqrt(2))), layer + "output.dense") + x, layer + "output.LayerNorm")
    return x


def unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / np.linalg.norm(x)


def toy_mpnet(hidden_size: int, n_layers: int, n_heads: int, inner: int) -> tuple[Any, Any, list[list[int]]]:
    """A random MPNet of transformers whose distances matter, its config, and texts as tokens, one of them long."""
    import torch
    import transformers

    config = transformers.MPNetConfig(
        vocab_size=60, hidden_size=hidden_size, num_hidden_layers=n_layers, num_attention_heads=n_heads,
        intermediate_size=inner, max_position_embeddings=202,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MPNetModel(config).eval()
    with torch.inference_mode():
        model.encoder.relative_attention_bias.weight.mul_(40)
    return model, config, [[0, 7, 9, 2], [0, *range(5, 55), *range(5, 55), *range(5, 45), 2], [0, 2]]
