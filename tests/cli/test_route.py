"""The routing commands, end to end on a table."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pilotfish.cli.methods import methods
from pilotfish.cli.route import app
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
