"""Labels from a noisy teacher: its systematic mistakes estimated, and a few gold labels made the most of.

A large model's wrong answers are not random: it takes one intent for another, over and over. Mixed in naively, they
undo good gold labels. Here the right answer y of a call is unknown, the teacher's answer a is what is seen, and

    p(y | text, a)  is proportional to  p(y | text) p(a | y),

where p(a | y), the teacher's confusion, is the same for all calls, and p(y | text) comes from a smoother over the texts
that leaves the call itself out. The two are estimated in turns, from gold where there is some.

References
----------
Dawid and Skene 1979 (confusion by expectation maximisation); Raykar et al. 2010, Learning from crowds (with a
classifier in the loop); Natarajan et al. 2013, Learning with noisy labels (class-conditional noise).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pilotfish.errors import InputError
from pilotfish.training.heads import KernelHead, LeaveOneOut

__all__ = ["Denoised", "confusion", "denoise"]

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
# Stronger sharpening than for serving: a posterior that stays vague gives the teacher's mistakes back.
_ROUND_TEMPERATURE = 18.0
_START = {"ridge": 0.3, "temperature": 20.0}


@dataclass(frozen=True, slots=True, eq=False)
class Denoised:
    """What is believed about the right answers.

    Parameters
    ----------
    targets : array (n, n_classes)
        Probability of each class being right, per call; one-hot where gold is known.
    confusion : array (n_classes, n_answers)
        Probability of each answer of the teacher, given the right class.
    """

    targets: Array
    confusion: Array


def confusion(targets: Array, answers: Labels, n_answers: int, prior: float = 2.5, faith: float = 2.0) -> Array:
    """Estimate p(answer | class) from beliefs about the classes, shrunk towards the teacher's habits and towards trust.

    Parameters
    ----------
    targets : array (n, n_classes)
        Probability of each class being right, per call.
    answers : array of int (n,)
        The teacher's answers; answer i means class i, answers from ``n_classes`` on mean no class.
    n_answers : int
        Number of different answers.
    prior : float
        Pseudo-calls per class answered as the teacher answers overall.
    faith : float
        Pseudo-calls per class answered rightly.

    Returns
    -------
    ndarray (n_classes, n_answers)
        Rows sum to 1.

    Examples
    --------
    >>> confusion(np.eye(2, dtype=np.float32)[[0, 0, 1, 1]], np.array([0, 1, 1, 1]), 2, prior=0, faith=0)
    array([[0.5, 0.5],
           [0. , 1. ]], dtype=float32)
    """
    said = np.eye(n_answers, dtype=np.float32)[answers]
    counts = targets.T @ said + np.float32(prior) * said.mean(axis=0)
    n_classes = targets.shape[1]
    counts[np.arange(n_classes), np.arange(n_classes)] += np.float32(faith)
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12), dtype=np.float32)


def denoise(
    X: Array, answers: Labels, gold: Labels, n_classes: int, n_rounds: int = 3, head: KernelHead | None = None
) -> Denoised:
    """Estimate the right answers of calls from the teacher's answers, their texts and a few gold labels.

    Parameters
    ----------
    X : array (n, d)
        The texts as points of a space.
    answers : array of int (n,)
        The teacher's answers; answer i means class i, answers from ``n_classes`` on mean no class.
    gold : array of int (n,)
        The right class where known, else -1; may be -1 throughout.
    n_classes : int
        Number of classes, at least 2.
    n_rounds : int
        Rounds of estimating the confusion and the classes in turn.
    head : KernelHead, optional
        Settings of the smoother.

    Returns
    -------
    Denoised

    Raises
    ------
    InputError
        When lengths differ or a gold label is not a class.

    Examples
    --------
    >>> X = np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
    >>> answers = np.array([0] * 8 + [1] * 2 + [1] * 10)
    >>> denoise(X, answers, np.full(20, -1), 2).targets[8:10].argmax(axis=1)      # odd answers among alike texts
    array([0, 0])
    """
    if not len(X) == len(answers) == len(gold):
        raise InputError(f"X, answers and gold have {len(X)}, {len(answers)} and {len(gold)} rows: give one per call.")
    if gold.size and gold.max() >= n_classes:
        raise InputError(f"gold holds class {gold.max()} of {n_classes} classes: number classes from 0.")
    settings = head or KernelHead()
    n_answers = max(int(answers.max()) + 1, n_classes)
    smoother = LeaveOneOut(KernelHead(settings.n_axes, settings.gamma, settings.ridge, _ROUND_TEMPERATURE), X)
    known = np.flatnonzero(gold >= 0)
    anchors, classes = _anchors(answers, gold, n_classes)
    eye = np.eye(n_classes, dtype=np.float32)
    targets = _naive(answers, n_classes)
    if known.size:
        start = KernelHead(settings.n_axes, settings.gamma, **_START).fit(X[anchors], eye[classes])
        log_prior = start.log_proba(X)
        table = confusion(eye[classes], answers[anchors], n_answers)
        targets = _posterior(log_prior, table, answers)
        targets[known] = eye[gold[known]]
    for _ in range(n_rounds):
        log_prior = smoother.log_proba(targets)
        table = confusion(targets, answers, n_answers)
        targets = _posterior(log_prior, table, answers)
        targets[known] = eye[gold[known]]
    return Denoised(targets, confusion(targets, answers, n_answers))


def _naive(answers: Labels, n_classes: int) -> Array:
    targets = np.full((answers.size, n_classes), 1 / n_classes, dtype=np.float32)
    taken = answers < n_classes
    targets[taken] = np.eye(n_classes, dtype=np.float32)[answers[taken]]
    return targets


def _posterior(log_prior: Array, table: Array, answers: Labels) -> Array:
    log_joint = log_prior + np.log(table[:, answers].T + 1e-12)
    log_joint -= log_joint.max(axis=1, keepdims=True)
    joint = np.exp(log_joint)
    return np.asarray(joint / joint.sum(axis=1, keepdims=True), dtype=np.float32)


def _anchors(answers: Labels, gold: Labels, n_classes: int) -> tuple[Labels, Labels]:
    """The calls to start from: those with gold, and as many of the teacher's own for each class without any gold."""
    known = np.flatnonzero(gold >= 0)
    counts = np.bincount(gold[known], minlength=n_classes)
    n_each = int(np.ceil(counts[counts > 0].mean())) if known.size else 0
    rows, classes = [known], [gold[known]]
    for c in np.flatnonzero(counts == 0):
        mine = np.flatnonzero((answers == c) & (gold < 0))[:n_each]
        rows.append(mine)
        classes.append(np.full(mine.size, c, dtype=np.int64))
    return np.concatenate(rows), np.concatenate(classes)
