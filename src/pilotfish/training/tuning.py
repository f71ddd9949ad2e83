"""Small training of causal language models: domain experts, drafts, preference pairs and policy adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pilotfish.errors import InputError
from pilotfish.files import replacing
from pilotfish.models.tokenizers import encode_request
from pilotfish.models.transformers import TransformersModel, answer_loss, first_layers, low_rank
from pilotfish.types import Request

__all__ = ["distil_draft", "prefer", "save_model", "train_adapter", "tune"]


def tune(
    model: TransformersModel,
    examples: Sequence[tuple[str | Request, str]],
    *,
    n_steps: int = 60,
    batch_size: int = 4,
    learning_rate: float = 1e-4,
    rank: int = 0,
    max_tokens: int = 256,
    seed: int = 0,
) -> TransformersModel:
    """Fine-tune a copy of a model on texts.

    Parameters
    ----------
    model : TransformersModel
        Left as it is.
    examples : sequence of (str or Request, str)
        What comes before, not learned (may be empty), and the text. After a request the text is learned as the whole
        reply, its end included.
    n_steps, batch_size : int
        Updates, and examples of each.
    learning_rate : float
        Its peak; it falls linearly.
    rank : int
        Of LoRA matrices, merged at the end; 0 trains all weights.
    max_tokens : int
        Longer examples are cut.
    seed : int
        Of the order of the examples.

    Raises
    ------
    InputError
        When there are no examples.
    """
    tokenizer, trained = _copied(model)
    rows = [_encoded(tokenizer, before, text, max_tokens) for before, text in examples]
    rows = [row for row in rows if len(row[0]) > max(1, row[1])]
    if not rows:
        raise InputError("There are no examples to learn: give at least one text of two tokens.")
    if rank:
        trained = low_rank(trained, rank, "Tuning low-rank weights")

    def loss(batch: list[tuple[list[int], int]]) -> Any:
        ids, wanted = _padded([row[0] for row in batch], [row[1] for row in batch], trained.device)
        return answer_loss(trained, ids, wanted)

    _descend(trained, rows, loss, n_steps, batch_size, learning_rate, seed)
    return _finished(model, tokenizer, trained.merge_and_unload() if rank else trained)


def distil_draft(
    model: TransformersModel,
    texts: Sequence[str],
    *,
    n_layers: int = 3,
    n_steps: int = 100,
    batch_size: int = 4,
    learning_rate: float = 3e-4,
    max_tokens: int = 128,
    seed: int = 0,
) -> TransformersModel:
    """Make a drafter out of some layers of a model, evenly spread, by forward KL to the whole.

    Its embeddings are the model's own and are not trained.

    Raises
    ------
    InputError
        When there are no texts, or the model has fewer layers.
    """
    import torch

    tokenizer, whole = model._trainable()
    n_whole = len(whole.model.layers)
    if not 1 <= n_layers <= n_whole:
        raise InputError(f"n_layers is {n_layers}, but the model has {n_whole}: give 1 to its number of layers.")
    draft = first_layers(whole, n_layers)
    kept = np.unique(np.linspace(0, n_whole - 1, n_layers).round().astype(int))
    layers = [copy.deepcopy(whole.model.layers[i]) for i in kept]
    for i, layer in enumerate(layers):
        layer.self_attn.layer_idx = i  # its place in the cache
    draft.model.layers = torch.nn.ModuleList(layers)
    draft.model.norm = copy.deepcopy(whole.model.norm)
    rows = [(list(tokenizer(text)["input_ids"][:max_tokens]), 0) for text in texts]
    rows = [row for row in rows if len(row[0]) > 1]
    if not rows:
        raise InputError("There are no texts to learn from: give at least one of two tokens.")
    weights = [*draft.model.layers.parameters(), *draft.model.norm.parameters()]

    def loss(batch: list[tuple[list[int], int]]) -> Any:
        ids, wanted = _padded([row[0] for row in batch], [0] * len(batch), whole.device)
        real = (wanted != -100).flatten()
        with torch.no_grad():
            teacher = whole(ids).logits.flatten(0, 1)[real].float().log_softmax(-1)
        student = draft(ids).logits.flatten(0, 1)[real].float().log_softmax(-1)
        return torch.nn.functional.kl_div(student, teacher, log_target=True, reduction="batchmean")

    _descend(draft, rows, loss, n_steps, batch_size, learning_rate, seed, weights)
    return _finished(model, tokenizer, draft)


def prefer(
    model: TransformersModel,
    triples: Sequence[tuple[str, str, str]],
    *,
    beta: float = 0.1,
    n_steps: int = 60,
    batch_size: int = 4,
    learning_rate: float = 2e-5,
    max_tokens: int = 192,
    seed: int = 0,
) -> TransformersModel:
    """Tune a copy of a model to prefer the chosen of two texts: direct preference optimisation.

    Parameters
    ----------
    triples : sequence of (str, str, str)
        What comes before, the chosen text and the rejected one.
    beta : float
        How strongly the copy is held to the model.

    References
    ----------
    Rafailov et al., arXiv:2305.18290, eq. 7.
    """
    import torch

    tokenizer, trained = _copied(model)
    reference = model._parts()[1]
    rows = [tuple(_encoded(tokenizer, b, text, max_tokens) for text in (good, bad)) for b, good, bad in triples]
    rows = [row for row in rows if all(len(ids) > max(1, n) for ids, n in row)]
    if not rows:
        raise InputError("There are no preferences to learn: give at least one whose texts fit max_tokens.")

    def sums(network: Any, batch: list[Any]) -> Any:
        ids, wanted = _padded([r[0] for r in batch], [r[1] for r in batch], network.device)
        logs = network(ids).logits[:, :-1].float().log_softmax(-1)
        real = wanted[:, 1:] != -100
        return (logs.gather(2, ids[:, 1:, None])[..., 0] * real).sum(1)

    def loss(batch: list[Any]) -> Any:
        flat = [side for row in batch for side in row]
        with torch.no_grad():
            before = sums(reference, flat)
        ratio = (sums(trained, flat) - before).view(-1, 2)
        return -torch.nn.functional.logsigmoid(beta * (ratio[:, 0] - ratio[:, 1])).mean()

    _descend(trained, rows, loss, n_steps, batch_size, learning_rate, seed)
    return _finished(model, tokenizer, trained)


def train_adapter(
    base: TransformersModel,
    adapter: TransformersModel,
    prompts: Sequence[str],
    reward: Callable[[list[str]], Sequence[float]],
    *,
    n_rounds: int = 20,
    n_samples: int = 8,
    n_tokens: int = 16,
    learning_rate: float = 2e-5,
    seed: int = 0,
) -> TransformersModel:
    """Train a policy adapter by policy gradient, so that base times adapter writes what is rewarded.

    Every round draws replies to one prompt from p_base p_adapter; each reply moves the adapter by its reward less the
    round's mean. The base is only read: an adapter trained on a small base can be used with a large one.

    Parameters
    ----------
    base, adapter : TransformersModel
        Of one vocabulary; both are left as they are.
    prompts : sequence of str
        Texts to continue.
    reward : callable
        From continuations to numbers; higher is better.
    n_rounds, n_samples, n_tokens : int
        Rounds, replies of a round, tokens of a reply.

    References
    ----------
    Inference-time policy adapters: Lu et al., arXiv:2305.15065, section 2; the update is REINFORCE with a baseline.
    """
    import torch

    if not prompts:
        raise InputError("There are no prompts to learn from: give at least one.")
    tokenizer, trained = _copied(adapter)
    frozen = base._parts()[1]
    random = torch.Generator(device="cpu").manual_seed(seed)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=learning_rate, weight_decay=0.0)
    for i in range(n_rounds):
        start = tokenizer(prompts[i % len(prompts)], return_tensors="pt")["input_ids"].to(frozen.device)
        ids = start.repeat(n_samples, 1)
        with torch.no_grad():
            for _ in range(n_tokens):
                joint = frozen(ids).logits[:, -1].float().log_softmax(-1) + trained(ids).logits[:, -1].float()
                drawn = torch.multinomial(joint.softmax(-1).cpu(), 1, generator=random).to(ids.device)
                ids = torch.cat([ids, drawn], dim=1)
            fixed = frozen(ids).logits[:, start.shape[1] - 1 : -1].float().log_softmax(-1)
        texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in ids[:, start.shape[1] :]]
        rewards = torch.tensor(list(reward(texts)), dtype=torch.float32, device=ids.device)
        gain = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        joint = (fixed + trained(ids).logits[:, start.shape[1] - 1 : -1].float().log_softmax(-1)).log_softmax(-1)
        chosen = joint.gather(2, ids[:, start.shape[1] :, None])[..., 0].mean(1)
        optimizer.zero_grad()
        (-(gain * chosen).mean()).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
    return _finished(adapter, tokenizer, trained)


def save_model(model: TransformersModel, folder: str | Path) -> None:
    """Save a trained model as a folder of safetensors, whole or not at all; its path is a model's name."""
    tokenizer, network = model._trainable()
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder} exists already: give a new folder.")
    with replacing(folder) as new:
        tokenizer.save_pretrained(new)
        network.save_pretrained(new, safe_serialization=True)


