"""Influence of training examples on target examples, by gradients: of a linear head, or of a small language model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError
from pilotfish.models.transformers import answer_loss, low_rank, pretrained
from pilotfish.protocols import FloatArray, IntArray
from pilotfish.vectors import unit_rows

__all__ = [
    "adam_directions",
    "best_in_turn",
    "chosen_by_gradients",
    "gradient_match",
    "linear_gradients",
    "linear_influence",
    "lora_gradients",
    "projected",
]


def linear_gradients(X: FloatArray, targets: Sequence[int] | NDArray[Any], probabilities: FloatArray) -> FloatArray:
    """Gradient of the log-loss of each example with respect to the weights of a softmax head, (n, d * n_classes).

    Examples
    --------
    >>> linear_gradients(np.array([[2.0]]), [0], np.array([[0.75, 0.25]]))
    array([[-0.5,  0.5]])
    """
    errors = probabilities - np.eye(probabilities.shape[1])[np.asarray(targets)]
    return np.asarray((X[:, :, None] * errors[:, None, :]).reshape(len(X), -1))


def linear_influence(
    X: FloatArray, targets: FloatArray, X_test: FloatArray, targets_test: FloatArray, ridge: float = 1e-3
) -> FloatArray:
    """How much leaving out each example of a ridge regression would raise the loss on a test set, (n,).

    The first-order effect through the Hessian, with each example's leverage corrected, so that it is that of leaving
    out and not of a small change of weight.

    Parameters
    ----------
    X, targets : ndarray, (n, d) and (n,) or (n, k)
        The training set.
    X_test, targets_test : ndarray
        The test set.
    ridge : float
        Penalty, times n, on squared weights.

    References
    ----------
    Koh and Liang 2017 (arXiv:1703.04730), equation 2; Cook 1977 for the leverage.

    Examples
    --------
    >>> linear_influence(np.array([[1.0], [1.0]]), np.array([1.0, -5.0]), np.array([[1.0]]), np.array([1.0])).argmax()
    np.int64(0)
    """
    Y, Y_test = targets.reshape(len(X), -1), targets_test.reshape(len(X_test), -1)
    hessian = X.T @ X + ridge * len(X) * np.eye(X.shape[1])
    solved = np.linalg.solve(hessian, X.T)
    weights = solved @ Y
    residuals = Y - X @ weights
    leverage = np.einsum("ij,ji->i", X, solved)
    pull = -2 * (Y_test - X_test @ weights).T @ X_test / len(X_test)  # gradient of the test loss, (k, d)
    # Weights without example i: weights - solved_i residual_i / (1 - leverage_i).
    moved = -(pull @ solved) * (residuals / np.maximum(1 - leverage, 1e-9)[:, None]).T
    return np.asarray(moved.sum(axis=0))


def projected(gradients: NDArray[Any], n_dimensions: int, seed: int = 0) -> NDArray[np.float32]:
    """Project gradients (n, d) to few dimensions, (n, n_dimensions), by a count sketch; inner products stay about.

    Each coordinate is added with a random sign to one random place: d additions a gradient, where a dense matrix of
    random signs takes d x n_dimensions; inner products have the same mean and variance.

    References
    ----------
    Charikar 2002 (count sketch); Xia 2024 (LESS, arXiv:2402.04333), section 4.1: 8192 dimensions.

    Examples
    --------
    >>> projected(np.ones((2, 5)), 3).shape
    (2, 3)
    """
    sketch = _sketch(gradients.shape[1], n_dimensions, seed)
    size = min(gradients.shape[1], n_dimensions)
    return np.array([sketch(row) for row in gradients], dtype=np.float32).reshape(len(gradients), size)


def _sketch(n: int, n_dimensions: int, seed: int) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """What projects one gradient (n,); its places and signs are drawn once."""
    if n <= n_dimensions:
        return lambda row: np.asarray(row, dtype=np.float32)
    rng = np.random.default_rng(seed)
    places = rng.integers(0, n_dimensions, n)
    signs = rng.integers(0, 2, n, dtype=np.int8) * 2.0 - 1.0
    return lambda row: np.bincount(places, row * signs, minlength=n_dimensions).astype(np.float32)


def adam_directions(
    gradients: NDArray[Any],
    mean: NDArray[Any],
    square: NDArray[Any],
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
) -> NDArray[np.float32]:
    """What Adam would do with each example's gradient (n, d), given its moments (d,) after ``step`` steps.

    References
    ----------
    Xia 2024 (LESS, arXiv:2402.04333), equation 5; Kingma 2014 (arXiv:1412.6980).

    Examples
    --------
    >>> adam_directions(np.array([[1.0]]), np.array([0.0]), np.array([0.0]), 1).round(3)
    array([[1.]], dtype=float32)
    """
    m = (betas[0] * mean + (1 - betas[0]) * gradients) / (1 - betas[0] ** step)
    v = (betas[1] * square + (1 - betas[1]) * gradients**2) / (1 - betas[1] ** step)
    return np.asarray(m / (np.sqrt(v) + 1e-8), dtype=np.float32)


def gradient_match(
    train: NDArray[Any], target: NDArray[Any], groups: Sequence[Hashable] | NDArray[Any] | None = None
) -> FloatArray:
    """Cosine of each training direction (n, d) to the mean target gradient (m, d) of each group, (n, n_groups).

    References
    ----------
    Xia 2024 (LESS, arXiv:2402.04333), definition 4.1 and section 4.2, which takes the greatest over the groups.

    Examples
    --------
    >>> gradient_match(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[3.0, 0.0]]))
    array([[1.],
           [0.]])
    """
    names = ["all"] * len(target) if groups is None else list(groups)
    members = {name: [i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
    means = np.stack([target[rows].mean(axis=0) for rows in members.values()])
    return np.asarray(unit_rows(train) @ unit_rows(means).T, dtype=np.float64)


def best_in_turn(values: FloatArray, k: int) -> IntArray:
    """Choose k rows of (n, n_groups) values: each group in turn takes the best row that is left, (k,).

    Examples
    --------
    >>> best_in_turn(np.array([[0.9, 0.8], [0.8, 0.1], [0.1, 0.2]]), 2).tolist()
    [0, 2]
    """
    left = np.array(values, dtype=np.float64)
    chosen = []
    for turn in range(min(k, len(left))):
        best = int(left[:, turn % left.shape[1]].argmax())
        chosen.append(best)
        left[best] = -np.inf
    return np.array(chosen, dtype=np.int64)


def lora_gradients(
    model_name: str,
    warm: Sequence[tuple[str, str]],
    train: Sequence[tuple[str, str]],
    target: Sequence[tuple[str, str]],
    *,
    rank: int = 8,
    n_dimensions: int = 1024,
    rate: float = 2e-4,
    longest: int = 256,
    seed: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Directions of training examples and gradients of target ones, of LoRA weights of a small causal language model.

    Parameters
    ----------
    model_name : str
        A causal language model that transformers reads: a name of the catalog, a folder, or a name of the hub.
    warm, train, target : sequence of (prompt, answer)
        Examples of the short warm-up, those to be judged, and those that say what is wanted.
    rank : int
        Of the low-rank weights.
    n_dimensions : int
        Of the random projection.
    rate : float
        Learning rate of the warm-up.
    longest : int
        Tokens of an example.

    Returns
    -------
    directions : ndarray, (n_train, n_dimensions)
        Adam's step for each training example.
    gradients : ndarray, (n_target, n_dimensions)

    References
    ----------
    Xia 2024 (LESS, arXiv:2402.04333).
    """
    why = "Influence by gradients of a language model"
    if not warm or not train or not target:
        raise InputError("LESS needs examples of the warm-up, to be judged, and of the target: give all three.")
    tokenizer, base = pretrained("AutoModelForCausalLM", model_name, why, dtype="float32")
    import torch

    torch.manual_seed(seed)
    model = low_rank(base, rank, why)
    weights = [p for p in model.parameters() if p.requires_grad]

    def loss_of(example: tuple[str, str]) -> Any:
        prompt = tokenizer(example[0])["input_ids"]
        answer = tokenizer(example[1], add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
        prompt = prompt[: max(longest - len(answer), 1)] or [tokenizer.bos_token_id or 0]
        ids = torch.tensor([[*prompt, *answer[:longest]]])
        labels = torch.tensor([[-100] * len(prompt) + answer[:longest]])
        return answer_loss(model, ids, labels)

    optimizer = torch.optim.AdamW(weights, lr=rate)
    for example in warm:
        optimizer.zero_grad()
        loss_of(example).backward()
        optimizer.step()
    mean = torch.cat([optimizer.state[p]["exp_avg"].flatten() for p in weights]).numpy()
    square = torch.cat([optimizer.state[p]["exp_avg_sq"].flatten() for p in weights]).numpy()

    def gradient(example: tuple[str, str]) -> NDArray[Any]:
        model.zero_grad()
        loss_of(example).backward()
        made = torch.cat([p.grad.flatten() for p in weights]).numpy()
        return np.asarray(made)

    model.eval()
    sketch = _sketch(mean.size, n_dimensions, seed)
    ahead = [sketch(adam_directions(gradient(e), mean, square, len(warm))) for e in train]
    wanted = [sketch(gradient(e)) for e in target]
    return np.stack(ahead), np.stack(wanted)


def chosen_by_gradients(
    model_name: str, pool: Sequence[tuple[str, str]], target: Sequence[tuple[str, str]], k: int, seed: int = 0
) -> IntArray:
    """Choose k examples whose Adam steps on a small model point where the target's gradients do, (k,).

    Where the target's answers repeat, each answer is a group with a gradient of its own, and the groups choose in turn:
    the examples nearest to the mean of all gradients may have one answer alone.

    References
    ----------
    Xia 2024 (LESS, arXiv:2402.04333).
    """
    answers = [answer for _, answer in target]
    groups = answers if 1 < len(set(answers)) <= len(answers) // 2 else None
    warm = [pool[i] for i in range(0, len(pool), max(1, len(pool) // max(1, len(pool) // 20)))]
    directions, wanted = lora_gradients(model_name, warm, pool, target, seed=seed)
    return best_in_turn(gradient_match(directions, wanted, groups), k)
