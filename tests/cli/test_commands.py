"""The command line, as a user runs it."""

from __future__ import annotations

import csv
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pilotfish.cli import app
from pilotfish.errors import ConfigError, UnknownTaskError
from pilotfish.gateway.config import GatewayConfig
from pilotfish.gateway.sources import load_config
from pilotfish.gateway.takeover import make_takeover
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


@pytest.fixture
def seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """With what each student made from now on reads calls."""
    made: list[str] = []

    class Noted(WordStudent):
        def __init__(self, features: str = "encoder") -> None:
            super().__init__(features)
            made.append(features)

    monkeypatch.setattr("pilotfish.training.closed_set.ClosedSetStudent", Noted)
    return made


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
    assert "large model already" in run("rollback", "desk")
    with TrafficLog("pilotfish.db") as log:
        kinds = [event.kind for event in log.events("desk")]
    assert kinds == ["learned", "promoted", "rolled_back"]


def test_learning_says_what_stays_in_service(folder: Path) -> None:
    run("import", "calls.csv", "--task", "desk")
    assert "It predicts in shadow" in run("learn", "desk", "--level", "0.9")
    assert "Student v1 stays in shadow: Certified" in run("learn", "desk", "--level", "0.9999")
    run("promote", "desk")
    assert "Student v1 stays in service: Certified" in run("learn", "desk", "--level", "0.9999")
    assert "desk is live with student v4" in run("learn", "desk", "--level", "0.91")


def test_students_read_calls_with_what_is_configured_or_given(folder: Path, seen: list[str]) -> None:
    run("import", "calls.csv", "--task", "desk")
    (folder / "pilotfish.toml").write_text('[student]\nfeatures = "static"\n', encoding="utf-8")
    run("learn", "desk", "--level", "0.9")
    run("learn", "desk", "--level", "0.9", "--features", "large")
    assert seen == ["static", "large"]
    refused = CliRunner().invoke(app, ["learn", "desk", "--features", "words"])
    assert isinstance(refused.exception, ConfigError)
    assert "'student.features' in the environment or the command line" in str(refused.exception)


def test_replay_with_another_policy(folder: Path) -> None:
    run("import", "calls.csv", "--task", "desk")
    (folder / "new.toml").write_text("[takeover]\nlevel = 0.9\n", encoding="utf-8")
    said = run("replay", "--policy", "new.toml")
    assert "desk 900" in said


def test_spending_is_not_known_without_prices(folder: Path) -> None:
    run("import", "calls.csv", "--task", "desk", "--model", "large")
    run("report", "-o", "report.html")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "$0" not in page
    assert "not known" in page
    for command in ("status", "replay"):
        said = run(command)
        assert "$" not in said
        assert "models without a section [prices.NAME]" in said
    (folder / "pilotfish.toml").write_text("[prices.large]\ninput = 1\noutput = 1\n", encoding="utf-8")
    assert "$0.00" in (said := run("status"))
    assert "[prices.NAME]" not in said


@pytest.mark.parametrize(
    ("host", "keys", "told"),
    [("127.0.0.1", "", False), ("localhost", "", False), ("::1", "", False), ("0.0.0.0", "", True), ("::", "", True),
     ("0.0.0.0", f"[keys.a]\nhash = 'sha256${'0' * 32}${'0' * 64}'\n", False)],
)  # fmt: skip
def test_an_open_address_without_keys_is_told_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, host: str, keys: str, told: bool
) -> None:
    monkeypatch.setattr("pilotfish.gateway.serve", lambda _settings, checked: checked())
    (folder / "pilotfish.toml").write_text(keys, encoding="utf-8")
    assert ("Whoever reaches" in run("serve", "--host", host)) == told


def test_brackets_in_the_name_of_a_task_are_no_markup(folder: Path) -> None:
    run("import", "calls.csv", "--task", "[/bold]desk[red]")
    for command in ("status", "replay"):
        assert "[/bold]desk[red]" in run(command)
    assert "certif" in run("learn", "[/bold]desk[red]").lower()


def test_the_extra_to_install_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    (folder / "outputs.jsonl").write_text('{"output": "It lies in Peru.", "reference": "In Peru."}\n', encoding="utf-8")
    assert "pip install 'pilotfish[metrics]'" in run("evaluate", "outputs.jsonl", "--metrics", "rouge,chrf")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("pilotfish.evaluate.evaluate", None)  # told before anything is scored
    refused = CliRunner().invoke(app, ["evaluate", "outputs.jsonl", "-o", "scores.parquet"])
    assert "pip install 'pilotfish[parquet]'" in str(refused.exception)


def test_a_policy_without_a_student_is_tried_with_the_own_one(folder: Path, seen: list[str]) -> None:
    run("import", "calls.csv", "--task", "desk")
    (folder / "pilotfish.toml").write_text('[student]\nfeatures = "static"\n', encoding="utf-8")
    (folder / "new.toml").write_text("[takeover]\nlevel = 0.9\n", encoding="utf-8")
    run("replay", "--policy", "new.toml")
    assert seen[0] == "static"


def test_a_log_without_tasks_is_told(folder: Path) -> None:
    (folder / "none.csv").write_text("input,output\n", encoding="utf-8")
    run("import", "none.csv")
    assert "second call with the same instruction of four words or more" in run("replay")
    missing = CliRunner().invoke(app, ["export", "some.jsonl", "--task", "dsek"])
    assert isinstance(missing.exception, UnknownTaskError)
    assert not (folder / "some.jsonl").exists()
    assert "whose [takeover] section is tried" in run("replay", "--help").replace("│ │ ", "")


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


class Started:
    """A process that was started: its command, and what it was given on standard input."""

    def __init__(self, command: list[str], **_: object) -> None:
        self.command, self.given, self.stdin = command, b"", BytesIO()
        self.stdin.close = self._keep  # type: ignore[method-assign]

    def _keep(self) -> None:
        self.given = self.stdin.getvalue()


def test_a_gateway_learns_in_a_process_that_goes_by_its_configuration(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Started] = []
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: started.append(Started(*a, **k)) or started[-1])
    config = GatewayConfig.model_validate(
        {
            "takeover": {"auto": True, "level": 0.9},
            "log": {"path": "elsewhere.db"},
            "student": {"features": "static"},
            "upstream": {"api_key": "sk-secret"},
        }
    )
    with TrafficLog(folder / "a.db", "fast") as log:
        takeover = make_takeover(config, log, learns=True)
        assert isinstance(takeover, service.Takeover)
        for call in stream(260):
            log.append(call)
        log.flush()
        for call in log.calls():
            takeover.observe(call)
        takeover.flush()
    assert started[0].command[1:] == ["-m", "pilotfish", "learn", "desk", "--auto", "--config", "-"]
    assert b"secret" not in started[0].given
    # Neither a file nor the environment of the process changes what it was told.
    monkeypatch.setenv("PILOTFISH_STUDENT_FEATURES", "large")
    (folder / "pilotfish.toml").write_text("[takeover]\nlevel = 0.5\n", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(started[0].given)))
    assert load_config(Path("-")) == config.model_copy(
        update={
            "log": config.log.model_copy(update={"path": folder / "a.db"}),
            "upstream": config.upstream.model_copy(update={"api_key": None}),
        }
    )
    learned = CliRunner().invoke(app, started[0].command[3:], input=started[0].given)
    assert "Learned from" in learned.output
    for text in (b"[server]", b"[]"):
        refused = CliRunner().invoke(app, ["status", "--config", "-"], input=text)
        assert "is no JSON object: name a file" in str(refused.exception)