def _copied(model: TransformersModel) -> tuple[Any, Any]:
    tokenizer, network = model._trainable()
    return tokenizer, copy.deepcopy(network).requires_grad_(True)


def _finished(like: TransformersModel, tokenizer: Any, network: Any) -> TransformersModel:
    made = TransformersModel(like.model, dtype=like.dtype, device=like.device, batch_size=like.batch_size)
    made._trained = (tokenizer, network.eval())
    return made


def _encoded(tokenizer: Any, before: str | Request, text: str, max_tokens: int) -> tuple[list[int], int]:
    """The tokens of an example, and how many of them come before."""
    body = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if isinstance(before, Request):
        head = encode_request(tokenizer, before)
        body.append(tokenizer.eos_token_id)
    else:
        head = list(tokenizer(before, add_special_tokens=False)["input_ids"]) if before else []
    return [*head, *body][:max_tokens], len(head)


def _padded(rows: Sequence[list[int]], n_before: Sequence[int], device: Any) -> tuple[Any, Any]:
    """Tokens padded at the right, and the same with -100 where nothing is to be learned; both (n, longest)."""
    import torch

    longest = max(len(row) for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    wanted = torch.full((len(rows), longest), -100)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        wanted[i, n_before[i] : len(row)] = ids[i, n_before[i] : len(row)]
    return ids.to(device), wanted.to(device)


def _batches(n: int, size: int, seed: int) -> Iterator[list[int]]:
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(n)
        for start in range(0, n, size):
            yield [int(i) for i in order[start : start + size]]


def _descend(
    network: Any,
    rows: Sequence[Any],
    loss: Callable[[list[Any]], Any],
    n_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    weights: Sequence[Any] | None = None,
) -> None:
    import torch

    trained = list(weights or (p for p in network.parameters() if p.requires_grad))
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    batches = _batches(len(rows), batch_size, seed)
    network.train()
    for step in range(n_steps):
        warm = min(1.0, (step + 1) / max(1, n_steps // 10))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * warm * (1 - step / n_steps)
        optimizer.zero_grad()
        loss([rows[i] for i in next(batches)]).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    for parameter in trained:
        parameter.requires_grad_(False)
    network.eval()
