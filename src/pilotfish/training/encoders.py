"""Fine-tune a small BERT encoder with a linear head, for :class:`~pilotfish.models.embedder.OnnxEmbedder` to read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pilotfish.errors import missing_extra
from pilotfish.files import replacing
from pilotfish.models import catalog

__all__ = ["POOLINGS", "tune_encoder"]

POOLINGS = ("mean", "max")
"""What the head reads: the joined unit vectors of both."""
_HEAD_RATE = 50


def tune_encoder(
    texts: Sequence[str],
    n_out: int,
    loss: Callable[[Any, Sequence[int]], Any],
    folder: str | Path,
    *,
    base: str | Path = "all-minilm-l6-v2",
    n_epochs: int = 2,
    learning_rate: float = 1e-4,
    n_frozen: int = 2,
    batch_tokens: int = 1500,
    max_length: int = 128,
    seed: int = 0,
) -> Path:
    """Fine-tune an encoder and a head on its pooled vectors, and write both into a folder.

    Parameters
    ----------
    texts : sequence of str
        What is read.
    n_out : int
        Outputs of the head.
    loss : callable
        The loss of some rows' outputs, a tensor (n, n_out), given the numbers of the rows among ``texts``.
    folder : str or Path
        Where the model goes; written under another name, then renamed.
    base : str or Path
        The encoder to start from, or a folder written before, to go on from.
    n_epochs, learning_rate : int, float
        Passes over the texts; greatest step of Adam, which rises over a tenth of the steps and falls to 0.
    n_frozen : int
        Lowest layers that keep their weights, the embeddings with them; -1 tunes the embeddings too.
    batch_tokens, max_length : int
        Tokens of a step, and of a text.
    seed : int
        Of the order and the dropout.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    MissingExtraError
        When torch or transformers is not installed.
    """
    try:
        import torch
        import transformers
        from safetensors.torch import load_file, save_file
    except ImportError as error:
        raise missing_extra(error.name or "torch", "torch", "Tuning an encoder") from None
    from tokenizers import Tokenizer

    place = catalog.resolve(base)
    torch.manual_seed(seed)
    config = transformers.BertConfig.from_json_file(str(place / "config.json"))
    model = transformers.BertModel(config, add_pooling_layer=False)
    weights = {k.removeprefix("bert."): v.float() for k, v in load_file(place / "model.safetensors").items()}
    model.load_state_dict(weights, strict=False)
    for part in (model.embeddings, *model.encoder.layer)[: n_frozen + 1]:
        part.requires_grad_(False)
    head = torch.nn.Linear(len(POOLINGS) * config.hidden_size, n_out)
    if (place / "head.safetensors").is_file():
        begun = load_file(place / "head.safetensors")
        head.load_state_dict({"weight": begun["weight"].T, "bias": begun["bias"]})
    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    ids = [e.ids for e in tokenizer.encode_batch(list(texts))]
    rng = np.random.default_rng(seed)
    batches = [b for _ in range(n_epochs) for b in _batches(ids, batch_tokens, rng)]
    inner = [p for p in model.parameters() if p.requires_grad]
    # Unit vectors are small: their head needs large weights, so it takes larger steps.
    groups = [{"params": inner}, {"params": head.parameters(), "lr": _HEAD_RATE * learning_rate}]
    adam = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.01)
    rise = max(1, len(batches) // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda k: min((k + 1) / rise, (len(batches) - k) / max(1, len(batches) - rise))
    )
    model.train()
    for rows in batches:
        adam.zero_grad()
        loss(_logits(model, head, [ids[i] for i in rows]), rows).backward()
        torch.nn.utils.clip_grad_norm_([*inner, *head.parameters()], 1.0)
        adam.step()
        schedule.step()
    folder = Path(folder)
    with replacing(folder) as new:
        new.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, new / "model.safetensors")
        save_file({"weight": head.weight.T.contiguous(), "bias": head.bias}, new / "head.safetensors")
        shutil.copyfile(place / "tokenizer.json", new / "tokenizer.json")
        (new / "config.json").write_text(json.dumps(json.loads((place / "config.json").read_text())), encoding="utf-8")
    return folder


def _logits(model: Any, head: Any, ids: Sequence[Sequence[int]]) -> Any:
    """Head on the joined unit vectors of the mean and the maximum over the tokens, as the ONNX graph pools."""
    import torch

    longest = max(map(len, ids))
    tokens = torch.tensor([list(row) + [0] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in ids])[..., None]
    states = model(tokens, attention_mask=mask[..., 0]).last_hidden_state
    mean = torch.nn.functional.normalize((states * mask).sum(1), dim=-1)
    most = torch.nn.functional.normalize((states - 1e4 * (1 - mask)).amax(1), dim=-1)
    return head(torch.cat([mean, most], dim=1))


def _batches(ids: Sequence[Sequence[int]], budget: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Rows of like length in batches of a bounded number of tokens, in random order."""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]) + rng.random() * 6)
    batches: list[list[int]] = [[]]
    for i in order:
        if batches[-1] and (len(batches[-1]) + 1) * len(ids[i]) > budget:
            batches.append([])
        batches[-1].append(i)
    for k in rng.permutation(len(batches)):
        yield batches[int(k)]
