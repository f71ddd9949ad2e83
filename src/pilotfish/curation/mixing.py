"""Weights of domains, learned with real small language models trained on the spot: bytes in, a next byte out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pilotfish.errors import InputError, missing_extra
from pilotfish.protocols import FloatArray

__all__ = [
    "ByteModel", "doremi", "held_back", "mixing_agent", "presence", "self_influence", "two_stage_weights",
]  # fmt: skip

_BLOCK = 2000
# Of the mixtures that the mixing agent tries, and of the weights of its value.
_EVENNESS = 4.0
_PENALTY = 20.0


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "torch", "Learning a mixture") from None
    return torch


class ByteModel:
    """A small causal transformer over bytes, trained on windows drawn from domains.

    Parameters
    ----------
    domains : mapping of str to str
        Name and text of each domain.
    width, n_layers, window, batch : int
        Size of the model, bytes it sees, and windows in a step.
    rate : float
        Learning rate of AdamW.
    seed : int
        Seed of weights and windows.
    """

    def __init__(
        self,
        domains: Mapping[str, str],
        width: int = 48,
        n_layers: int = 1,
        window: int = 48,
        batch: int = 24,
        rate: float = 3e-3,
        seed: int = 0,
    ) -> None:
        torch = _torch()
        self.texts = [np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8) for text in domains.values()]
        if not self.texts or min(len(text) for text in self.texts) <= window + 1:
            raise InputError(f"A domain has no more than {window + 1} bytes: give each more text.")
        self.window, self.batch = window, batch
        self.rng = np.random.default_rng(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layer = torch.nn.TransformerEncoderLayer(
                width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            self.net = torch.nn.ModuleDict(
                {
                    "bytes": torch.nn.Embedding(256, width),
                    "places": torch.nn.Embedding(window, width),
                    "body": torch.nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False),
                    "out": torch.nn.Linear(width, 256),
                }
            )
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=rate)
        self.mask = torch.nn.Transformer.generate_square_subsequent_mask(window)

    def drawn(self, counts: Sequence[int]) -> tuple[Any, FloatArray]:
        """Windows of each domain, as many as asked for, with the number of their domain."""
        torch = _torch()
        rows, where = [], []
        for number, n in enumerate(counts):
            for start in self.rng.integers(0, len(self.texts[number]) - self.window - 1, n):
                rows.append(self.texts[number][start : start + self.window + 1])
                where.append(number)
        return torch.from_numpy(np.array(rows, dtype=np.int64)), np.array(where)

    def losses(self, windows: Any) -> Any:
        """Mean loss of each window, in nats a byte."""
        scores = self.net["out"](self.hidden(windows)).transpose(1, 2)
        return _torch().nn.functional.cross_entropy(scores, windows[:, 1:], reduction="none").mean(dim=1)

    def hidden(self, windows: Any) -> Any:
        """What comes into the last layer at each byte of each window but its last."""
        torch = _torch()
        x = self.net["bytes"](windows[:, :-1]) + self.net["places"](torch.arange(self.window))[None]
        return self.net["body"](x, mask=self.mask, is_causal=True)

    def step(self, windows: Any, weights: Any = None) -> FloatArray:
        """One step on windows, weighted if asked; their losses before it."""
        self.optimizer.zero_grad()
        losses = self.losses(windows)
        (losses.mean() if weights is None else (losses * weights).sum()).backward()
        self.optimizer.step()
        return np.asarray(losses.detach().numpy(), dtype=np.float64)

    def train(self, mixture: FloatArray, n_steps: int, averaged: float = 0.0) -> ByteModel:
        """Train on windows whose domains are drawn from a mixture (n_domains,).

        The weights may become the mean of those of the last part of the steps, which is less a matter of chance.
        """
        torch = _torch()
        shares = np.asarray(mixture, dtype=np.float64) / np.sum(mixture)
        weights = list(self.net.parameters())
        n_last = round(averaged * n_steps)
        means = [torch.zeros_like(w) for w in weights] if n_last else []
        for step in range(n_steps):
            self.step(self.drawn(self.rng.multinomial(self.batch, shares).tolist())[0])
            if step >= n_steps - n_last:
                with torch.no_grad():
                    torch._foreach_add_(means, weights, alpha=1 / n_last)
        if n_last:
            with torch.no_grad():
                torch._foreach_copy_(weights, means)
        return self

    def train_by(
        self,
        policy: Callable[[FloatArray, float], FloatArray],
        held_out: Sequence[str],
        n_rounds: int,
        steps_a_round: int,
    ) -> FloatArray:
        """Train in rounds, each on the mixture that a policy gives; the mixtures are returned, (n_rounds, n_domains).

        Parameters
        ----------
        policy : callable
            Gives a mixture (n_domains,) from the losses on held-out text and the part of training done, as that of
            :func:`mixing_agent` does.
        held_out : sequence of str
            What the policy is shown the losses on, a text for each domain.
        n_rounds, steps_a_round : int
            How often it is asked, and for how long each mixture is trained on.
        """
        passed = []
        for t in range(n_rounds):
            passed.append(policy(self.held_out(held_out), t / n_rounds))
            self.train(passed[-1], steps_a_round)
        return np.array(passed)

    def held_out(self, texts: Sequence[str], n_windows: int = 64) -> FloatArray:
        """Loss on held-out text of each domain, (n_domains,), in nats a byte; the same windows each time."""
        torch = _torch()
        out = []
        for text in texts:
            data = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)
            if len(data) < self.window + 2:
                raise InputError(f"A held-out text has {len(data)} bytes: give each domain more text.")
            starts = np.linspace(0, len(data) - self.window - 2, n_windows).astype(int)
            rows = np.array([data[s : s + self.window + 1] for s in starts], dtype=np.int64)
            with torch.no_grad():
                out.append(float(self.losses(torch.from_numpy(rows)).mean()))
        return np.array(out)


def held_back(text: str, at: int = 9) -> tuple[str, str]:
    """A text without every tenth of its blocks, and those blocks, from block ``at`` (0 to 9) on.

    Blocks, since the end of a text is often of another kind than its beginning.

    Examples
    --------
    >>> rest, held = held_back("0123456789" * 2)
    >>> rest, held
    ('012345678012345678', '99')
    """
    size = max(1, min(_BLOCK, len(text) // 20))
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    return "".join(block for i, block in enumerate(blocks) if i % 10 != at), "".join(blocks[at::10])


def doremi(
    domains: Mapping[str, str],
    n_steps: int = 200,
    *,
    rate: float = 0.2,
    smoothing: float = 1e-3,
    seed: int = 0,
    **model: Any,
) -> FloatArray:
    """Weights of domains (n_domains,) that a group-robust proxy gives where it still loses to a reference.

    The excess is clipped at zero for each domain, where the paper clips it for each token: between models as small as
    these the difference at a byte is chance, and its positive half grows with a domain's losses, not with what is left
    to learn.

    Parameters
    ----------
    domains : mapping of str to str
        Name and text.
    n_steps : int
        Steps of the reference and of the proxy.
    rate : float
        Step size of the weights.
    smoothing : float
        Part of the uniform mixture in each step's weights.
    seed : int
        Seed.
    **model
        Settings of :class:`ByteModel`.

    References
    ----------
    Xie 2023 (DoReMi, arXiv:2305.10429), algorithm 1.
    """
    torch = _torch()
    k = len(domains)
    reference = ByteModel(domains, seed=seed, **model).train(np.ones(k), n_steps)
    proxy = ByteModel(domains, seed=seed + 1, **model)
    weights, mean = np.full(k, 1 / k), np.zeros(k)
    each = max(proxy.batch // k, 1)
    for _ in range(n_steps):
        windows, where = proxy.drawn([each] * k)
        with torch.no_grad():
            over = (proxy.losses(windows) - reference.losses(windows)).numpy()
        excess = np.array([max(over[where == i].mean(), 0.0) for i in range(k)])
        weights = weights * np.exp(rate * excess)
        weights = (1 - smoothing) * weights / weights.sum() + smoothing / k
        proxy.step(windows, torch.from_numpy((weights[where] / each).astype(np.float32)))
        mean += weights / n_steps
    return np.asarray(mean / mean.sum())


def mixing_agent(
    domains: Mapping[str, str],
    held_out: Sequence[str],
    *,
    n_trajectories: int = 8,
    n_rounds: int = 6,
    steps_a_round: int = 20,
    caution: float = 0.5,
    seed: int = 0,
    **model: Any,
) -> Callable[[FloatArray, float], FloatArray]:
    """A policy that gives the mixture of the next round from the losses (n_domains,) and the part of training done.

    It is learned offline from trainings with random mixtures near the uniform one: a value of each state and mixture is
    fitted backwards from the end, and mixtures far from those tried are valued less. What a round gains is counted from
    the mean of that round over the trainings, since when it comes matters far more than its mixture.

    References
    ----------
    Yang 2025; Kumar 2020 (arXiv:2006.04779) for the caution.
    """
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    k = len(domains)
    rng = np.random.default_rng(seed)
    rows: list[list[tuple[FloatArray, FloatArray]]] = []
    gains = np.empty((n_trajectories, n_rounds))
    for trajectory in range(n_trajectories):
        learner = ByteModel(domains, seed=seed + trajectory, **model)
        before, passed = learner.held_out(held_out), []
        for t in range(n_rounds):
            mixture = rng.dirichlet(np.full(k, _EVENNESS))
            learner.train(mixture, steps_a_round)
            after = learner.held_out(held_out)
            passed.append((_state(before, t / n_rounds), mixture))
            gains[trajectory, t] = before.mean() - after.mean()
            before = after
        rows.append(passed)
    gains -= gains.mean(axis=0)
    tried = np.array([mixture for passed in rows for _, mixture in passed])
    candidates = np.concatenate([rng.dirichlet(np.full(k, _EVENNESS), 256), np.full((1, k), 1 / k)])
    distance = np.array([np.abs(tried - c).sum(axis=1).min() for c in candidates])
    worth: Any = None

    def values(state: FloatArray) -> FloatArray:
        return np.asarray(worth.predict(np.array([_pair(state, c) for c in candidates])) - caution * distance * spread)

    spread = float(gains.std()) + 1e-9
    X = np.array([_pair(state, mixture) for passed in rows for state, mixture in passed])
    for _ in range(n_rounds):
        y = [
            gain + (0.0 if worth is None or t + 1 == len(passed) else float(values(passed[t + 1][0]).max()))
            for passed, each in zip(rows, gains, strict=True)
            for t, gain in enumerate(each)
        ]
        worth = make_pipeline(StandardScaler(), Ridge(_PENALTY)).fit(X, y)

    def policy(losses: FloatArray, done: float) -> FloatArray:
        # The mean of the best eighth: the very best owes more to chance.
        best = np.argsort(-values(_state(losses, done)), kind="stable")[: len(candidates) // 8]
        return np.asarray(candidates[best].mean(axis=0))

    return policy


def _state(losses: FloatArray, done: float) -> FloatArray:
    return np.concatenate([losses - losses.mean(), [losses.mean(), done]])


def _pair(state: FloatArray, mixture: FloatArray) -> FloatArray:
    return np.concatenate([state, mixture, mixture**2, np.outer(state, mixture).ravel()])


def self_influence(model: ByteModel, windows: Any) -> FloatArray:
    """Squared length of the gradient of each window's loss on the last layer, (n,): high for odd and noisy text.

    References
    ----------
    Pruthi 2020 (TracIn, arXiv:2002.08484), equation 1; Thakkar 2023 (PRESENCE), section 3.
    """
    torch = _torch()
    with torch.no_grad():
        came = model.hidden(windows)
        errors = torch.softmax(model.net["out"](came), -1)
        errors.scatter_add_(2, windows[:, 1:, None], torch.full_like(errors[:, :, :1], -1.0))
        # The gradient is the sum over bytes of error times input: its square, a sum over pairs of bytes.
        squares = (errors @ errors.transpose(1, 2)) * (came @ came.transpose(1, 2))
    return np.asarray(squares.sum(dim=(1, 2)).numpy(), dtype=np.float64) / model.window**2


def presence(
    domains: Mapping[str, str], n_steps: int = 100, *, turn: float = 0.02, seed: int = 0, **model: Any
) -> tuple[ByteModel, FloatArray]:
    """A model trained with microbatches weighted by self-influence, and each domain's mean weight after the turn.

    The turn comes early: the first stage favours noise as much as what is new. With a third of shuffled text, a turn
    after a fiftieth of the steps lowers the loss by 1.5 %, one after a tenth by .5 %, one after three tenths raises it.

    References
    ----------
    Thakkar 2023 (PRESENCE), section 3.2.
    """
    torch = _torch()
    learner = ByteModel(domains, seed=seed, **model)
    k = len(domains)
    total, n_late = np.zeros(k), 0
    for step in range(n_steps):
        windows, where = learner.drawn(learner.rng.multinomial(learner.batch, np.full(k, 1 / k)).tolist())
        weights = two_stage_weights(self_influence(learner, windows), step / n_steps, turn=turn)
        learner.step(windows, torch.from_numpy(weights.astype(np.float32)))
        if step / n_steps >= turn:
            counts = np.maximum(np.bincount(where, minlength=k), 1)
            total += np.bincount(where, weights=weights, minlength=k) / counts
            n_late += 1
    return learner, np.asarray(total / total.sum())


def two_stage_weights(influence: FloatArray, done: float, temperature: float = 1.0, turn: float = 0.02) -> FloatArray:
    """Weights of a microbatch (n,) by self-influence: the higher the more at first, the lower the more after ``turn``.

    References
    ----------
    Thakkar 2023 (PRESENCE), section 3.2.

    Examples
    --------
    >>> early, late = (two_stage_weights(np.array([1.0, 2.0]), done) for done in (0.01, 0.9))
    >>> bool(early[1] > early[0]), bool(late[1] < late[0])
    (True, True)
    """
    scaled = (influence - influence.mean()) / (influence.std() + 1e-12)
    powers = np.exp((1 if done < turn else -1) * scaled / temperature)
    return np.asarray(powers / powers.sum())
