"""A BERT encoder of a few thousand weights in a folder, with a tokenizer of whole words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

_TEXT = "a the man cat dog sleeps runs rests walks is not red blue green one two and on mat he it . 1 2 3"
WORDS = _TEXT.split()


def write_toy_encoder(folder: Path, size: int = 16, n_layers: int = 2, n_positions: int = 64) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(names), size),
        "embeddings.position_embeddings.weight": (n_positions, size),
        "embeddings.token_type_embeddings.weight": (2, size),
    }
    norms = ["embeddings"]
    for i in range(n_layers):
        layer = f"encoder.layer.{i}."
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{layer}{part}.weight": (size, size), f"{layer}{part}.bias": (size,)}
        shapes |= {
            f"{layer}intermediate.dense.weight": (2 * size, size),
            f"{layer}intermediate.dense.bias": (2 * size,),
        }
        shapes |= {f"{layer}output.dense.weight": (size, 2 * size), f"{layer}output.dense.bias": (size,)}
        norms += [f"{layer}attention.output", f"{layer}output"]
    weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    for name in norms:
        weights[f"{name}.LayerNorm.weight"] = np.ones(size, np.float32)
        weights[f"{name}.LayerNorm.bias"] = np.zeros(size, np.float32)
    save_file(weights, folder / "model.safetensors")
    config = {
        "hidden_size": size, "num_hidden_layers": n_layers, "num_attention_heads": 2, "layer_norm_eps": 1e-12,
        "intermediate_size": 2 * size, "vocab_size": len(names), "max_position_embeddings": n_positions,
        "hidden_act": "gelu", "type_vocab_size": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
