"""Causal language models of the Llama family read by compiled code: all layers in one call, one text at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import prange, types

from pilotfish.models.attention import NONE_SEEN, attend_some, new_room
from pilotfish.models.products import PackedMatrix, is_copy, multiply_blocks, n_threads, share_of
from pilotfish.models.rows import ONE, ZERO, compiled, exponential, summed
from pilotfish.models.sessions import TextSession, TorchLogits, check_rewind
from pilotfish.models.tiles import COLUMNS, ROWS, TILE, tile_at

__all__ = ["CausalDecoder", "CausalSession"]

_FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
_FIXED_ROTATIONS = ("default", "linear", "llama3")
"""Kinds of rotary places that are the same however long the text is."""
_PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
          "mlp.up_proj", "mlp.down_proj")  # fmt: skip
_INT, _FLOAT = types.intp, types.float32
_ONE, _TWO, _THREE, _FOUR = (
    types.float32[::1],
    types.float32[:, ::1],
    types.float32[:, :, ::1],
    types.float32[:, :, :, ::1],
)
_ENDS = (_INT,) * 3
"""Where the tile lies, which thread it is, and of how many."""
_ROOM = types.Tuple([_TWO, _FOUR, types.float32[:, :, :, :], _FOUR, _TWO, _TWO])
"""Normalised rows; queries, as they are made and as they are asked; what they find, twice; the inner layer."""
_MODEL = types.Tuple([types.intp[:, ::1], _THREE, _TWO, _ONE])
"""Where the weights lie by layer, norms, biases; the scale of the products and what keeps norms from zero."""
_TEXT = types.Tuple([_TWO, _TWO, _FOUR, _FOUR, types.boolean[:, :, :]])
"""Turns of the places, keys, values, and which keys the last rows see."""
_NORMS = ("input_layernorm", "post_attention_layernorm")


@summed(types.void(_ONE, _ONE, _FLOAT, _ONE))  # type: ignore[untyped-decorator]
def _normalise(row: Any, weight: Any, epsilon: Any, out: Any) -> None:
    square = ZERO
    for i in range(row.size):
        square += row[i] * row[i]
    scale = ONE / np.sqrt(square / np.float32(row.size) + epsilon)
    for i in range(row.size):
        out[i] = row[i] * scale * weight[i]


@compiled(types.void(_TWO, _ONE, _FLOAT, _TWO, _INT, _INT))  # type: ignore[untyped-decorator]
def _normalised(x: Any, weight: Any, epsilon: Any, out: Any, thread: int, n: int) -> None:
    for i in range(thread, len(x), n):
        _normalise(x[i], weight, epsilon, out[i])


@compiled(types.void(_TWO, types.intp[::1], _ONE, _TWO, _TWO, _FOUR, _THREE, _THREE, _INT, _INT, *_ENDS))  # type: ignore[untyped-decorator]
def _asked(
    x: Any, weights: Any, bias: Any, cos: Any, sin: Any, query: Any, keys: Any, values: Any, at: int, skip: int,
    tile: int, thread: int, n: int,
) -> None:  # fmt: skip
    """Queries (1, n, n_heads, width), and keys and values behind the first ``at``, turned to their places.

    The first ``skip`` rows ask nothing.
    """
    n_rows, k = x.shape
    n_heads, width = query.shape[2], query.shape[3]
    n_shared, half = keys.shape[0], width // 2
    made = np.empty((ROWS, width), np.float32)
    first, last = share_of(n_heads + 2 * n_shared, thread, n)
    for head in range(first, last):
        kind = 0 if head < n_heads else (head - n_heads) // n_shared + 1
        own = head if kind == 0 else (head - n_heads) % n_shared
        for start in range(skip if kind == 0 else 0, n_rows, ROWS):
            count = min(ROWS, n_rows - start)
            for block in range(0, width, COLUMNS):
                tile_at(
                    tile, count, x.ctypes.data + 4 * start * k, k, weights[kind] + 4 * (own * width + block) * k,
                    COLUMNS, k, made.ctypes.data + 4 * block, width,
                )  # fmt: skip
            for i in range(count):
                row, place = made[i], start + i
                for j in range(width):
                    row[j] += bias[head * width + j]
                if kind < 2:
                    for j in range(half):
                        one, other = row[j], row[j + half]
                        row[j] = one * cos[place, j] - other * sin[place, j]
                        row[j + half] = other * cos[place, j] + one * sin[place, j]
                for j in range(width):
                    if kind == 0:
                        query[0, place, own, j] = row[j]
                    elif kind == 1:
                        keys[own, j, at + place] = row[j]
                    else:
                        values[own, at + place, j] = row[j]


@compiled(types.void(_TWO, _INT, _TWO, *_ENDS))  # type: ignore[untyped-decorator]
def _added(x: Any, weight: int, out: Any, tile: int, thread: int, n: int) -> None:
    """``out += x @ weight``."""
    n_rows, k = x.shape
    made = np.empty((ROWS, COLUMNS), np.float32)
    first, last = share_of(out.shape[1] // COLUMNS, thread, n)
    for block in range(first, last):
        column = block * COLUMNS
        for start in range(0, n_rows, ROWS):
            count = min(ROWS, n_rows - start)
            tile_at(
                tile,
                count,
                x.ctypes.data + 4 * start * k,
                k,
                weight + 4 * column * k,
                COLUMNS,
                k,
                made.ctypes.data,
                COLUMNS,
            )
            for i in range(count):
                for j in range(COLUMNS):
                    out[start + i, column + j] += made[i, j]


@summed(types.void(_ONE, _ONE, _ONE))  # type: ignore[untyped-decorator]
def _gate(gate: Any, up: Any, out: Any) -> None:
    """``out = silu(gate) * up``."""
    for j in range(out.size):
        small = exponential(-abs(gate[j]))
        out[j] = gate[j] * up[j] * (ONE if gate[j] >= 0 else small) / (ONE + small)


@compiled(types.void(_TWO, _INT, _INT, _TWO, *_ENDS))  # type: ignore[untyped-decorator]
def _fed(x: Any, gates: int, ups: int, out: Any, tile: int, thread: int, n: int) -> None:
    n_rows, k = x.shape
    gate, up = np.empty((ROWS, COLUMNS), np.float32), np.empty((ROWS, COLUMNS), np.float32)
    first, last = share_of(out.shape[1] // COLUMNS, thread, n)
    for block in range(first, last):
        column = block * COLUMNS
        for start in range(0, n_rows, ROWS):
            count, rows = min(ROWS, n_rows - start), x.ctypes.data + 4 * start * k
            tile_at(tile, count, rows, k, gates + 4 * column * k, COLUMNS, k, gate.ctypes.data, COLUMNS)
            tile_at(tile, count, rows, k, ups + 4 * column * k, COLUMNS, k, up.ctypes.data, COLUMNS)
            for i in range(count):
                _gate(gate[i], up[i], out[start + i, column : column + COLUMNS])


_STEPS = 7
"""Of a layer; each needs all of what the one before it made."""


@compiled(types.void(_INT, _TWO, _ROOM, _MODEL, _TEXT, _INT, _TWO, *_ENDS))  # type: ignore[untyped-decorator]
def _one_step(
    step: int, x: Any, room: Any, model: Any, text: Any, at: int, logits: Any, tile: int, thread: int, n: int
) -> None:
    """A thread's share of a step."""
    normed, query, asked, found, told, high = room
    weights, norms, biases, numbers = model
    cos, sin, keys, values, seen = text
    scale, epsilon = numbers[0], numbers[1]
    layer, part = step // _STEPS, step % _STEPS
    n_rows, n_last = x.shape[0], logits.shape[0]
    if layer == len(keys):
        if part == 0:
            _normalised(x[n_rows - n_last :], norms[layer, 0], epsilon, normed, thread, n)
        else:
            first, last = share_of(logits.shape[1] // COLUMNS, thread, n)
            multiply_blocks(
                normed.ctypes.data, n_last, x.shape[1], weights[layer, 0], logits.ctypes.data, logits.shape[1], tile,
                first, last,
            )  # fmt: skip
        return
    own = weights[layer]
    # Of rows whose logits nobody wants the last layer's keys and values are all that is ever seen.
    skip = n_rows - n_last if layer == len(keys) - 1 else 0
    if part == 0:
        _normalised(x, norms[layer, 0], epsilon, normed, thread, n)
    elif part == 1:
        _asked(normed, own, biases[layer], cos, sin, query, keys[layer], values[layer], at, skip, tile, thread, n)
    elif part == 2:
        both = keys[layer : layer + 1, :, :, : at + n_rows], values[layer : layer + 1, :, : at + n_rows]
        attend_some(asked[:, :, skip:], *both, seen, found[:, skip:], scale, tile, thread, n)
    elif part == 3:
        _added(told[skip:], own[3], x[skip:], tile, thread, n)
    elif part == 4:
        _normalised(x[skip:], norms[layer, 1], epsilon, normed[skip:], thread, n)
    elif part == 5:
        _fed(normed[skip:], own[4], own[5], high[skip:], tile, thread, n)
    else:
        _added(high[skip:], own[6], x[skip:], tile, thread, n)


def _all_steps(x: Any, room: Any, model: Any, text: Any, at: int, logits: Any, tile: int, n: int) -> None:
    """From embeddings ``x`` (n_rows, size), which are overwritten, to the logits of the last rows."""
    for step in range(_STEPS * len(text[2]) + 2):
        for thread in prange(n):
            _one_step(step, x, room, model, text, at, logits, tile, thread, n)


_read_shared = compiled(parallel=True)(_all_steps)
# Not cached: numba would take one for the other.
_read_alone = compiled(cache=False)(_all_steps)


class CausalDecoder:
    """A causal language model of the Llama family, read by compiled code.

    A pass of a small model through torch is a thousand small calls, which take longer than the memory takes to give the
    weights; this is one. What a token is told is the same, bit by bit, however its text is cut into passes.

    Parameters
    ----------
    network : transformers.PreTrainedModel
        Made by :func:`pilotfish.models.packed.packed`, whose packed matrices are shared.
    """

    def __init__(self, network: Any) -> None:
        import torch

        body, config = network.model, network.config
        layers = list(body.layers)
        self.name = str(getattr(network, "name_or_path", ""))
        self._kept = network  # whose memory the addresses are of
        self._embeddings = body.embed_tokens.weight.detach()
        self.n_heads, self.n_shared = config.num_attention_heads, config.num_key_value_heads
        self.width = layers[0].self_attn.head_dim
        self.n_vocabulary = network.lm_head.matrix.n_out
        matrices = [[layer.get_submodule(name).matrix for name in _PARTS] for layer in layers]
        addresses = [[matrix.address for matrix in own] for own in matrices]
        weights = np.array([*addresses, [network.lm_head.matrix.address] * len(_PARTS)], dtype=np.intp)
        norms = [[layer.get_submodule(name).weight for name in _NORMS] for layer in layers]
        stacked = torch.stack([torch.stack(pair) for pair in [*norms, [body.norm.weight] * 2]]).detach().numpy()
        biases = np.array([_bias(layer.self_attn) for layer in layers], dtype=np.float32)
        numbers = np.array([layers[0].self_attn.scaling, config.rms_norm_eps], dtype=np.float32)
        self._model = (weights, stacked, biases, numbers)
        self._inner = matrices[0][4].n_out
        self.n_layers = len(layers)
        self._rotary = body.rotary_emb
        self._turns = (np.empty((0, 0), np.float32),) * 2

    @classmethod
    def of(cls, network: Any) -> CausalDecoder | None:
        """The decoder of a network, or None where it is not of the family or not packed by :class:`PackedMatrix`."""
        config = network.config
        if type(network).__name__ not in _FAMILY or getattr(config, "hidden_act", "") != "silu":
            return None
        layers = list(network.model.layers)
        kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
        windowed = any("full" not in name for name in getattr(config, "layer_types", None) or [])
        if kind not in _FIXED_ROTATIONS or windowed or getattr(config, "sliding_window", None):
            return None
        parts = [layer.get_submodule(name) for layer in layers for name in _PARTS]
        if not all(isinstance(getattr(part, "matrix", None), PackedMatrix) for part in [*parts, network.lm_head]):
            return None
        biased = any(layer.get_submodule(name).added is not None for layer in layers for name in _PARTS[3:])
        width = layers[0].self_attn.head_dim
        turned = 2 * len(network.model.rotary_emb.inv_freq)
        return None if biased or width % COLUMNS or width != turned else cls(network)

    def session(self, window: int) -> CausalSession:
        """Begin a text of at most ``window`` tokens."""
        return CausalSession(self, window)

    def read(
        self,
        tokens: Sequence[int],
        keys: Any,
        values: Any,
        at: int,
        n_last: int,
        places: Sequence[int] | None = None,
        seen: Any = None,
    ) -> Any:
        """Read tokens behind the first ``at`` of a text, whose keys and values are written.

        Parameters
        ----------
        tokens : sequence of int
            At least one.
        keys, values : ndarray of float32, (n_layers, n_shared, width, size) and (n_layers, n_shared, size, width)
            Room for the text.
        at : int
            How many tokens were read before.
        n_last : int
            Logits of so many tokens are wanted.
        places : sequence of int, optional
            Of the tokens; behind one another by default.
        seen : ndarray of bool, (at most n_last, at + n), optional
            What each of the last tokens sees; the others, or all by default, see all up to themselves.

        Returns
        -------
        torch.Tensor, (n_last, n_vocabulary)
            Logits.
        """
        import torch

        n = len(tokens)
        x = self._embeddings[torch.tensor(tokens)].numpy()
        at_places = slice(at, at + n) if places is None else np.asarray(places)
        cos, sin = (np.ascontiguousarray(turn[at_places]) for turn in self._turned(at + n))
        logits = torch.empty(n_last, self.n_vocabulary)
        read = _read_alone if is_copy() else _read_shared
        query, found = (np.empty((1, n, self.n_heads, self.width), np.float32) for _ in range(2))
        room = (
            np.empty_like(x), query, query.transpose(0, 2, 1, 3), found, found.reshape(n, -1),
            np.empty((n, self._inner), np.float32),
        )  # fmt: skip
        text = (cos, sin, keys, values, NONE_SEEN if seen is None else seen[None])
        read(x, room, self._model, text, at, logits.numpy(), TILE, n_threads(self._inner // COLUMNS))
        return logits

    def _turned(self, n: int) -> tuple[Any, Any]:
        """Cosines and sines of the first ``n`` places, or more."""
        import torch

        if len(self._turns[0]) < n:
            with torch.inference_mode():
                made = self._rotary(self._embeddings[:1], torch.arange(max(256, 2 * n))[None])
            half = self.width // 2
            self._turns = (made[0][0, :, :half].numpy().copy(), made[1][0, :, :half].numpy().copy())
        return self._turns


def _bias(attention: Any) -> Any:
    made = []
    for part in (attention.q_proj, attention.k_proj, attention.v_proj):
        made.append(np.zeros(part.matrix.n_out, np.float32) if part.added is None else part.added.numpy())
    return np.concatenate(made)


class CausalSession(TextSession):
    """A text that a :class:`CausalDecoder` reads.

    Parameters
    ----------
    decoder : CausalDecoder
        Reads it.
    window : int
        Longest text, in tokens.
    """

    takes_trees = True

    def __init__(self, decoder: CausalDecoder, window: int) -> None:
        super().__init__(window)
        self.decoder = decoder
        self._room: tuple[Any, Any] | None = None
        self._is_shared = False

    def rewind(self, n: int) -> None:
        """Forget the last ``n`` tokens."""
        check_rewind(n, self.n_tokens)
        self.n_tokens -= n

    def keep(self, n: int, places: Sequence[int]) -> None:
        """Of the last ``n`` tokens, the tree, keep those at these places, which follow one another."""
        start = self.n_tokens - n
        if list(places) != list(range(len(places))):
            keys, values = self._owned(self.n_tokens)
            kept = [start + place for place in places]
            keys[..., start : start + len(places)] = keys[..., kept]
            values[:, :, start : start + len(places)] = values[:, :, kept]
        self.n_tokens = start + len(places)

    def fork(self) -> CausalSession:
        """Copy the state. Keys and values are shared until one of the two writes."""
        twin = CausalSession(self.decoder, self.window)
        twin.n_tokens, twin._room = self.n_tokens, self._room
        twin._is_shared = self._is_shared = True
        return twin

    def _read(self, tokens: Sequence[int], n_last: int, places: Any = None, seen: Any = None) -> TorchLogits:
        keys, values = self._owned(self.n_tokens + len(tokens))
        logits = self.decoder.read(tokens, keys, values, self.n_tokens, n_last, places, seen)
        return TorchLogits(logits, self.decoder.name)

    def _owned(self, n: int) -> tuple[Any, Any]:
        """Room for ``n`` tokens that no other session writes in."""
        if self._room is None or self._is_shared or self._room[1].shape[2] < n:
            decoder, old = self.decoder, self._room
            widths = (decoder.width, decoder.width)
            keys, values = new_room(decoder.n_layers, decoder.n_shared, widths, max(128, n + n // 2))
            new = keys.transpose(2, 3).numpy(), values.numpy()
            if old is not None:
                new[0][..., : self.n_tokens] = old[0][..., : self.n_tokens]
                new[1][:, :, : self.n_tokens] = old[1][:, :, : self.n_tokens]
            self._room, self._is_shared = new, False
        return self._room
