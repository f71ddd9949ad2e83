"""Many answers to many questions by one causal model: a question is read once, its answers are written together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pilotfish.models.packed import new_cache
from pilotfish.models.transformers import TransformersModel
from pilotfish.types import Reply, Request, TokenLogProb

__all__ = ["answers"]

_TEMPERATURE = 0.7
# What llama.cpp leaves of a distribution by default.
_TOP_K, _TOP_P, _MIN_P = 40, 0.95, 0.05
_N_TOP = 5
_MOST_KEPT = 0.8


@dataclass
class _Written:
    """A reply that is being written."""

    tokens: list[int] = field(default_factory=list)
    log_probs: list[TokenLogProb] = field(default_factory=list)


def answers(
    model: TransformersModel,
    requests: Sequence[Request],
    n_samples: int,
    seeds: Sequence[int],
    choices: Sequence[str] | None = None,
) -> list[list[Reply]]:
    """The likeliest answer and ``n_samples`` drawn ones to each request, each token with its five likeliest.

    Parameters
    ----------
    model : TransformersModel
        Its log-probabilities are those before the temperature.
    requests : sequence of Request
        All with the same ``max_tokens``.
    n_samples : int
        Answers drawn at temperature 0.7.
    seeds : sequence of int
        One a request.
    choices : sequence of str, optional
        Texts of one token each; the answer is one of them.
    """
    import torch

    n_each = n_samples + 1
    prompts = [model.tokenizer.encode_request(r) for r in requests]
    allowed = None if choices is None else [model.tokenizer.encode(c)[0] for c in choices]
    n_new = 1 if allowed else int(requests[0].max_tokens or 1)
    network, ends = model._parts()[1], model.tokenizer.end_tokens
    draws = np.stack([np.random.default_rng(s).random((n_new, n_each)) for s in seeds], axis=1).reshape(n_new, -1)
    written = [_Written() for _ in range(len(requests) * n_each)]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    live, cache = np.arange(len(written)), new_cache(network)
    with torch.inference_mode():
        logits = _next(network, ids, mask, cache)
        once = torch.arange(len(requests)).repeat_interleave(n_each)
        _keep(cache, once)
        logits, mask = logits[once], mask[once]
        ended = np.zeros(len(written), dtype=bool)
        for step in range(n_new):
            chosen = _chosen(logits, live % n_each == 0, draws[step, live], allowed)
            for row, (token, log_prob, top) in zip(live, chosen, strict=True):
                ended[row] |= token in ends
                if not ended[row]:
                    written[row].tokens.append(token)
                    written[row].log_probs.append(TokenLogProb("", log_prob, tuple(("", p) for p in top)))
            going = np.flatnonzero(~ended[live])
            if not going.size or step == n_new - 1:
                break
            # Leaving out the rows that have ended copies all the others: only where enough of them have.
            if going.size <= _MOST_KEPT * live.size:
                live, kept = live[going], torch.from_numpy(going)
                _keep(cache, kept)
                mask = mask[kept]
            tokens = torch.tensor([[(written[row].tokens or [0])[-1]] for row in live])
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
            logits = _next(network, tokens, mask, cache)
    made = [Reply(model.tokenizer.decode(w.tokens), log_probs=tuple(w.log_probs)) for w in written]
    return [made[k : k + n_each] for k in range(0, len(made), n_each)]


def _next(network: Any, ids: Any, mask: Any, cache: Any) -> Any:
    """Logits after the last token of each row, (n_rows, n_vocabulary)."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return network(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
    ).logits[:, -1]


def _keep(cache: Any, rows: Any) -> None:
    for layer in cache.layers:
        layer.keys, layer.values, layer.room = layer.keys[rows], layer.values[rows], None


def _chosen(
    logits: Any, greedy: np.ndarray, draws: np.ndarray, allowed: Sequence[int] | None
) -> list[tuple[int, float, list[float]]]:
    """Token of each row, its log-probability, and the greatest log-probabilities there."""
    import torch

    total = torch.logsumexp(logits.float(), dim=1, keepdim=True)
    top, at = logits.topk(_TOP_K, dim=1)
    logs, at = (top.float() - total).double().numpy(), at.numpy()
    kept, tokens = logs, at
    if allowed is not None:
        tokens = np.broadcast_to(np.array(allowed), (len(logits), len(allowed)))
        kept = (logits[:, list(allowed)].float() - total).double().numpy()
        order = np.argsort(-kept, axis=1)
        kept, tokens = np.take_along_axis(kept, order, 1), np.take_along_axis(tokens, order, 1)
    found = []
    for row in range(len(kept)):
        pick = 0
        if not greedy[row]:
            p = np.exp(kept[row] - kept[row, 0])
            if allowed is None:
                share = np.cumsum(p) / p.sum()
                p = p[: max(1, min(int((share < _TOP_P).sum()) + 1, int((p >= _MIN_P).sum())))]
            p = p ** (1 / _TEMPERATURE)
            pick = min(int((np.cumsum(p) / p.sum() < draws[row]).sum()), len(p) - 1)
        found.append(
            (int(tokens[row, pick]), min(0.0, float(kept[row, pick])), np.minimum(logs[row, :_N_TOP], 0.0).tolist())
        )
    return found
