"""Gateway keys and what may be spent with them."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from pilotfish.gateway.config import KeyConfig
from pilotfish.traffic import TrafficLog
from pilotfish.traffic.rows import day_of

__all__ = ["Budgets", "Keyring", "hash_key", "new_key"]

MAX_CACHED = 4096
REFRESH_SECONDS = 0.5


def new_key() -> tuple[str, str]:
    """Make a gateway key of 256 random bits; returns the key and the hash to put in the configuration.

    Examples
    --------
    >>> key, hashed = new_key()
    >>> key[:3], hashed[:7]
    ('pf-', 'sha256$')
    """
    key = f"pf-{secrets.token_urlsafe(32)}"
    return key, hash_key(key, secrets.token_hex(16))


def hash_key(key: str, salt: str) -> str:
    """Hash a gateway key with a salt (32 hexadecimal digits).

    The keys are 256 random bits: there is nothing to guess, so that a slow hash would protect no better.
    """
    return f"sha256${salt}${hashlib.sha256(f'{salt}{key}'.encode()).hexdigest()}"


class Keyring:
    """Tell whose gateway key a call carries.

    Parameters
    ----------
    keys : mapping of KeyConfig
        The keys by name; without any every call is let in.
    """

    def __init__(self, keys: Mapping[str, KeyConfig]) -> None:
        self.hashes = {name: key.hash for name, key in keys.items()}
        self._known: dict[bytes, str] = {}

    def name_of(self, authorization: bytes) -> str | None:
        """Name the key of an Authorization header; None when it is of no key."""
        digest = hashlib.sha256(authorization).digest()
        name = self._known.get(digest)
        if name is None:
            name = self._find(authorization)
            if name is not None and len(self._known) < MAX_CACHED:
                self._known[digest] = name
        return name

    def _find(self, authorization: bytes) -> str | None:
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        text = key.strip().decode("utf-8", "replace")
        found = None
        for name, hashed in self.hashes.items():
            if hmac.compare_digest(hash_key(text, hashed.split("$")[1]), hashed):
                found = name
        return found


@dataclass(slots=True)
class _Account:
    limit: float
    spent: float = 0.0
    day: str = ""


class Budgets:
    """Know what each key has spent today, over all workers.

    The log's sums are the truth; what this process spends is added at once, what others spend is seen within half a
    second. A call that is let in may overdraw the budget by its own price.

    Parameters
    ----------
    log : TrafficLog
        Where the sums are.
    keys : mapping of KeyConfig
        The keys by name.
    """

    def __init__(self, log: TrafficLog, keys: Mapping[str, KeyConfig]) -> None:
        self.log = log
        self._lock = threading.Lock()
        self.accounts = {
            name: _Account(key.budget_usd_per_day) for name, key in keys.items() if key.budget_usd_per_day is not None
        }

    def exceeded(self, name: str) -> bool:
        """Whether the key has spent its budget of today."""
        account = self.accounts.get(name)
        return account is not None and account.spent >= account.limit and account.day == day_of(time.time())

    def add(self, name: str, cost: float) -> None:
        """Add what a call of this process cost."""
        account = self.accounts.get(name)
        if account is not None:
            with self._lock:
                account.spent += cost

    def refresh(self) -> None:
        """Read the sums of today; called in a worker thread."""
        now = time.time()
        for name, account in self.accounts.items():
            spent, day = self.log.spent(name, now), day_of(now)
            with self._lock:
                # What was added here may not be in the log yet, and within a day nothing spent comes back.
                account.spent, account.day = max(spent, account.spent) if account.day == day else spent, day
