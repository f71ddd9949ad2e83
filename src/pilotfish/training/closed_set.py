"""The student of closed answer sets: a large model's narrow calls, answered on CPU in milliseconds."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from pilotfish.answers import normalise
from pilotfish.errors import InputError, IntegrityError, NotFittedError
from pilotfish.features import FeatureKind, TextSpace
from pilotfish.protocols import FloatArray
from pilotfish.training.heads import KernelHead, MlpHead
from pilotfish.training.labels import denoise
from pilotfish.training.students import Predicted
from pilotfish.types import Reply, Request, Usage

__all__ = ["ClosedSetStudent"]

Array = NDArray[np.float32]
FORMAT_VERSION = 1
_N_FOLDS = 4
_N_NETWORKS = 2
_WEIGHTS = (0.4, 0.3, 0.3)
_FLOOR = np.float32(1e-4)
# The kernel's cost grows with the cube of its calls; beyond these the networks alone see the rest.
_MOST_KERNEL_CALLS = 10_000
_GOLD_COVERS = 0.95
_UNFAMILIAR = 0.005
_LEAST_GOLD_TO_CALIBRATE = 50


class ClosedSetStudent:
    """Learns which of a fixed set of answers a large model gives, and how sure to be of it.

    Texts become points of a small space (sentence encoder, static vectors); kernel ridge regression and two small
    networks read them, and the geometric mean of their probabilities is calibrated on predictions of calls held out in
    turn. It is a Model: ``generate`` answers requests, with the calibrated probability as the reply's confidence.

    Parameters
    ----------
    features : {"encoder", "static", "ngrams"}
        See :class:`~pilotfish.features.TextSpace`; ``ngrams`` needs no model file.
    precision : {"int8", "fp32"}
        Of the sentence encoder.
    n_axes : int
        Axes of the space.
    seed : int
        Of folds and networks; the same calls and seed give the same student.

    Attributes
    ----------
    classes_ : list of str
        The answers, in the form in which answers are compared.
    surfaces_ : list of str
        The same answers as the large model writes them.
    calibration_ : tuple of float
        The slopes and the offset of the calibration.
    gate_ : float
        Least cosine to a call learned from for a text to count as familiar.

    References
    ----------
    Kull et al. 2017, Beta calibration. Geometric mean of experts: Hinton 2002.

    Examples
    --------
    >>> texts = ["cancel my transfer", "stop the transfer", "what is the exchange rate", "which exchange rate"] * 10
    >>> student = ClosedSetStudent("ngrams").fit(texts, ["cancel", "cancel", "Rate", "Rate"] * 10)
    >>> student.predict(["please cancel that transfer"]).labels
    ['cancel']
    >>> student.generate([Request.of("the exchange rate?")])[0].text
    'Rate'
    """

    def __init__(
        self,
        features: FeatureKind = "encoder",
        precision: Literal["int8", "fp32"] = "int8",
        n_axes: int = 512,
        seed: int = 0,
    ) -> None:
        self.features = features
        self.precision = precision
        self.n_axes = n_axes
        self.seed = seed

    @property
    def known(self) -> frozenset[str]:
        """The answers it can give, in the form in which answers are compared."""
        return frozenset(self.classes_)

    def fit(self, texts: Sequence[str], answers: Sequence[str], gold: Sequence[str | None] | None = None) -> Self:
        """Learn to answer as the large model does, or, where ``gold`` is given, to answer rightly.

        Parameters
        ----------
        texts : sequence of str
            What varies in the calls, n of them.
        answers : sequence of str
            The large model's answers; those given once only are not learned.
        gold : sequence of str or None, optional
            The right answers where known. When this is given, even without a single label, the large model's mistakes
            are estimated and taken out, and the confidence is the probability of being right.

        Raises
        ------
        InputError
            When lengths differ or fewer than two answers were given twice.
        """
        if len(texts) != len(answers) or (gold is not None and len(gold) != len(texts)):
            n_gold = "none" if gold is None else len(gold)
            raise InputError(f"{len(texts)} texts, {len(answers)} answers, {n_gold} gold labels: give one per call.")
        said = [normalise(answer) for answer in answers]
        right = [None if label is None else normalise(label) for label in gold or [None] * len(texts)]
        self.classes_ = _classes(said, right)
        if len(self.classes_) < 2:
            raise InputError(f"{len(self.classes_)} answers were given more than once: at least 2 are needed to learn.")
        self.surfaces_ = _surfaces(self.classes_, answers, gold or ())
        number = {label: i for i, label in enumerate(self.classes_)}
        others = {label: i + len(number) for i, label in enumerate(sorted(set(said) - set(number)))}
        numbers = np.array([number.get(a, others.get(a, -1)) for a in said], dtype=np.int64)
        truth = np.array([-1 if label is None else number[label] for label in right], dtype=np.int64)
        if gold is None:
            rows = np.flatnonzero(numbers < len(number))
            texts, numbers, truth = [texts[i] for i in rows], numbers[rows], truth[rows]
        with threadpool_limits(limits=os.cpu_count()):
            self.space_ = TextSpace(self.features, self.precision, self.n_axes)
            X = self.space_.fit_transform(texts)
            if gold is None:
                targets = np.eye(len(number), dtype=np.float32)[numbers]
            else:
                targets = denoise(X, numbers, truth, len(number)).targets
        self._fit_heads(X, targets, truth)
        return self

    def predict_proba(self, texts: Sequence[str]) -> FloatArray:
        """Probabilities (n, n_classes) of ``classes_``, before calibration."""
        return np.exp(self._log_proba(self._points(texts))[0]).astype(np.float64)

    def predict(self, texts: Sequence[str]) -> Predicted:
        """Answer a batch of texts."""
        if not texts:
            return Predicted([], np.zeros(0), np.zeros(0, dtype=np.bool_))
        log_proba, nearest = self._log_proba(self._points(texts))
        best = log_proba.argmax(axis=1)
        top = np.exp(log_proba[np.arange(best.size), best]).astype(np.float64)
        return Predicted([self.surfaces_[i] for i in best], _calibrated(top, self.calibration_), nearest >= self.gate_)

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer the last user message of each request."""
        started = time.perf_counter()
        predicted = self.predict([request.prompt for request in requests])
        usage = Usage(latency=(time.perf_counter() - started) / max(len(requests), 1))
        return [
            Reply(label, "student", usage, float(confidence))
            for label, confidence in zip(predicted.labels, predicted.confidence, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write the student into an existing folder: ``student.json`` and ``student.npz``."""
        if not hasattr(self, "gate_"):
            raise NotFittedError("ClosedSetStudent is not fitted: call fit first.")
        space, arrays = self.space_.get_state()
        arrays = {f"space_{name}": value for name, value in arrays.items()}
        arrays |= {"kernel_points": self.kernel_.points_, "kernel_weights": self.kernel_.weights_}
        for i, network in enumerate(self.networks_):
            arrays |= {f"network{i}_{name}": value for name, value in network.get_arrays().items()}
        _replace(folder / "student.npz", lambda path: _write_arrays(path, arrays))
        plain = {
            "format": "pilotfish closed-set student",
            "version": FORMAT_VERSION,
            "params": {
                "features": self.features,
                "precision": self.precision,
                "n_axes": self.n_axes,
                "seed": self.seed,
            },
            "classes": self.classes_,
            "surfaces": self.surfaces_,
            "calibration": list(self.calibration_),
            "gate": self.gate_,
            "space": space,
            "kernel": {name: getattr(self.kernel_, name) for name in ("n_axes", "gamma", "ridge", "temperature")},
            "n_networks": len(self.networks_),
            "sha256": _sha256(folder / "student.npz"),
        }
        text = json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False)
        _replace(folder / "student.json", lambda path: path.write_text(text + "\n", encoding="utf-8"))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a saved student.

        Raises
        ------
        InputError
            When the folder holds no student, or one of a newer version.
        IntegrityError
            When its arrays are not those it was saved with.
        """
        try:
            plain = json.loads((folder / "student.json").read_text(encoding="utf-8"))
            version = plain["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"Folder {folder} holds no readable student.json: give a folder of a saved student."
            ) from error
        if version != FORMAT_VERSION:
            raise InputError(
                f"The student in {folder} has format version {version} and this is version {FORMAT_VERSION}: "
                "upgrade Pilotfish or learn the task again."
            )
        if _sha256(folder / "student.npz") != plain["sha256"]:
            raise IntegrityError(f"{folder / 'student.npz'} is not the file that was saved: learn the task again.")
        with np.load(folder / "student.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        made = cls(**plain["params"])
        made.classes_, made.surfaces_ = plain["classes"], plain["surfaces"]
        slope, fall, offset = plain["calibration"]
        made.calibration_, made.gate_ = (slope, fall, offset), plain["gate"]
        made.space_ = TextSpace.from_state(plain["space"], _under(arrays, "space_"))
        made.kernel_ = KernelHead(**plain["kernel"])
        made.kernel_.points_, made.kernel_.weights_ = arrays["kernel_points"], arrays["kernel_weights"]
        made.networks_ = [MlpHead().set_arrays(_under(arrays, f"network{i}_")) for i in range(plain["n_networks"])]
        return made

    def _points(self, texts: Sequence[str]) -> Array:
        if not hasattr(self, "gate_"):
            raise NotFittedError("ClosedSetStudent is not fitted: call fit first.")
        return self.space_.transform(texts)

    def _log_proba(self, X: Array) -> tuple[Array, Array]:
        scores, nearest = self.kernel_.scores(X)
        return _mixed(self.kernel_.log_proba_of(scores), [network.log_proba(X) for network in self.networks_]), nearest

    def _fit_heads(self, X: Array, targets: Array, truth: NDArray[np.int64]) -> None:
        n, n_folds = len(X), min(_N_FOLDS, len(X))
        fold_of = np.random.default_rng(self.seed).permutation(n) % n_folds
        folds = [(np.flatnonzero(fold_of != f), np.flatnonzero(fold_of == f)) for f in range(n_folds)]
        everything = (np.arange(n), np.arange(0))
        # One thread each and many at once: the networks' products are too small to be split.
        with threadpool_limits(limits=1), ThreadPoolExecutor(os.cpu_count()) as pool:
            kernels = [pool.submit(self._fit_kernel, X, targets, *fold) for fold in [everything, *folds]]
            networks = [
                [pool.submit(self._fit_network, X, targets, *fold, k) for k in range(_N_NETWORKS)]
                for fold in [everything, *folds]
            ]
            self.kernel_, _, _ = kernels[0].result()
            self.networks_ = [made.result()[0] for made in networks[0]]
            scores = np.zeros_like(targets)
            nearest = np.zeros(n, dtype=np.float32)
            by_network = [np.zeros_like(targets) for _ in range(_N_NETWORKS)]
            for f, (_, rows) in enumerate(folds):
                _, scores[rows], nearest[rows] = kernels[f + 1].result()
                for k in range(_N_NETWORKS):
                    by_network[k][rows] = networks[f + 1][k].result()[1]
        self.kernel_.tune(scores, targets)
        log_proba = _mixed(self.kernel_.log_proba_of(scores), by_network)
        best = log_proba.argmax(axis=1)
        top = np.exp(log_proba[np.arange(n), best]).astype(np.float64)
        hits = targets[np.arange(n), best].astype(np.float64)
        checked = truth >= 0
        if checked.sum() >= _LEAST_GOLD_TO_CALIBRATE:
            top, hits = top[checked], (best == truth)[checked].astype(np.float64)
        self.calibration_ = _calibrate(top, hits)
        self.gate_ = float(np.quantile(nearest, _UNFAMILIAR))

    def _fit_kernel(
        self, X: Array, targets: Array, fit: NDArray[np.int64], test: NDArray[np.int64]
    ) -> tuple[KernelHead, Array, Array]:
        if fit.size > _MOST_KERNEL_CALLS:
            fit = np.sort(np.random.default_rng(self.seed).choice(fit, _MOST_KERNEL_CALLS, replace=False))
        head = KernelHead().fit(X[fit], targets[fit])
        if not test.size:
            return head, targets[:0], np.zeros(0, dtype=np.float32)
        return head, *head.scores(X[test])

    def _fit_network(
        self, X: Array, targets: Array, fit: NDArray[np.int64], test: NDArray[np.int64], k: int
    ) -> tuple[MlpHead, Array]:
        head = MlpHead(seed=self.seed * _N_NETWORKS + k).fit(X[fit], targets[fit])
        return head, head.log_proba(X[test]) if test.size else targets[:0]


def _classes(said: Sequence[str], right: Sequence[str | None]) -> list[str]:
    """What may be answered: repeated answers and gold labels, or gold labels alone where they cover nearly all calls."""
    gold = {label for label in right if label is not None}
    counts = Counter(said)
    if gold and sum(counts[label] for label in gold) >= _GOLD_COVERS * len(said):
        return sorted(gold)
    return sorted(gold | {label for label, n in counts.items() if n > 1})


def _surfaces(classes: Sequence[str], answers: Sequence[str], gold: Sequence[str | None]) -> list[str]:
    """How each answer is written: as the large model writes it most often, else as gold does."""
    written: dict[str, Counter[str]] = {label: Counter() for label in classes}
    spare: dict[str, str] = {}
    for answer in answers:
        label = normalise(answer)
        if label in written:
            written[label][answer.strip()] += 1
    for right in gold:
        if right is not None:
            spare.setdefault(normalise(right), right.strip())
    return [
        min(written[label], key=lambda form: (-written[label][form], form)) if written[label] else spare[label]
        for label in classes
    ]


def _mixed(kernel: Array, networks: Sequence[Array]) -> Array:
    """Log of the weighted geometric mean of probabilities, normalised."""
    parts = zip((kernel, *networks), _WEIGHTS, strict=True)
    total = sum(np.float32(weight) * np.log(np.exp(part) + _FLOOR) for part, weight in parts)
    mixed = np.asarray(total, dtype=np.float32)
    return np.asarray(mixed - np.log(np.exp(mixed).sum(axis=1, keepdims=True)))


def _calibrated(top: FloatArray, calibration: tuple[float, float, float]) -> FloatArray:
    p = np.clip(top, 1e-9, 1 - 1e-9)
    rise, fall, offset = calibration
    return np.asarray(1 / (1 + np.exp(-(rise * np.log(p) - fall * np.log1p(-p) + offset))))


def _calibrate(top: FloatArray, hits: FloatArray) -> tuple[float, float, float]:
    """Fit log-odds = rise log p - fall log(1 - p) + offset by likelihood, both slopes at least 0: ranks are kept."""

    def loss(calibration: FloatArray) -> float:
        rise, fall, offset = (float(value) for value in calibration)
        q = np.clip(_calibrated(top, (rise, fall, offset)), 1e-9, 1 - 1e-9)
        # A pull of one call's weight towards the identity keeps the fit finite where every call is a hit.
        pull = ((calibration - np.array([1.0, 1.0, 0.0])) ** 2).sum() / top.size
        return float(-(hits * np.log(q) + (1 - hits) * np.log1p(-q)).mean() + pull)

    found = minimize(loss, np.array([1.0, 1.0, 0.0]), method="L-BFGS-B", bounds=[(1e-3, 50), (0, 50), (-50, 50)]).x
    return float(found[0]), float(found[1]), float(found[2])


def _under(arrays: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: give a folder of a saved student.") from error


def _write_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    half = path.with_name(path.name + ".half")
    write(half)
    half.replace(path)
