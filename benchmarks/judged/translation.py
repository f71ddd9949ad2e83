"""What small metrics say of a translation beside its reference, finely, and a ranking learned from other systems."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.judged.features import exchange
from pilotfish.models.embedder import OnnxEmbedder
from pilotfish.scorers.bertscore import BertScore, _nearest, _rarity
from pilotfish.scorers.combination import preference_weights
from pilotfish.scorers.reference import Bleu, Chrf, Rouge

__all__ = ["VERSION", "by_system", "fine_columns"]

VERSION = 2
"""Goes up when the columns change."""
Array = NDArray[np.float64]
# Of each encoder the middle layer and the last.
_LAYERS = (("minilm", 3), ("minilm", None), ("mpnet", 6), ("mpnet", None))
_POOLINGS = ("mean", "max", "mean@3")
_N_CHARACTERS, _N_WORDS = (1, 2, 3, 4, 6), (1, 2, 3)
_WORD, _NUMBER, _NAME = re.compile(r"\w+"), re.compile(r"\d[\d.,]*"), re.compile(r"(?<!^)(?<!\. )\b[A-Z]\w+")
_N_FOLDS = 5
_REFERENCES_AT_ONCE = 100


def _made(name: str, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:  # noqa: ARG001
    return make()


def fine_columns(
    pairs: Sequence[tuple[str, str]],
    n_threads: int | None = None,
    keep: Callable[[str, Callable[[], dict[str, Array]]], dict[str, Array]] = _made,
) -> dict[str, Array]:
    """Columns (n,) by name for translations and their references; more is better.

    BERTScore of two layers of two encoders, plain and by rarity, with its worst matches and how far the matches keep
    the order; sentence vectors; BLEU, chrF and ROUGE; shares of n-grams, numbers and names; length and repetition.
    ``keep`` is told the name of each part and how to make it.
    """
    made: dict[str, Array] = {}
    for encoder, layer in _LAYERS:
        part = f"{encoder}-{layer or 'last'}"
        columns = keep(part, partial(_token_columns, pairs, encoder, layer, n_threads))
        made |= {f"{name}@{part}": column for name, column in columns.items()}
    return made | keep("texts", partial(_text_columns, pairs, n_threads))


def _text_columns(pairs: Sequence[tuple[str, str]], n_threads: int | None) -> dict[str, Array]:
    made: dict[str, Array] = {}
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    embedder = OnnxEmbedder(precision="int8", poolings=_POOLINGS, n_threads=n_threads)
    vectors = dict(zip(texts, embedder.embed(texts).reshape(len(texts), len(_POOLINGS), -1), strict=True))
    for k, pooling in enumerate(_POOLINGS):
        made[f"sentence {pooling}"] = np.array([float(vectors[a][k] @ vectors[r][k]) for a, r in pairs])
    items = [exchange(a, [r]) for a, r in pairs]
    made |= {"chrF": Chrf().score(items), "BLEU": Bleu().score(items), "ROUGE-L": Rouge().score(items)}
    shares = np.array([_shares(a, r) for a, r in pairs])
    made |= {f"share {k}": column for k, column in enumerate(shares.T)}
    ratio = np.array([np.log((len(a) + 1) / (len(r) + 1)) for a, r in pairs])
    words = [_WORD.findall(a.lower()) for a, _ in pairs]
    made |= {"length": -np.abs(ratio), "longer": ratio}
    made["repetition"] = np.array([-len(w) / max(1, len(set(w))) for w in words])
    return made


_MATCHED = (
    "precision", "recall", "bertscore", "rare precision", "rare recall", "worst own", "worst other", "low own",
    "low other", "in a run", "in order",
)  # fmt: skip


def _token_columns(
    pairs: Sequence[tuple[str, str]], encoder: str, layer: int | None, n_threads: int | None
) -> dict[str, Array]:
    """What the match of tokens says, by name; vectors of some references and their translations are held at once."""
    score = BertScore(encoder, precision="int8", max_length=256, layer=layer, n_threads=n_threads)
    by_reference: dict[str, list[int]] = {}
    for i, (_, reference) in enumerate(pairs):
        by_reference.setdefault(reference, []).append(i)
    idf, unseen = _rarity(score._ids(list(by_reference))[0])
    found, groups = np.empty((len(pairs), len(_MATCHED))), list(by_reference.values())
    for at in range(0, len(groups), _REFERENCES_AT_ONCE):
        rows = [i for group in groups[at : at + _REFERENCES_AT_ONCE] for i in group]
        texts = list(dict.fromkeys(text for i in rows for text in pairs[i]))
        known = dict(zip(texts, score._vectors(texts), strict=True))
        for i in rows:
            found[i] = _matched(known[pairs[i][0]], known[pairs[i][1]], idf, unseen)
    return dict(zip(_MATCHED, found.T, strict=True))


def _matched(
    own: tuple[list[int], NDArray[np.float32]],
    other: tuple[list[int], NDArray[np.float32]],
    idf: Mapping[int, float],
    unseen: float,
) -> list[float]:
    a, b = own[1][1:-1], other[1][1:-1]
    if not len(a) or not len(b):
        return [0.0] * len(_MATCHED)
    # The special tokens at both ends may be matched, but are not counted.
    mine, theirs = (near[1:-1] for near in _nearest(own[1], other[1]))
    weights = [np.array([idf.get(i, unseen) for i in ids[1:-1]]) + 1e-9 for ids, _ in (own, other)]
    p, r = float(mine.mean()), float(theirs.mean())
    steps = np.diff((a @ b.T).argmax(axis=0))
    return [
        p, r, 2 * p * r / (p + r) if p + r > 0 else 0.0,
        float(mine @ weights[0] / weights[0].sum()), float(theirs @ weights[1] / weights[1].sum()),
        float(mine.min()), float(theirs.min()), float(np.quantile(mine, 0.2)), float(np.quantile(theirs, 0.2)),
        float((steps == 1).mean()) if steps.size else 0.0, float((steps > 0).mean()) if steps.size else 0.0,
    ]  # fmt: skip


def _shares(text: str, reference: str) -> list[float]:
    """Shares of the text's n-grams, numbers and names that the reference has, and the other way round."""
    found: list[float] = []
    letters = [t.lower().replace(" ", "") for t in (text, reference)]
    words = [_WORD.findall(t.lower()) for t in (text, reference)]
    counted = [[Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in letters] for n in _N_CHARACTERS]
    counted += [[Counter(zip(*(w[i:] for i in range(n)), strict=False)) for w in words] for n in _N_WORDS]
    counted += [[Counter(kind.findall(t)) for t in (text, reference)] for kind in (_NUMBER, _NAME)]
    for own, other in counted:
        both = sum((own & other).values())
        found += [both / n if (n := sum(part.values())) else float(not own and not other) for part in (own, other)]
    return found


