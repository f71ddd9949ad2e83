"""The student of closed answer sets: a large model's narrow calls, answered on CPU in milliseconds."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pilotfish.answers import normalise
from pilotfish.errors import InputError, NotFittedError
from pilotfish.features import FEATURE_KINDS, dealt_out
from pilotfish.files import refuse_changed, replacing, sha256_of
from pilotfish.protocols import FeatureKind, FloatArray, Progress
from pilotfish.training.labels import denoise
from pilotfish.training.reader import Calibration, Reader, geometric_mean, under
from pilotfish.training.students import Predicted
from pilotfish.types import Reply, Request, Usage

__all__ = ["ClosedSetStudent"]

Array = NDArray[np.float32]
FORMAT_VERSION = 4
# Those of version 3 have no language model among their readers.
_READABLE = (3, FORMAT_VERSION)
# A glance is for the median call; beyond the surest half, ranking by the encoder is worth its time.
_MOST_AT_A_GLANCE = 0.52
_GLANCE_COST = 0.001
_LOST_BEFORE_CLOSER = 0.01
_MOST_TOLD = 6_000
_GOLD_COVERS = 0.95
_LEAST_TO_CALIBRATE = 50
_MANY = 100


@dataclass(frozen=True, slots=True)
class _Closer:
    """Readers that take longest, for the calls whose place decides what can be promised: after the surest, which lose
    less than usual targets allow, and before the hopeless.

    Parameters
    ----------
    readers : mapping
        Settings of each reader, by its features.
    read : float
        Share of the calls that they read.
    learned : float
        Share of the calls, the hardest, that they learn from.
    """

    readers: Mapping[FeatureKind, Mapping[str, Any]]
    read: float
    learned: float


# The easiest calls teach the large encoder nothing; with a language model beside it both learn from all.
_CLOSER: Mapping[FeatureKind, _Closer] = {
    "large": _Closer({"large": {"n_hidden": 768}}, read=0.27, learned=0.7),
    "language": _Closer({"large": {"n_hidden": 768}, "language": {"n_networks": 4}}, read=0.35, learned=1.0),
}


class ClosedSetStudent:
    """Learns which of a fixed set of answers a large model gives, and how sure to be of it.

    A glance comes first: static token vectors and hashed n-grams, a fraction of a millisecond. Where it is surest, and
    on held-out calls no less right than the sentence encoder, it answers alone; the encoder reads the other calls. It
    is a Model: ``generate`` answers requests, with the calibrated probability as the reply's confidence.

    Parameters
    ----------
    features : {"encoder", "large", "language", "static", "ngrams"}
        What reads the calls. ``encoder``: as said above. ``large``: an encoder of eight times the operations also reads
        the calls that are neither sure nor hopeless, if it orders held-out ones better; more can then be certified, and
        learning and batches take two to three times as long. ``language``: of those calls a language model of half a
        billion parameters is asked as well which of the answers it would give, and its states are read; it needs the
        extra ``torch``, and minutes to learn from thousands of calls. ``static``: the glance alone. ``ngrams`` needs no
        model file.
    precision : {"int8", "fp32"}
        Of the sentence encoder.
    n_axes : int
        Axes of the space of texts.
    seed : int
        Of folds and networks; the same calls and seed give the same student.

    Attributes
    ----------
    classes_ : list of str
        The answers, in the form in which answers are compared.
    surfaces_ : list of str
        The same answers as the large model writes them.
    readers_ : list of Reader
        The glance and the encoder, or the only one; and those that read doubtful calls too where they are used.
    calibrations_ : list of Calibration
        One per reader; those that read doubtful calls together share theirs.
    glance_at_ : float
        The glance answers alone at or above this confidence.
    doubtful_ : tuple of float
        From the first of these confidences of the encoder, and below the second, further readers read a call.

    References
    ----------
    Hinton 2002 (geometric mean of experts); Kull et al. 2017 (calibration); Viola and Jones 2001 (cheap stages first).

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
        self._check_fitted()
        return frozenset(self.classes_)

    def fit(
        self,
        texts: Sequence[str],
        answers: Sequence[str],
        gold: Sequence[str | None] | None = None,
        drawn: Sequence[bool] | None = None,
        instruction: str = "",
        progress: Progress | None = None,
    ) -> Self:
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
        drawn : sequence of bool, optional
            Which calls were drawn at random: the confidence is calibrated on them. All, when left out.
        instruction : str
            What the large model is told to do with the texts, for ``language``; to choose one of the answers, when left
            out.
        progress : callable, optional
            Told how many texts the language model has read, and of how many.

        Raises
        ------
        InputError
            When lengths differ or fewer than two answers were given twice.
        """
        if self.features not in FEATURE_KINDS:
            raise InputError(f"features is {self.features!r}: use one of {', '.join(FEATURE_KINDS)}.")
        if len(texts) != len(answers) or (gold is not None and len(gold) != len(texts)):
            n_gold = "no" if gold is None else len(gold)
            raise InputError(f"{len(texts)} texts, {len(answers)} answers, {n_gold} gold labels: give one per call.")
        said = [normalise(answer) for answer in answers]
        right = [None if label is None else normalise(label) for label in gold or [None] * len(texts)]
        self.classes_ = _classes(said, right)
        if len(self.classes_) < 2:
            raise InputError(f"{len(self.classes_)} answers were given more than once: at least 2 are needed to learn.")
        self.surfaces_ = _surfaces(self.classes_, answers, gold or ())
        number = {label: i for i, label in enumerate(self.classes_)}
        foreign = {label: i + len(number) for i, label in enumerate(sorted(set(said) - set(number)))}
        numbers = np.array([{**foreign, **number}[answer] for answer in said], dtype=np.int64)
        truth = np.array([-1 if label is None else number[label] for label in right], dtype=np.int64)
        typical = np.ones(len(texts), dtype=np.bool_) if drawn is None else np.array(drawn, dtype=np.bool_)
        if typical.shape != truth.shape:
            raise InputError(f"drawn has {typical.size} entries for {truth.size} texts: give one per call.")
        if gold is None:
            rows = np.flatnonzero(numbers < len(number))
            texts, numbers, truth = [texts[int(i)] for i in rows], numbers[rows], truth[rows]
            typical = typical[rows]
        settings: dict[str, Any] = {"precision": self.precision, "n_axes": self.n_axes, "seed": self.seed}
        with_glance = self.features in ("encoder", *_CLOSER)
        self.readers_ = [Reader("encoder" if with_glance else self.features, **settings)]
        if with_glance:
            # In the small space a network alone ranks its calls no worse than with the kernel, at half the time.
            self.readers_.insert(0, Reader("static", n_networks=1, kernel_weight=0.0, **settings))
        # The heavy parts run side by side on one thread each: split products crawl on a machine that is also serving.
        with threadpool_limits(limits=1):
            placed = [reader.place(texts) for reader in self.readers_]
            if gold is None:
                targets = np.eye(len(number), dtype=np.float32)[numbers]
            else:
                targets = denoise(placed[-1], numbers, truth, len(number)).targets
            for reader, X in zip(self.readers_, placed, strict=True):
                reader.fit(X, targets)
        typical = _enough(typical)
        self._settle([r.held_out_[typical] for r in self.readers_], targets[typical], truth[typical])
        self.doubtful_ = (2.0, 2.0)
        if self.features in _CLOSER:
            with threadpool_limits(limits=1):
                told = _told(instruction, self.surfaces_)
                self._look_closer(texts, targets, truth, typical, told, progress)
        return self

    def predict(self, texts: Sequence[str]) -> Predicted:
        """Answer a batch of texts."""
        log_proba, confidence, familiar = self._read(texts)
        return Predicted([self.surfaces_[i] for i in log_proba.argmax(axis=1)], confidence, familiar)

    def predict_proba(self, texts: Sequence[str]) -> FloatArray:
        """Probabilities (n, n_classes) of ``classes_``, before calibration."""
        return np.exp(self._read(texts)[0]).astype(np.float64)

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
        self._check_fitted()
        stages: list[dict[str, Any]] = []
        arrays: dict[str, NDArray[Any]] = {}
        for i, reader in enumerate(self.readers_):
            plain, mine = reader.get_state()
            stages.append({**plain, "calibration": self.calibrations_[i].slopes_.tolist()})
            arrays |= {f"stage{i}_{name}": value for name, value in mine.items()}
        # Not compressed: that would take longer than learning a small task.
        with replacing(folder / "student.npz") as half, half.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        plain = {
            "format": "pilotfish closed-set student",
            "version": FORMAT_VERSION,
            "params": {name: getattr(self, name) for name in ("features", "precision", "n_axes", "seed")},
            "classes": self.classes_,
            "surfaces": self.surfaces_,
            "glance_at": self.glance_at_,
            "doubtful": self.doubtful_,
            "stages": stages,
            "sha256": sha256_of(folder / "student.npz"),
        }
        text = json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False)
        with replacing(folder / "student.json") as half:
            half.write_text(text + "\n", encoding="utf-8")

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
            raise InputError(f"Folder {folder} holds no readable student.json: name a saved one.") from error
        if version not in _READABLE:
            raise InputError(
                f"The student in {folder} has format version {version} and this is version {FORMAT_VERSION}: "
                "upgrade Pilotfish or learn the task again."
            )
        refuse_changed(folder / "student.npz", plain["sha256"])
        with np.load(folder / "student.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        made = cls(**plain["params"])
        made.classes_, made.surfaces_, made.glance_at_ = plain["classes"], plain["surfaces"], plain["glance_at"]
        made.doubtful_ = tuple(plain["doubtful"])
        made.readers_, made.calibrations_ = [], []
        for i, stage in enumerate(plain["stages"]):
            made.readers_.append(Reader.from_state(stage, under(arrays, f"stage{i}_")))
            calibration = Calibration()
            calibration.slopes_ = np.array(stage["calibration"])
            made.calibrations_.append(calibration)
        return made

    def _check_fitted(self) -> None:
        if not hasattr(self, "glance_at_"):
            raise NotFittedError("ClosedSetStudent is not fitted: call fit first.")

    def _read(self, texts: Sequence[str]) -> tuple[Array, FloatArray, NDArray[np.bool_]]:
        self._check_fitted()
        if not texts:
            return np.zeros((0, len(self.classes_)), np.float32), np.zeros(0), np.zeros(0, dtype=np.bool_)
        if len(texts) < _MANY:
            return self._read_alone(texts)
        with threadpool_limits(limits=1):
            log_proba, confidence, familiar = dealt_out(self._read_alone, texts)
        return log_proba, confidence, familiar

    def _read_alone(self, texts: Sequence[str]) -> tuple[Array, FloatArray, NDArray[np.bool_]]:
        log_proba, familiar = self.readers_[0].read(texts)
        confidence = self.calibrations_[0].predict(_top(log_proba))
        rows = np.flatnonzero(~((confidence >= self.glance_at_) & familiar))
        if len(self.readers_) > 1 and rows.size:
            log_proba[rows], familiar[rows] = self.readers_[1].read([texts[int(i)] for i in rows])
            confidence[rows] = self.calibrations_[1].predict(_top(log_proba[rows]))
            low, high = self.doubtful_
            rows = rows[(confidence[rows] >= low) & (confidence[rows] < high) & familiar[rows]]
            if rows.size:
                doubtful = [texts[int(i)] for i in rows]
                log_proba[rows] = _together([log_proba[rows], *(r.read(doubtful)[0] for r in self.readers_[2:])])
                confidence[rows] = self.calibrations_[2].predict(_top(log_proba[rows]))
        return log_proba, confidence, familiar

    def _settle(self, stages: list[Array], targets: Array, truth: NDArray[np.int64]) -> None:
        """Calibrate each stage on held-out predictions, and find where the glance is enough."""
        self.calibrations_ = [_calibrated(stage, targets, truth) for stage in stages]
        self.glance_at_ = float("-inf")
        if len(stages) > 1:
            hits = [_hits(stage, targets) for stage in stages]
            confidence = self.calibrations_[0].predict(_top(stages[0]))
            order = np.argsort(-confidence, kind="stable")[: int(_MOST_AT_A_GLANCE * confidence.size)]
            lost = np.cumsum((hits[1] - hits[0])[order])
            too_much = np.flatnonzero(lost > _GLANCE_COST * confidence.size)
            n_glance = int(too_much[0]) if too_much.size else order.size
            self.glance_at_ = float(confidence[order[n_glance - 1]]) if n_glance else 2.0

    def _look_closer(
        self,
        texts: Sequence[str],
        targets: Array,
        truth: NDArray[np.int64],
        typical: NDArray[np.bool_],
        told: str,
        progress: Progress | None,
    ) -> None:
        """Have further readers read the doubtful calls, if there are enough of them and they order them better."""
        encoder, n = self.readers_[-1].held_out_, len(texts)
        order = np.argsort(-encoder.max(axis=1), kind="stable")
        lost = np.cumsum(1 - _hits(encoder[order], targets[order]))
        first = int(np.searchsorted(lost, _LOST_BEFORE_CLOSER * n, side="right"))
        closest = _CLOSER[self.features]
        doubtful = order[first : first + round(closest.read * n)]
        if doubtful.size < _LEAST_TO_CALIBRATE:
            return
        rows = np.sort(order[n - max(round(closest.learned * n), n - first) :])
        at, learned = np.searchsorted(rows, doubtful), [texts[int(i)] for i in rows]
        closer: list[Reader] = []
        together = encoder[doubtful]
        for kind, own in closest.readers.items():
            settings = {
                "kernel_weight": 0.0,
                "seed": self.seed,
                "instruction": told if kind == "language" else "",
                **own,
            }
            reader = Reader(kind, self.precision, self.n_axes, **settings)
            reader.fit(reader.place(learned, progress), targets[rows])
            joined = _together([encoder[doubtful], *(r.held_out_[at] for r in (*closer, reader))])
            if _right_where_sure(joined, targets[doubtful]) > _right_where_sure(together, targets[doubtful]):
                closer.append(reader)
                together = joined
        if not closer:
            return
        drawn = _enough(typical[doubtful])
        calibration = _calibrated(together[drawn], targets[doubtful][drawn], truth[doubtful][drawn])
        ends = self.calibrations_[-1].predict(_top(encoder[doubtful[[-1, 0]]]))
        self.readers_ += closer
        self.calibrations_ += [calibration] * len(closer)
        self.doubtful_ = (float(ends[0]), float(ends[1]))


def _told(instruction: str, answers: Sequence[str]) -> str:
    """What a language model is told: the instruction, or to give one of the answers; of long ones the beginning."""
    listed = "\n".join(["Classify the message into exactly one of these answers:", "", *answers])
    return (instruction or listed)[:_MOST_TOLD]


def _enough(typical: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The calls to calibrate on: those drawn at random, or all where these are too few."""
    return typical if typical.sum() >= _LEAST_TO_CALIBRATE else np.ones_like(typical)


