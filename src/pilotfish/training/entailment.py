"""Fine-tune a small encoder to tell what follows from what, in a few minutes of one core."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pilotfish.errors import InputError, missing_extra
from pilotfish.files import replacing
from pilotfish.models import catalog
from pilotfish.scorers.entailment import joined

__all__ = ["Inference", "corrupted", "train_entailment"]

LABELS = ("entailment", "neutral", "contradiction", "not entailment")
_HEAD_RATE = 50
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'])")
_NUMBER = re.compile(r"\b\d[\d,.]*\d\b|\b\d\b")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+(?: [A-Z][a-z]+)*")


@dataclass(frozen=True, slots=True)
class Inference:
    """A premise, a hypothesis, and what holds between them: one of ``LABELS``."""

    premise: str
    hypothesis: str
    label: str


def corrupted(documents: Sequence[str], n: int, seed: int = 0) -> list[Inference]:
    """Make examples from plain documents: sentences of a passage, and such with a name or number taken from elsewhere.

    Parameters
    ----------
    documents : sequence of str
        Plain texts; those of fewer than four sentences are passed over.
    n : int
        Examples wanted; fewer where the documents give fewer.
    seed : int
        Seed of the choices.

    References
    ----------
    Kryscinski et al. 2020 (FactCC, arXiv:1910.12840), section 3.1.
    """
    rng = np.random.default_rng(seed)
    split = [[s.strip() for s in _SENTENCE.split(d.replace("\n", " ")) if 30 < len(s) < 300] for d in documents]
    split = [s for s in split if len(s) >= 4]
    names = sorted({m for s in split for x in s for m in _NAME.findall(x)})
    made: list[Inference] = []
    for _ in range(4 * n):
        if len(made) >= n or not split:
            break
        sentences = split[int(rng.integers(len(split)))]
        start = int(rng.integers(0, len(sentences) - 2))
        passage = sentences[start : start + int(rng.integers(2, 6))]
        chosen = passage[int(rng.integers(len(passage)))]
        premise, kind = " ".join(passage), int(rng.integers(4))
        if kind == 0:
            made.append(Inference(premise, chosen, "entailment"))
        elif kind == 1:
            outside = [s for s in sentences if s not in passage]
            if outside:
                made.append(Inference(premise, outside[int(rng.integers(len(outside)))], "not entailment"))
        else:
            changed = _swapped(chosen, premise, _NUMBER if kind == 2 else _NAME, names, rng)
            if changed is not None:
                made.append(Inference(premise, changed, "not entailment"))
    return made


def _swapped(
    sentence: str, passage: str, pattern: re.Pattern[str], names: Sequence[str], rng: np.random.Generator
) -> str | None:
    found = list(pattern.finditer(sentence))
    if not found or not names:
        return None
    at = found[int(rng.integers(len(found)))]
    others = [m for m in dict.fromkeys(pattern.findall(passage)) if m != at.group()]
    if pattern is _NUMBER and not others:
        new = str(int(rng.integers(2, 2000)))
    else:
        new = others[int(rng.integers(len(others)))] if others else names[int(rng.integers(len(names)))]
    return None if new == at.group() else sentence[: at.start()] + new + sentence[at.end() :]


def train_entailment(
    examples: Sequence[Inference],
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
    """Fine-tune an encoder on examples and write it where :class:`~pilotfish.scorers.entailment.SmallEntailment` looks.

    Parameters
    ----------
    examples : sequence of Inference
        At least 100; ``not entailment`` is enough of a label where nobody said more.
    folder : str or Path
        Where the model goes; written under another name, then renamed.
    base : str or Path
        The encoder to start from, or a folder written before, to go on from.
    n_epochs, learning_rate : int, float
        Passes over the examples; greatest step of Adam, which rises over a tenth of the steps and falls to 0.
    n_frozen : int
        Lowest layers that keep their weights, the embeddings with them.
    batch_tokens, max_length : int
        Tokens of a step, and of an example.
    seed : int
        Of the order and the dropout.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        When there are too few examples or a label is unknown.
    MissingExtraError
        When torch or transformers is not installed.
    """
    unknown = sorted({e.label for e in examples} - set(LABELS))
    if len(examples) < 100 or unknown:
        raise InputError(f"{len(examples)} examples, unknown labels {unknown}: give at least 100, of {LABELS}.")
    try:
        import torch
        import transformers
        from safetensors.torch import load_file, save_file
    except ImportError as error:
        raise missing_extra(error.name or "torch", "torch", "Training a cross-encoder") from None
    from tokenizers import Tokenizer

    place = catalog.resolve(base)
    torch.manual_seed(seed)
    config = transformers.BertConfig.from_json_file(str(place / "config.json"))
    model = transformers.BertModel(config, add_pooling_layer=False)
    weights = {k.removeprefix("bert."): v.float() for k, v in load_file(place / "model.safetensors").items()}
    model.load_state_dict(weights, strict=False)
    for part in (model.embeddings, *model.encoder.layer[:n_frozen]):
        part.requires_grad_(False)
    head = torch.nn.Linear(2 * config.hidden_size, 3)
    if (place / "head.safetensors").is_file():
        begun = load_file(place / "head.safetensors")
        head.load_state_dict({"weight": begun["weight"].T, "bias": begun["bias"]})
    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    ids = [e.ids for e in tokenizer.encode_batch([joined(e.premise, e.hypothesis) for e in examples])]
    labels = [LABELS.index(e.label) for e in examples]
    rng = np.random.default_rng(seed)
    batches = [b for _ in range(n_epochs) for b in _batches(ids, batch_tokens, rng)]
    parameters = [p for p in (*model.parameters(), *head.parameters()) if p.requires_grad]
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
        logits = _logits(model, head, [ids[i] for i in rows])
        logs = torch.log_softmax(logits, dim=-1)
        # "Not entailment" is either of the two others: their probability is added up.
        either = torch.cat([logs, torch.logsumexp(logs[:, 1:], dim=1, keepdim=True)], dim=1)
        loss = -either[torch.arange(len(rows)), torch.tensor([labels[i] for i in rows])].mean()
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
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