def by_system(
    differences: Mapping[str, Array], systems: Mapping[str, Sequence[tuple[str, str]]], seed: int = 0
) -> dict[str, Array]:
    """How far the better translation is put above the worse one, by a line that has seen neither of their systems.

    The line minimises the logistic loss of pairs; a pair of one language is scored by a line learned from all pairs of
    the others and from those of its own language whose two systems are in other folds.

    Parameters
    ----------
    differences : mapping of str to ndarray (n, d)
        By language: columns of the better translation minus those of the worse one.
    systems : mapping of str to sequence of pairs of str
        The two systems of each pair.
    seed : int
        Of the folds of systems.
    """
    found = {}
    for language, x in differences.items():
        others = [differences[name] for name in differences if name != language]
        names = sorted({name for pair in systems[language] for name in pair})
        fold = dict(zip(np.random.default_rng(seed).permutation(names), range(len(names)), strict=True))
        folds = np.array([sorted(fold[name] % _N_FOLDS for name in pair) for pair in systems[language]])
        found[language] = np.empty(len(x))
        for held in np.unique(folds, axis=0):
            apply, learn = (folds == held).all(axis=1), ~np.isin(folds, held).any(axis=1)
            found[language][apply] = x[apply] @ preference_weights(np.concatenate([x[learn], *others]))
    return found