def _calibrated(log_proba: Array, targets: Array, truth: NDArray[np.int64]) -> Calibration:
    """A stage's calibration on held-out predictions: by gold where enough of it is known, else by what is believed."""
    checked = truth >= 0
    if checked.sum() >= _LEAST_TO_CALIBRATE:
        log_proba, targets = log_proba[checked], np.eye(targets.shape[1], dtype=np.float32)[truth[checked]]
    return Calibration().fit(_top(log_proba), _hits(log_proba, targets))


def _right_where_sure(log_proba: Array, targets: Array) -> float:
    """How often the surer half is right: what matters of doubtful calls is their order."""
    surer = np.argsort(-log_proba.max(axis=1), kind="stable")[: len(log_proba) // 2]
    return float(_hits(log_proba[surer], targets[surer]).mean())


def _together(readings: Sequence[Array]) -> Array:
    return geometric_mean(readings, [1 / len(readings)] * len(readings))


def _top(log_proba: Array) -> FloatArray:
    return np.asarray(np.exp(log_proba.max(axis=1)), dtype=np.float64)


def _hits(log_proba: Array, targets: Array) -> FloatArray:
    return np.asarray(targets[np.arange(len(targets)), log_proba.argmax(axis=1)], dtype=np.float64)


def _classes(said: Sequence[str], right: Sequence[str | None]) -> list[str]:
    """What may be answered: repeated answers and gold labels; gold labels alone where they cover nearly all calls."""
    gold = {label for label in right if label is not None}
    counts = Counter(said)
    if gold and sum(counts[label] for label in gold) >= _GOLD_COVERS * len(said):
        return sorted(gold)
    return sorted(gold | {label for label, n in counts.items() if n > 1})


def _surfaces(classes: Sequence[str], answers: Sequence[str], gold: Sequence[str | None]) -> list[str]:
    """How each answer is written: as the large model writes it most often, else as gold does."""
    written: dict[str, Counter[str]] = {label: Counter() for label in classes}
    for answer in answers:
        label = normalise(answer)
        if label in written:
            written[label][answer.strip()] += 1
    spare = {normalise(right): right.strip() for right in gold if right is not None}
    return [_usual(written[label]) if written[label] else spare[label] for label in classes]


def _usual(forms: Counter[str]) -> str:
    return min(forms, key=lambda form: (-forms[form], form))
