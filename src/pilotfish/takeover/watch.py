"""The watch over a student in service: which answers to audit, and when to hand the task back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pilotfish.bounds import ExceedanceTest
from pilotfish.takeover.certify import Certificate

__all__ = ["Watch"]

_MOST_HELD, _PASSED = 6, 0.75
_BREACHES = {
    "audit": "audited answers disagree with the large model more often than the target allows",
    "escalated": "on escalated calls the student disagrees with the large model more often than it did when certified",
    "labels": "the large model gives answers outside the known set more often than it did",
    "inputs": "more calls look unlike the ones learned from than did when certified",
}


@dataclass
class Watch:
    """Audits of one student in service, by anytime-valid tests of four rates.

    A share of the local answers is checked against the large model. After a check that fails, the next eligible calls
    are not answered locally but go to the large model and are compared (``holding``), so that a real change costs no
    further wrong answers while the evidence is gathered.

    Parameters
    ----------
    tests : dict of ExceedanceTest
        By name: ``audit``, ``escalated``, ``labels``, ``inputs``.
    audit_share : float
        Share of local answers that are checked, in (0, 1].
    n_hold : int
        Calls compared in a row, all right, that end a hold. By default 6, or as many as a student that differs no more
        often than its certificate says passes three times out of four.
    holding : int
        Comparisons still to pass before local answers resume.

    Examples
    --------
    >>> watch = Watch({"audit": ExceedanceTest(0.03, 0.01)})
    >>> watch.audited(wrong=True); watch.holding
    6
    >>> for _ in range(4): watch.audited(wrong=True)
    >>> watch.breach
    'audited answers disagree with the large model more often than the target allows (3 of 3, limit 3.0%)'
    """

    tests: dict[str, ExceedanceTest]
    audit_share: float = 0.05
    n_hold: int = 6
    holding: int = 0
    breach: str = field(default="")

    @classmethod
    def for_certificate(
        cls,
        certificate: Certificate,
        *,
        unknown_labels_upper: float,
        unfamiliar_upper: float,
        false_alarm_risk: float = 0.01,
        audit_share: float = 0.05,
    ) -> Watch:
        """Set the limits from what was certified.

        Parameters
        ----------
        certificate : Certificate
            The certificate in force.
        unknown_labels_upper : float
            Upper bound of the share of the large model's answers outside the known set.
        unfamiliar_upper : float
            Upper bound of the share of calls that look unlike the ones learned from.
        false_alarm_risk : float
            Chance that any of the tests ever raises a false alarm, shared among them.
        audit_share : float
            Share of local answers that are checked.
        """
        risk = certificate.target.risk
        allowed = {"system": risk / max(certificate.coverage, 1e-9), "answers": risk, "correctness": 0.0}
        limits = {
            "audit": max(allowed[certificate.target.measure], certificate.local_disagreement_upper),
            "escalated": certificate.escalated_disagreement_upper,
            "labels": unknown_labels_upper,
            "inputs": unfamiliar_upper,
        }
        delta = false_alarm_risk / len(limits)
        tests = {name: ExceedanceTest(min(max(x, 1e-3), 0.95), delta) for name, x in limits.items()}
        # A student that is allowed many differences would seldom pass a long row, and hardly ever answer.
        expected = min(max(certificate.local_disagreement_upper, 1e-3), 0.95)
        n_hold = int(math.log(_PASSED) / math.log1p(-expected))
        return cls(tests, audit_share, n_hold=min(max(n_hold, 1), _MOST_HELD))

    def audited(self, wrong: bool) -> None:
        """Take in one comparison of an answer the student gave, or would have given, with the large model's."""
        self.holding = self.n_hold if wrong else max(0, self.holding - 1)
        self._take("audit", wrong)

    def escalated(self, wrong: bool) -> None:
        """Take in one comparison on a call that the student was not sure enough to answer."""
        self._take("escalated", wrong)

    def labelled(self, unknown: bool) -> None:
        """Take in whether an answer of the large model lies outside the known set."""
        self._take("labels", unknown)

    def seen(self, unfamiliar: bool) -> None:
        """Take in whether a call looks unlike the ones learned from."""
        self._take("inputs", unfamiliar)

    def _take(self, name: str, event: bool) -> None:
        test = self.tests.get(name)
        if test is None or self.breach:
            return
        if test.update(event):
            self.breach = f"{_BREACHES[name]} ({test.n_events} of {test.n}, limit {test.limit:.1%})"

    def to_json(self) -> dict[str, Any]:
        """Write the state as plain data."""
        return {
            "tests": {name: test.to_json() for name, test in self.tests.items()},
            "audit_share": self.audit_share,
            "n_hold": self.n_hold,
            "holding": self.holding,
            "breach": self.breach,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Watch:
        """Read the state back."""
        values = dict(data)
        values["tests"] = {name: ExceedanceTest.from_json(test) for name, test in values["tests"].items()}
        return cls(**values)
