"""Runs that are killed, interrupted or given again: what goes on, what is refused, and what is left behind."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pilotfish.curation import ExactDedup, Filter, ImportanceResampling, MinHashDedup, OwnRule, Rules, curate_files
from pilotfish.curation.privacy import Privacy
from pilotfish.errors import InputError
from pilotfish.rules import Threshold
from tests.curation.texts import prose, write_lines


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_lines(tmp_path / f"in{k}.jsonl", [prose(k * 8 + i) for i in range(8)], k * 8) for k in range(4)]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".state" not in p.parts
    }


def _slow(document):
    time.sleep(0.2)
    return 1.0


def _fatal(document):
    os.kill(os.getpid(), signal.SIGKILL)


SLOW = [Rules(OwnRule("slow", _slow)), MinHashDedup()]


def _until(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_workers_end_with_a_killed_run_and_leave_the_folder_free(files, tmp_path):
    psutil = pytest.importorskip("psutil")
    out = tmp_path / "out"
    child = multiprocessing.get_context("fork").Process(
        target=curate_files, args=(files, out, SLOW), kwargs={"workers": 2}
    )
    child.start()
    _until(lambda: list((out / ".state").glob("done-0-*")))
    workers = psutil.Process(child.pid).children()
    assert len(workers) == 2
    child.kill()
    child.join()
    _until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))
    curate_files(files, out, SLOW, workers=2)
    curate_files(files, tmp_path / "whole", SLOW)
    assert content(out) == content(tmp_path / "whole")


def test_an_interrupted_command_says_nothing_of_its_workers(files, tmp_path):
    (tmp_path / "slow_rule.py").write_text("import time\ndef slow(d):\n    time.sleep(0.2)\n    return 1.0\n")
    (tmp_path / "r.toml").write_text('[[step]]\nuse = "python"\nfunction = "slow_rule:slow"\n')
    command = [sys.executable, "-m", "pilotfish", "curate", *files, "-r", tmp_path / "r.toml", "-o", tmp_path / "out"]
    paths = [str(tmp_path), *(str(Path(path).resolve()) for path in sys.path)]
    child = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    _until(lambda: list((tmp_path / "out").glob("*.jsonl")), 60)
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert b"Traceback" not in said


def test_a_worker_that_was_killed_is_told_of(files, tmp_path):
    with pytest.raises(InputError, match="give the same command again"):
        curate_files(files, tmp_path / "out", [Rules(OwnRule("fatal", _fatal))], workers=2)


def test_a_disk_that_is_full_when_keys_are_written_is_told_of(files, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("56000 requested and 49120 written")

    with monkeypatch.context() as patched:
        patched.setattr("numpy.save", full)
        with pytest.raises(InputError, match=r"keys.npy cannot be written .* free space"):
            curate_files(files, tmp_path / "out", [MinHashDedup()])
    assert not list((tmp_path / "out").rglob("*.part"))
    curate_files(files, tmp_path / "out", [MinHashDedup()])
    curate_files(files, tmp_path / "whole", [MinHashDedup()])
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_an_index_is_read_without_what_a_killed_run_left_half_written(files, tmp_path):
    index = tmp_path / "index"
    (index / ".000000-0123456789ab-000000").mkdir(parents=True)
    (index / ".000000-0123456789ab-000000" / "keys.npy").write_bytes(b"half")
    assert curate_files(files, tmp_path / "out", [MinHashDedup(index=index)]).n_out == 32
    assert curate_files(files, tmp_path / "again", [MinHashDedup(index=index)]).n_out == 0


class Likeness:
    def __init__(self, word, **more):
        self.word = word
        self.more = more

    def score(self, items):
        return np.array([float(text.count(self.word)) for text in items])


@pytest.mark.parametrize(
    ("steps", "others"),
    [
        ([Filter("a", Likeness("the"), Threshold(1))], [Filter("a", Likeness("the"), Threshold(9))]),
        ([Filter("a", Likeness("the"), Threshold(1))], [Filter("a", Likeness("of"), Threshold(1))]),
        (
            [Filter("a", Likeness("a", b={"c": 1}), Threshold(0))],
            [Filter("a", Likeness("a", b={"c": 2}), Threshold(0))],
        ),
        ([Rules(OwnRule("a", lambda d: len(d.text)))], [Rules(OwnRule("a", lambda d: -len(d.text)))]),
        ([Privacy()], [Privacy(most=1)]),
        ([ImportanceResampling(["x"], 3)], [ImportanceResampling(["y"], 3)]),
    ],
)
def test_steps_with_other_settings_are_another_run(steps, others, files, tmp_path):
    curate_files(files, tmp_path / "out", steps)
    assert curate_files(files, tmp_path / "out", steps).n_in == 32
    with pytest.raises(InputError, match="another recipe"):
        curate_files(files, tmp_path / "out", others)


def test_settings_are_described_alike_in_every_process():
    code = "from pilotfish.curation import *; from pilotfish.curation.described import described; "
    code += "print(described([D4(0.5), Language({'en': 0.5}), Rules(OwnRule('a', lambda d: 1)), MinHashDedup()]))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_an_index_has_seen_what_the_same_folder_was_once_used_for(files, tmp_path):
    steps = [MinHashDedup(index=tmp_path / "index")]
    assert curate_files(files[:2], tmp_path / "out", steps).n_out == 16
    (tmp_path / "out").rename(tmp_path / "first")
    assert curate_files(files, tmp_path / "out", steps).n_out == 16
    # The same run once more, from the beginning, does not take its own documents for seen.
    shutil.rmtree(tmp_path / "out")
    assert curate_files(files, tmp_path / "out", steps).n_out == 16
    assert curate_files(files, tmp_path / "last", steps).n_out == 0


@pytest.mark.parametrize("other", [MinHashDedup(n_gram=3), MinHashDedup(seed=2), MinHashDedup(28, 4), ExactDedup()])
def test_an_index_is_refused_to_other_settings(other, files, tmp_path):
    curate_files(files, tmp_path / "a", [MinHashDedup(index=tmp_path / "index")])
    other.index = tmp_path / "index"
    with pytest.raises(InputError, match="other settings"):
        curate_files(files, tmp_path / "b", [other])
    assert curate_files(files, tmp_path / "c", [MinHashDedup(index=tmp_path / "index", least=0.9)]).n_out == 0
