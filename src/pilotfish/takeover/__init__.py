"""Takeover: a student answers a task's calls in the large model's place, certified before and audited after."""

from __future__ import annotations

from pilotfish.takeover.certify import Certificate, GroupBound, Target, certify
from pilotfish.takeover.watch import Watch

__all__ = ["Certificate", "GroupBound", "Target", "Watch", "certify"]
