"""BERT and MPNet encoders as ONNX graphs, built straight from their weights: no torch, no tracing, fused operators.

The int8 form quantises weights per output channel and activations with fixed scales found by calibration, so that a
text's vector never depends on what else is in its batch. Outlying activation channels are smoothed into the weights.

References
----------
Xiao et al., SmoothQuant, arXiv:2211.10438, eq. 4. Song et al., MPNet, arXiv:2004.09297. Raffel et al.,
arXiv:1910.10683, section 2.1 (relative positions in buckets).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError

__all__ = ["DISTANCES", "GRAPH_VERSION", "Precision", "build_onnx", "named_weights", "parsed_poolings"]

Precision = Literal["fp32", "int8"]
GRAPH_VERSION = 1
"""Goes up when the graph of the same weights changes."""

_Array = NDArray[np.float32]
_Ranges = Mapping[str, tuple[_Array, _Array]]
_CONTRIB = "com.microsoft"
# How much of the outliers moves from the activations into the weights (alpha of SmoothQuant).
_SMOOTHING = 0.75
# AVX2 adds pairs of 8-bit products in 16 bits: full-range weights would saturate, and this is the best measured trade.
_MAX_WEIGHT = 90
# What attention adds by distance, (n_heads, n_positions, n_positions): a name that no BERT has.
DISTANCES = "encoder.distances"
_MPNET_NAMES = {
    ".attention.attn.q.": ".attention.self.query.",
    ".attention.attn.k.": ".attention.self.key.",
    ".attention.attn.v.": ".attention.self.value.",
    ".attention.attn.o.": ".attention.output.dense.",
    ".attention.LayerNorm.": ".attention.output.LayerNorm.",
}
# Its first positions are kept for padding.
_MPNET_FIRST_POSITION = 2
_MPNET_FARTHEST = 128
_CONFIG_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps")


def build_onnx(
    weights: Mapping[str, NDArray[Any]],
    config: Mapping[str, Any],
    path: str | Path,
    *,
    precision: Precision = "fp32",
    poolings: Sequence[str] = ("mean",),
    calibration: Sequence[Sequence[int]] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a BERT or MPNet encoder with pooling to unit vectors as an ONNX file.

    The inputs are ``input_ids`` and ``attention_mask``, int32 (n, length), padded on the right; the output is
    ``embedding``, float32 (n, n_poolings * hidden_size).

    Parameters
    ----------
    weights : mapping of str to ndarray
        The encoder's state dictionary under its usual names, a leading ``bert.`` or ``mpnet.`` allowed; converted to
        fp32.
    config : mapping
        The model's ``config.json``; a smaller ``num_hidden_layers`` keeps only the first layers.
    path : str or Path
        Where the file goes; written under another name, then renamed.
    precision : {"fp32", "int8"}
        Of the matrix products.
    poolings : sequence of str
        ``mean`` or ``max`` over the tokens of the last layer, or with ``@3`` of the third, ``@0`` of the embeddings.
        Several are joined, each of unit length; layers above the highest one pooled are left out. ``tokens``, alone,
        pools nothing: each token's unit vector, float32 (n, length, hidden_size).
    calibration : sequence of sequences of int, optional
        Token ids of typical texts, special tokens included, for the ranges of int8 activations; by default random
        tokens, which cost a little accuracy.
    metadata : mapping of str to str, optional
        Noted in the file, beside ``n_positions``, the longest input.

    Raises
    ------
    InputError
        When a weight or a key of ``config`` is missing, the architecture is another one, or a pooling is unknown.
    """
    import onnx

    weights = named_weights(weights, config)
    pooled = parsed_poolings(poolings, int(config["num_hidden_layers"]))
    ranges = None
    if precision == "int8":
        if calibration is None:
            calibration = _random_tokens(len(weights["embeddings.word_embeddings.weight"]))
        ranges = _calibrated(weights, config, pooled, calibration)
    model, _ = _encoder(weights, config, pooled, ranges)
    n_positions = str(len(weights["embeddings.position_embeddings.weight"]))
    onnx.helper.set_model_props(model, {**(metadata or {}), "n_positions": n_positions})
    new = Path(path).with_name(f"{Path(path).name}.{os.getpid()}.part")
    try:
        new.write_bytes(model.SerializeToString())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def named_weights(weights: Mapping[str, NDArray[Any]], config: Mapping[str, Any]) -> dict[str, _Array]:
    """The weights in fp32 under BERT's names without a prefix, once ``config`` is known to be of such an encoder."""
    named = {
        name.removeprefix("bert.").removeprefix("mpnet."): np.asarray(value, dtype=np.float32)
        for name, value in weights.items()
    }
    named = _Weights(_as_bert(named) if config.get("model_type") == "mpnet" else named)
    missing = [key for key in _CONFIG_KEYS if key not in config]
    if missing:
        raise InputError(f"The config has no {', '.join(missing)}: give a BERT model's config.json.")
    if config.get("hidden_act", "gelu") != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(
            f"The config has hidden_act {config.get('hidden_act')!r} and position_embedding_type "
            f"{config.get('position_embedding_type')!r}: only gelu and absolute are supported."
        )
    return named


