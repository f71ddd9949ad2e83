"""The command line, as a user runs it."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pilotfish.cli import app
from pilotfish.errors import ConfigError
from pilotfish.gateway.sources import load_config
from pilotfish.takeover import service
from pilotfish.traffic import TrafficLog
from tests.takeover.students import WordStudent
from tests.takeover.test_service import stream


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a log of 900 calls, and students that need no model file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pilotfish.training.closed_set.ClosedSetStudent", WordStudent)
    with (tmp_path / "calls.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["input", "output"])
        writer.writerows((call.prompt, call.answer) for call in stream(900))
    return tmp_path


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_import_learn_promote_report(folder: Path) -> None:
    assert "900 calls imported" in run("import", "calls.csv", "--task", "desk")
    assert "0 calls imported" in run("import", "calls.csv", "--task", "desk")
    assert "observing" in run("status")
    assert "Certified on" in run("learn", "desk", "--level", "0.95", "--by-class")
    assert "live" in run("promote", "desk")
    assert "live" in run("status")
    run("report", "-o", "page/report.html")
    page = (folder / "page/report.html").read_text(encoding="utf-8")
    assert "Cost and quality" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "large model again" in run("rollback", "desk", "--reason", "a test")
    with TrafficLog("pilotfish.db") as log:
        kinds = [event.kind for event in log.events("desk")]
    assert kinds == ["learned", "promoted", "rolled_back"]


def test_students_read_calls_with_what_is_configured_or_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Noted(WordStudent):
        def __init__(self, features: str = "encoder") -> None:
            super().__init__(features)
            seen.append(features)

    monkeypatch.setattr("pilotfish.training.closed_set.ClosedSetStudent", Noted)
    run("import", "calls.csv", "--task", "desk")
    (folder / "pilotfish.toml").write_text('[student]\nfeatures = "static"\n', encoding="utf-8")
    run("learn", "desk", "--level", "0.9")
    run("learn", "desk", "--level", "0.9", "--features", "large")
    assert seen == ["static", "large"]
    refused = CliRunner().invoke(app, ["learn", "desk", "--features", "words"])
    assert isinstance(refused.exception, ConfigError)
    assert "features" in str(refused.exception)


def test_what_learns_for_the_gateway_reads_its_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTFISH_CONFIG", "")
    monkeypatch.setattr("pilotfish.gateway.serve", lambda _: None)
    (folder / "own.toml").write_text("[takeover]\naudit_share = 0.2\n", encoding="utf-8")
    run("serve", "--config", "own.toml")
    monkeypatch.chdir(folder.parent)
    assert load_config().takeover.audit_share == 0.2


def test_replay_with_another_policy(folder: Path) -> None:
    run("import", "calls.csv", "--task", "desk")
    (folder / "new.toml").write_text("[takeover]\nlevel = 0.9\n", encoding="utf-8")
    said = run("replay", "--policy", "new.toml")
    assert "desk 900" in said


def test_nothing_certifiable_says_how_many_calls_are_missing(folder: Path) -> None:
    lines = (folder / "calls.csv").read_text().splitlines()[:91]
    (folder / "few.csv").write_text("\n".join(lines))
    run("import", "few.csv", "--task", "desk")
    said = run("learn", "desk", "--level", "0.97")
    assert "Nothing could be certified" in said
    assert "more calls are needed" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["status"], "There is no traffic log"),
        (["learn", "desk"], "There is no traffic log"),
        (["status", "--config", "no.toml"], "no.toml"),
    ],
)
def test_errors_are_one_sentence_on_stderr(tmp_path: Path, words: list[str], sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pilotfish", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = ("numpy", "scipy", "sklearn", "torch", "aiohttp")
    code = f"import pilotfish.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_gateway_learns_by_itself_in_a_process_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("subprocess.Popen", lambda command, **_: started.append(command))
    from pilotfish.gateway.config import GatewayConfig
    from pilotfish.gateway.takeover import make_takeover

    config = GatewayConfig.model_validate({"takeover": {"auto": True}, "log": {"path": folder / "a.db"}})
    with TrafficLog(config.log.path, "fast") as log:
        takeover = make_takeover(config, log, learns=True)
        assert isinstance(takeover, service.Takeover)
        for call in stream(260):
            log.append(call)
        log.flush()
        for call in log.calls():
            takeover.observe(call)
        takeover.flush()
    assert started[0][1:5] == ["-m", "pilotfish", "learn", "desk"]
