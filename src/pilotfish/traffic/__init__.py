"""The durable log of calls, and what is read from it."""

from pilotfish.traffic.calls import Answerer, Call, Event, Totals, Verdict, new_call_id
from pilotfish.traffic.log import TrafficLog
from pilotfish.traffic.masking import PatternMasker

__all__ = ["Answerer", "Call", "Event", "PatternMasker", "Totals", "TrafficLog", "Verdict", "new_call_id"]