class _Weights(dict[str, _Array]):
    def __missing__(self, name: str) -> _Array:
        raise InputError(f"The weights have no {name}: give the state dictionary of a BERT encoder.")


class _Graph:
    """The nodes and constants of a graph under construction; ``ranges`` makes its linear layers int8."""

    def __init__(self, ranges: _Ranges | None) -> None:
        self.ranges = ranges
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    def quantised(self, x: str, key: str, smoothing: _Array | None = None) -> tuple[str, str, str]:
        """``x`` in 8 bits, divided by ``smoothing`` (n_channels,) first, with the names of its scale and zero point."""
        low, high = cast(_Ranges, self.ranges)[key]
        if smoothing is not None:
            low, high = low / smoothing, high / smoothing
            x = self.add("Mul", [x, self.constant(f"{key}.smoothing", 1 / smoothing)], f"{key}.smooth")
        bottom, top = min(float(low.min()), 0.0), max(float(high.max()), 1e-6)
        step = (top - bottom) / 255
        scale = self.constant(f"{key}.scale", np.array(step, np.float32))
        zero = self.constant(f"{key}.zero", np.array(round(-bottom / step), np.uint8))
        return self.add("QuantizeLinear", [x, scale, zero], f"{key}.q"), scale, zero

    def linear(self, x: str, weight: _Array, bias: _Array | None, key: str, name: str, *, smooth: bool = True) -> str:
        """``x @ weight + bias`` with weight (n_in, n_out); ``key`` names the input's range."""
        if self.ranges is None:
            product = self.add("MatMul", [x, self.constant(f"{name}.weight", weight)], name)
            return (
                product if bias is None else self.add("Add", [product, self.constant(f"{name}.b", bias)], f"{name}.sum")
            )
        smoothing = _smoothing(self.ranges[key], weight) if smooth else None
        q, scale, zero = self.quantised(x, key, smoothing)
        steps, rounded = _rounded(weight if smoothing is None else weight * smoothing[:, None])
        inputs = [q, self.constant(f"{name}.weight", rounded), scale, self.constant(f"{name}.step", steps), zero]
        if bias is not None:
            inputs += ["", self.constant(f"{name}.b", bias)]
        return self.add("MatMulIntegerToFloat", inputs, name, _CONTRIB)

    def distances(self, table: _Array) -> str:
        """The part (1, n_heads, length, length) of what attention adds by distance that a batch needs."""
        length = self.add("Shape", ["input_ids"], "length", start=1, end=2)
        ends = self.add("Concat", [length, length], "distances.ends", axis=0)
        whole = self.constant("distances.whole", table[None])
        starts = self.constant("distances.starts", np.array([0, 0], np.int64))
        axes = self.constant("distances.axes", np.array([2, 3], np.int64))
        return self.add("Slice", [whole, starts, ends, axes], "distances")

    def pool(self, pooled: Sequence[tuple[str, str]]) -> None:
        """Pool layers over the tokens to unit vectors, joined as ``embedding``."""
        from onnx import TensorProto

        if pooled[0][0] == "tokens":
            self.add("LpNormalization", [pooled[0][1]], "embedding", axis=2, p=2)
            return
        mask = self.add("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
        row = self.add("Unsqueeze", [mask, self.constant("axis", np.array([1], np.int64))], "mask.row")
        parts = []
        for i, (kind, x) in enumerate(pooled):
            if kind == "mean":
                # The unit vector of the mean is that of the sum, so that nothing is divided.
                total = self.add("Squeeze", [self.add("MatMul", [row, x], f"pool{i}.sum"), "axis"], f"pool{i}")
            else:
                least = self.constant(f"pool{i}.least", np.array([-1e4], np.float32))
                absent = self.add("Mul", [self.add("Sub", ["one", "mask"], f"pool{i}.absent"), least], f"pool{i}.low")
                last = self.constant(f"pool{i}.last", np.array([2], np.int64))
                lowered = self.add("Add", [x, self.add("Unsqueeze", [absent, last], f"pool{i}.column")], f"pool{i}.x")
                total = self.add("ReduceMax", [lowered], f"pool{i}", axes=[1], keepdims=0)
            parts.append(self.add("LpNormalization", [total], f"pool{i}.unit", axis=1, p=2))
        self.constant("one", np.array([1], np.float32))
        self.add("Concat", parts, "embedding", axis=1)


def _as_bert(weights: Mapping[str, _Array]) -> dict[str, _Array]:
    """MPNet's weights under BERT's names, with what its attention adds by distance as a table of positions."""
    renamed = {}
    for name, value in weights.items():
        for theirs, ours in _MPNET_NAMES.items():
            name = name.replace(theirs, ours)
        renamed[name] = value
    positions = renamed["embeddings.position_embeddings.weight"][_MPNET_FIRST_POSITION:]
    renamed["embeddings.position_embeddings.weight"] = positions
    renamed["embeddings.token_type_embeddings.weight"] = np.zeros_like(positions[:1])
    by_bucket = renamed.pop("encoder.relative_attention_bias.weight")
    places = np.arange(len(positions))
    buckets = _bucket(places[None, :] - places[:, None], len(by_bucket))
    renamed[DISTANCES] = np.ascontiguousarray(by_bucket[buckets].transpose(2, 0, 1))
    return renamed


def _bucket(distance: NDArray[np.int64], n_buckets: int) -> NDArray[np.int64]:
    """Bucket of each signed distance: half of them for either sign, the near ones exact, the far ones by logarithm."""
    half = n_buckets // 2
    exact = half // 2
    away = np.abs(distance)
    far = np.log(np.maximum(away, 1) / exact) / np.log(_MPNET_FARTHEST / exact) * (half - exact)
    bucket = np.where(away < exact, away, np.minimum(exact + far.astype(np.int64), half - 1))
    return np.asarray(bucket + half * (distance > 0))


def parsed_poolings(poolings: Sequence[str], n_layers: int) -> list[tuple[str, int]]:
    """The kind and the layer of each pooling."""
    parsed = []
    for pooling in poolings:
        match = re.fullmatch(r"(mean|max|tokens)(?:@(\d+))?", pooling)
        if match is None or int(match[2] or 0) > n_layers:
            raise InputError(
                f"Pooling {pooling!r} is unknown: use mean, max or tokens, with @0 to @{n_layers} for a layer."
            )
        parsed.append((match[1], n_layers if match[2] is None else int(match[2])))
    if not parsed:
        raise InputError("There are no poolings: give at least one, as mean.")
    if len(parsed) > 1 and any(kind == "tokens" for kind, _ in parsed):
        raise InputError(f"Poolings are {', '.join(poolings)}: give tokens alone.")
    return parsed


def _encoder(
    weights: Mapping[str, _Array], config: Mapping[str, Any], pooled: Sequence[tuple[str, int]], ranges: _Ranges | None
) -> tuple[Any, dict[str, str]]:
    """The model, and where the input of each of its linear layers is found in it."""
    from onnx import TensorProto, helper

    graph = _Graph(ranges)
    add, constant, eps = graph.add, graph.constant, float(config["layer_norm_eps"])
    n_heads, size = int(config["num_attention_heads"]), int(config["hidden_size"])
    tapped: dict[str, str] = {}

    # With one segment only, its vector is the same at every position: it goes into the positions' table.
    positions = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    words = constant("words", weights["embeddings.word_embeddings.weight"])
    norm = [constant(f"embeddings.{part}", weights[f"embeddings.LayerNorm.{part}"]) for part in ("weight", "bias")]
    graph.nodes.append(
        helper.make_node(
            "EmbedLayerNormalization",
            ["input_ids", "", words, constant("positions", positions), "", *norm, "attention_mask"],
            ["embeddings", "n_tokens"],
            domain=_CONTRIB,
            epsilon=eps,
        )
    )

    def add_and_norm(x: str, residual: str, prefix: str, name: str) -> str:
        total = add("Add", [x, residual], f"{name}.residual")
        parts = [constant(f"{name}.{part}", weights[f"{prefix}.LayerNorm.{part}"]) for part in ("weight", "bias")]
        return add("LayerNormalization", [total, *parts], name, epsilon=eps)

    distances = graph.distances(weights[DISTANCES]) if DISTANCES in weights else None
    x = "embeddings"
    layers = [x]
    for i in range(max(layer for _, layer in pooled)):
        layer = f"encoder.layer.{i}"
        parts = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
        qkv = [weights[f"{part}.weight"].T for part in parts]
        qkv_bias = [weights[f"{part}.bias"] for part in parts]
        out, out_bias = (weights[f"{layer}.attention.output.dense.{part}"] for part in ("weight", "bias"))
        tapped[f"{i}.x"] = x
        if distances is not None:
            asked = graph.linear(x, np.concatenate(qkv, 1), np.concatenate(qkv_bias), f"{i}.x", f"{i}.qkv")
            ends = [f"{i}.{part}" for part in ("query", "key", "value")]
            graph.nodes.append(helper.make_node("Split", [asked], ends, axis=2))
            inputs = [*ends, "", "attention_mask", distances]
            context = add("MultiHeadAttention", inputs, f"{i}.attention", _CONTRIB, num_heads=n_heads)
            out = out.T
        elif ranges is None:
            inputs = [x, constant(f"{i}.qkv", np.concatenate(qkv, 1)), constant(f"{i}.qkv.b", np.concatenate(qkv_bias))]
            context = add("Attention", [*inputs, "n_tokens"], f"{i}.attention", _CONTRIB, num_heads=n_heads)
            out = out.T
        else:
            # The values' columns take the smoothing of what is made of them, so that it costs no operator.
            factor = _smoothing(ranges[f"{i}.attention"], out.T)
            qkv[2], qkv_bias[2], out = qkv[2] / factor, qkv_bias[2] / factor, out.T * factor[:, None]
            low, high = ranges[f"{i}.attention"]
            graph.ranges = ranges = {**ranges, f"{i}.attention": (low / factor, high / factor)}
            joined = np.concatenate(qkv, 1)
            smoothing = _smoothing(ranges[f"{i}.x"], joined)
            q, scale, zero = graph.quantised(x, f"{i}.x", smoothing)
            steps, rounded = _rounded(joined * smoothing[:, None])
            inputs = [q, constant(f"{i}.qkv", rounded), constant(f"{i}.qkv.b", np.concatenate(qkv_bias)), scale]
            inputs += [constant(f"{i}.qkv.step", steps), "n_tokens", zero]
            inputs += [constant(f"{i}.qkv.zero", np.zeros(steps.shape, np.int8))]
            context = add("QAttention", inputs, f"{i}.attention", _CONTRIB, num_heads=n_heads)
        tapped[f"{i}.attention"] = context
        y = graph.linear(context, out, out_bias, f"{i}.attention", f"{i}.out", smooth=distances is not None)
        x = add_and_norm(y, x, f"{layer}.attention.output", f"{i}.middle")
        tapped[f"{i}.middle"] = x
        y = graph.linear(x, weights[f"{layer}.intermediate.dense.weight"].T, None, f"{i}.middle", f"{i}.up")
        bias = constant(f"{i}.up.b", weights[f"{layer}.intermediate.dense.bias"])
        y = tapped[f"{i}.gelu"] = add("BiasGelu", [y, bias], f"{i}.gelu", _CONTRIB)
        down, down_bias = (weights[f"{layer}.output.dense.{part}"] for part in ("weight", "bias"))
        y = graph.linear(y, down.T, down_bias, f"{i}.gelu", f"{i}.down")
        x = add_and_norm(y, x, f"{layer}.output", f"{i}.end")
        layers.append(x)

    graph.pool([(kind, layers[layer]) for kind, layer in pooled])
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT32, ["n", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    shape = ["n", "length", size] if pooled[0][0] == "tokens" else ["n", size * len(pooled)]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, shape)]
    made = helper.make_model(
        helper.make_graph(graph.nodes, "bert", inputs, outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(_CONTRIB, 1)],
        ir_version=8,
        producer_name="pilotfish",
    )
    return made, tapped


