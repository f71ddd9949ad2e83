"""Files appear whole or not at all, and damaged ones are told from good ones."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from pilotfish.errors import InputError
from pilotfish.files import read_arrays, replacing, write_arrays


def _fails_after(half: Path) -> None:
    half.write_text("half")
    raise ZeroDivisionError


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path) -> None:
    place = tmp_path / "a.txt"
    place.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(place) as half:
        _fails_after(half)
    assert place.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_private_file_is_its_owners_alone(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", {"x": np.arange(3)}, private=True)
    assert stat.S_IMODE((tmp_path / "a.npz").stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", ["text", "cut", "flipped", "absent"])
def test_damage_is_one_clear_sentence(tmp_path: Path, damage: str) -> None:
    place = tmp_path / "a.npz"
    write_arrays(place, {"x": np.random.default_rng(0).random(999)})
    whole = place.read_bytes()
    if damage == "text":
        place.write_text("this is no archive")
    elif damage == "cut":
        place.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        place.write_bytes(whole[:500] + bytes(b ^ 255 for b in whole[500:600]) + whole[600:])
    else:
        place.unlink()
    with pytest.raises(InputError, match="is no saved list"), read_arrays(place, "list") as arrays:
        arrays["x"]


def test_what_is_lacking_and_what_is_pickled_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    for name in ("x", "y"):
        with pytest.raises(InputError, match="is no saved list"), read_arrays(tmp_path / "a.npz", "list") as arrays:
            arrays[name]


def _folder(half: Path, name: str) -> None:
    half.mkdir()
    (half / name).write_text("whole")


def _breaks_off(half: Path) -> None:
    _folder(half, "third")
    raise ZeroDivisionError


def test_a_folder_is_replaced_as_a_file_is(tmp_path: Path) -> None:
    place = tmp_path / "model"
    for name in ("first", "second"):
        with replacing(place) as half:
            _folder(half, name)
        assert [file.name for file in place.iterdir()] == [name]
    with pytest.raises(ZeroDivisionError), replacing(place) as half:
        _breaks_off(half)
    assert [file.name for file in place.iterdir()] == ["second"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
