"""Choose fine-tuning examples: by closeness to a target, quality, coverage, need, and worth as examples in a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pilotfish.errors import InputError
from pilotfish.models.transformers import pretrained
from pilotfish.protocols import FloatArray, IntArray
from pilotfish.vectors import unit_rows

__all__ = ["diverse_best", "herded", "in_context_worth", "k_centres", "needed", "representative"]

_N_MOST = 4096
# Of examples where a model fails, so many times what is wanted are spread over: among the worst alone too many are odd.
_BREADTH = 8


def representative(vectors: FloatArray, target: FloatArray, k: int, redundancy: float = 0.5) -> IntArray:
    """Choose k vectors (n, d) close to target vectors (m, d) and unlike each other, best first, (k,).

    Each step takes the one with the highest mean closeness to its nearest targets, less ``redundancy`` times its
    closeness to the nearest one taken.

    References
    ----------
    Liu 2025; Carbonell and Goldstein 1998 for the trade of relevance against redundancy.

    Examples
    --------
    >>> representative(np.array([[1.0, 0.0], [1.0, 0.01], [0.7, 0.7]]), np.array([[1.0, 0.5]]), 2).tolist()
    [2, 1]
    """
    if not len(target):
        raise InputError("The target has no example: give examples that are like what is wanted.")
    unit, wanted = unit_rows(vectors), unit_rows(target)
    n_near = min(5, len(wanted))
    near = np.concatenate(
        [np.sort(unit[i : i + 2048] @ wanted.T, axis=1)[:, -n_near:].mean(axis=1) for i in range(0, len(unit), 2048)]
    )
    closest = np.zeros(len(unit))
    taken = np.zeros(len(unit), dtype=bool)
    chosen = []
    for _ in range(min(k, len(unit))):
        best = int(np.where(taken, -np.inf, near - redundancy * closest).argmax())
        chosen.append(best)
        taken[best] = True
        closest = np.maximum(closest, unit @ unit[best])
    return np.array(chosen, dtype=np.int64)


def diverse_best(vectors: FloatArray, quality: FloatArray, k: int, seed: int = 0) -> IntArray:
    """Choose k examples: the best of each of k groups of like vectors (n, d), by quality (n,), (k,).

    References
    ----------
    Zhou 2023 (LIMA, arXiv:2305.11206): a thousand examples of quality and diversity.

    Examples
    --------
    >>> diverse_best(np.array([[0.0, 1], [0, 1.1], [1, 0]]), np.array([0.1, 0.9, 0.2]), 2).tolist()
    [1, 2]
    """
    from sklearn.cluster import MiniBatchKMeans

    k = min(k, len(vectors))
    groups = MiniBatchKMeans(k, random_state=seed, n_init=1, batch_size=2048, max_iter=10).fit_predict(
        unit_rows(vectors)
    )
    order = np.lexsort((-quality, groups))
    first = np.concatenate([[True], groups[order][1:] != groups[order][:-1]])
    chosen = order[first]
    if chosen.size < k:
        rest = np.setdiff1d(np.arange(len(vectors)), chosen)
        chosen = np.concatenate([chosen, rest[np.argsort(-quality[rest], kind="stable")[: k - chosen.size]]])
    return np.sort(chosen).astype(np.int64)


def herded(
    vectors: FloatArray, k: int, labels: IntArray | None = None, sharpness: float = 2.0, seed: int = 0
) -> IntArray:
    """Choose about k vectors (n, d) whose mean is that of all in the space of a kernel, each label in proportion.

    Each step takes the one that lies where most are and fewest have been taken: the mean of what is chosen nears that
    of all as 1 / k, that of a random choice as 1 / sqrt(k).

    Parameters
    ----------
    vectors : ndarray, (n, d)
        Embeddings.
    k : int
        How many to choose.
    labels : ndarray of int, (n,), optional
        Chosen from by themselves; one label when left out.
    sharpness : float
        The kernel of two vectors is exp(sharpness * (cosine - 1)).
    seed : int
        Of the sample of 4,096 that stands for a larger label.

    References
    ----------
    Chen 2010 (arXiv:1203.3472), equation 8.

    Examples
    --------
    >>> herded(np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0], [0.1, 1.0]]), 2).tolist()
    [2, 4]
    """
    unit, rng = unit_rows(vectors), np.random.default_rng(seed)
    labels = np.zeros(len(unit), dtype=np.int64) if labels is None else labels
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        of_all = unit[rng.permutation(members)[:_N_MOST]]
        mean = np.concatenate(
            [
                np.exp(sharpness * (unit[part] @ of_all.T - 1)).mean(axis=1)
                for part in np.array_split(members, -(-members.size // _N_MOST))
            ]
        )
        taken = np.zeros(members.size)
        for step in range(min(round(k * members.size / len(unit)), members.size)):
            best = int((mean - taken / (step + 1)).argmax())
            chosen.append(int(members[best]))
            taken += np.exp(sharpness * (unit[members] @ unit[members[best]] - 1))
            mean[best] = -np.inf
    return np.sort(np.array(chosen, dtype=np.int64))


def k_centres(vectors: FloatArray, k: int, start: Sequence[int] = (0,)) -> IntArray:
    """Choose k vectors (n, d) so that no vector is far from one chosen: the farthest is taken next, (k,).

    References
    ----------
    Sener 2018 (arXiv:1708.00489), algorithm 1; Du 2023 (MoDS, arXiv:2311.15653), section 3.2.

    Examples
    --------
    >>> k_centres(np.array([[0.0], [1.0], [10.0]]), 2).tolist()
    [0, 2]
    """
    chosen = list(start)[:k]
    far = np.full(len(vectors), np.inf)
    for i in chosen:
        far = np.minimum(far, ((vectors - vectors[i]) ** 2).sum(axis=1))
    while len(chosen) < min(k, len(vectors)):
        far[chosen] = -1
        chosen.append(int(far.argmax()))
        far = np.minimum(far, ((vectors - vectors[chosen[-1]]) ** 2).sum(axis=1))
    return np.array(chosen, dtype=np.int64)


def needed(
    vectors: FloatArray,
    quality: FloatArray,
    k: int,
    tuned: Callable[[IntArray], FloatArray],
    least: float = 0.0,
    share: float = 0.5,
) -> IntArray:
    """Choose k examples in three stages: good, covering, and then those where a model tuned on these still fails.

    Parameters
    ----------
    vectors, quality : ndarray, (n, d) and (n,)
        Embeddings, and a reward model's scores.
    k : int
        Examples chosen.
    tuned : callable
        Given the examples chosen so far, gives the reward (n,) of what a model tuned on them answers.
    least : float
        Least quality.
    share : float
        Part of k chosen for coverage before the need is looked at.

    References
    ----------
    Du 2023 (MoDS, arXiv:2311.15653), section 3.
    """
    good = np.flatnonzero(quality >= least)
    if good.size <= k:
        return np.asarray(good, dtype=np.int64)
    seed = good[k_centres(vectors[good], max(1, int(share * k)))]
    rewards = tuned(seed)
    rest = np.setdiff1d(good, seed)
    poor = rest[np.argsort(rewards[rest], kind="stable")][: _BREADTH * (k - seed.size)]
    more = poor[k_centres(vectors[poor], k - seed.size)] if poor.size else poor
    return np.concatenate([seed, more]).astype(np.int64)


def in_context_worth(
    model_name: str,
    examples: Sequence[tuple[str, str]],
    *,
    n_shots: int = 5,
    n_queries: int = 3,
    n_rounds: int = 1,
    longest: int = 1024,
    seed: int = 0,
) -> FloatArray:
    """Worth of each example as a demonstration: how well queries are answered, times the attention it gets, (n,).

    Every example is shown in ``n_rounds`` prompts of ``n_shots``; the measure of an answer is the geometric mean of
    its tokens' probabilities, so that nothing has to be written.

    Parameters
    ----------
    model_name : str
        A causal language model that transformers reads: a name of the catalog, a folder, or a name of the hub.
    examples : sequence of (prompt, answer)
        The pool.
    n_shots, n_queries, n_rounds : int
        Demonstrations in a prompt, queries after them, and prompts that show each example.
    longest : int
        Characters of an example.

    References
    ----------
    Wang 2025 (Data Whisperer, arXiv:2505.12212), section 3.
    """
    if len(examples) < n_shots + n_queries:
        raise InputError(f"The pool has {len(examples)} examples: give at least {n_shots + n_queries}.")
    how = {"dtype": "float32", "attn_implementation": "eager"}
    tokenizer, model = pretrained("AutoModelForCausalLM", model_name, "Worth in context", **how)
    import torch

    rng = np.random.default_rng(seed)
    total, shown = np.zeros(len(examples)), np.zeros(len(examples))

    def encoded(text: str) -> list[int]:
        return list(tokenizer(text[:longest], add_special_tokens=False)["input_ids"])

    with torch.inference_mode():
        for _ in range(n_rounds):
            order = rng.permutation(len(examples))
            for start in range(0, len(order), n_shots):
                shots = order[start : start + n_shots]
                others = np.setdiff1d(order, shots)
                parts = [encoded(f"Question: {examples[i][0]}\nAnswer: {examples[i][1]}\n\n") for i in shots]
                edges = np.cumsum([0, *(len(part) for part in parts)])
                # The demonstrations are read once for all queries after them.
                read = model(input_ids=torch.tensor([[t for part in parts for t in part]]), logits_to_keep=1)
                for q in rng.choice(others, n_queries, replace=False):
                    asked = encoded(f"Question: {examples[q][0]}\nAnswer:")
                    answer = encoded(f" {examples[q][1]}") or [tokenizer.eos_token_id]
                    out: Any = model(
                        input_ids=torch.tensor([asked + answer]),
                        past_key_values=read.past_key_values,
                        output_attentions=True,
                        logits_to_keep=len(answer) + 1,
                    )
                    read.past_key_values.crop(-len(asked) - len(answer))
                    logs = torch.log_softmax(out.logits[0, :-1], dim=-1)
                    metric = float(torch.exp(logs[torch.arange(len(answer)), torch.tensor(answer)].mean()))
                    seen = torch.stack(
                        [a[0, :, -len(answer) :, : edges[-1]].mean(dim=(0, 1)) for a in out.attentions]
                    ).mean(0)
                    mass = np.array([float(seen[a:b].sum()) / max(b - a, 1) for a, b in pairwise(edges)])
                    total[shots] += metric * mass / max(mass.sum(), 1e-12)
                    shown[shots] += 1
    return np.asarray(total / np.maximum(shown, 1))
