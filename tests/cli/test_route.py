"""The routing commands, end to end on a table."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pilotfish.cli.methods import methods
from pilotfish.cli.route import app
from pilotfish.errors import InputError
from pilotfish.models.fake import FakeModel
from tests.route.conftest import make_table


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    target = tmp_path_factory.mktemp("route") / "t.jsonl"
    make_table(240).to_jsonl(target)
    return str(target)


def run(*words, command=app):
    return CliRunner().invoke(command, list(words), catch_exceptions=False)


def test_fit_then_explain(path, tmp_path):
    out = tmp_path / "router.npz"
    made = run("fit", "--table", path, "--budget", "6usd/1k", "--out", str(out))
    assert made.exit_code == 0
    assert out.is_file()
    told = run("explain", "add 4 and 8 now", "--router", str(out))
    assert "router: large predicted" in told.output.replace("\n", " ")


def test_any_policy_is_fitted_and_saved(path, tmp_path):
    made = run(
        "fit", "--table", path, "--budget", "6usd/1k", "--policy", "tag_router", "--out", str(tmp_path / "route")
    )
    assert made.exit_code == 0, made.output
    assert json.loads((tmp_path / "route/route.json").read_text())["policy"] == "tag_router"


def test_methods_that_ask_a_model_take_one(path, tmp_path, monkeypatch):
    asked = []

    class Local(FakeModel):
        def __init__(self, source):
            asked.append(source)
            super().__init__("yes")

    monkeypatch.setattr("pilotfish.models.gguf.GGUFModel", Local)
    said = ("-t", path, "-b", "6usd/1k", "-p", "automix", "--model", "small=tiny", "--option", "n_samples=1")
    done = run("compare", *said)
    assert done.exit_code == 0, done.output
    assert "automix" in done.output
    made = run("fit", *said, "--option", "planned=false", "--out", str(tmp_path / "route"))
    assert made.exit_code == 0, made.output
    assert json.loads((tmp_path / "route/route.json").read_text())["options"] == {"n_samples": 1, "planned": False}
    assert asked == ["tiny", "tiny"]
    with pytest.raises(InputError, match="give NAME=VALUE"):
        run("compare", "-t", path, "-b", "6usd/1k", "-p", "automix", "--model", "tiny")
    with pytest.raises(InputError, match="without --policy"):
        run("compare", "-t", path, "-b", "6usd/1k", "--option", "k=1")


def test_a_certified_setting_is_fitted(path, tmp_path):
    words = ("-t", path, "-b", "20usd/1k", "-p", "hybrid_llm", "--out", str(tmp_path / "route"))
    assert run("fit", *words, "--level", "0.4").exit_code == 0
    assert json.loads((tmp_path / "route/route.json").read_text())["level"] == 0.4
    with pytest.raises(InputError, match="certified"):
        run("fit", *words, "--level", "0.0001")


def test_compare_prints_and_writes_the_report(path, tmp_path):
    page, data = tmp_path / "r.html", tmp_path / "r.json"
    done = run(
        "compare", "-t", path, "-b", "6usd/1k", "-p", "forc,tag_router", "--html", str(page), "--json", str(data)
    )
    assert done.exit_code == 0
    assert "Use " in done.output
    names = [row["name"] for row in json.loads(data.read_text())["rows"]]
    assert names[:2] == ["forc", "tag_router"]
    assert page.read_text().startswith("<!doctype html>")


def test_methods_lists_cards():
    import typer

    listing = typer.Typer()
    listing.command()(methods)
    done = run("routing", "--json", command=listing)
    rows = [json.loads(line) for line in done.output.splitlines()]
    assert {"forc", "route_llm"} <= {row["slug"] for row in rows}
    assert "frugal_gpt" in run("cascades", command=listing).output