def _smoothing(limits: tuple[_Array, _Array], weight: _Array) -> _Array:
    """Per-channel divisor (n_in,) of the activations, of geometric mean 1 (SmoothQuant, eq. 4)."""
    reach = np.maximum(np.maximum(-limits[0], limits[1]), 1e-5)
    factor = reach**_SMOOTHING / np.maximum(np.abs(weight).max(axis=1), 1e-5) ** (1 - _SMOOTHING)
    smoothing: _Array = (factor / np.exp(np.log(factor).mean())).astype(np.float32)
    return smoothing


def _rounded(weight: _Array) -> tuple[_Array, NDArray[np.int8]]:
    """Step per output channel (n_out,), and the weight in those steps."""
    steps = np.maximum(np.abs(weight).max(axis=0) / _MAX_WEIGHT, 1e-12).astype(np.float32)
    return steps, np.clip(np.rint(weight / steps), -_MAX_WEIGHT, _MAX_WEIGHT).astype(np.int8)


def _calibrated(
    weights: Mapping[str, _Array],
    config: Mapping[str, Any],
    pooled: Sequence[tuple[str, int]],
    calibration: Sequence[Sequence[int]],
) -> dict[str, tuple[_Array, _Array]]:
    """The least and greatest value of each channel of each linear layer's input."""
    import onnxruntime
    from onnx import TensorProto, helper

    model, tapped = _encoder(weights, config, pooled, None)
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tapped.values())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    run: Callable[..., list[_Array]] = session.run
    ranges: dict[str, tuple[_Array, _Array]] = {}
    for ids in calibration:
        tokens = np.array([ids[: len(weights["embeddings.position_embeddings.weight"])]], dtype=np.int32)
        values = run(list(tapped.values()), {"input_ids": tokens, "attention_mask": np.ones_like(tokens)})
        for key, value in zip(tapped, values, strict=True):
            low, high = value[0].min(axis=0), value[0].max(axis=0)
            if key in ranges:
                low, high = np.minimum(low, ranges[key][0]), np.maximum(high, ranges[key][1])
            ranges[key] = (low, high)
    return ranges


def _random_tokens(n_tokens: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    first = min(1000, n_tokens // 2)
    return [rng.integers(first, n_tokens, size=rng.integers(4, 48)).tolist() for _ in range(100)]
