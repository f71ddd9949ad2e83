"""The routing commands, end to end on a table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pilotfish.cli import main
from pilotfish.cli.methods import methods
from pilotfish.cli.output import console
from pilotfish.cli.route import app
from pilotfish.errors import InputError
from pilotfish.methods.build import Route
from pilotfish.models.fake import FakeModel
from pilotfish.traffic import Call, TrafficLog
from pilotfish.traffic.table import ReplyTable
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
    assert "large answers: " in told.output
    with pytest.raises(InputError, match="no saved router"):
        run("explain", "x", "--router", str(tmp_path / "nothing"))


def test_a_model_is_added_to_a_saved_router(path, tmp_path):
    out, new = tmp_path / "router.npz", tmp_path / "new.jsonl"
    assert run("fit", "-t", path, "-b", "6usd/1k", "--out", str(out)).exit_code == 0
    before = run("explain", "add 3 and 9 now", "--router", str(out)).output.splitlines()
    rows = [
        {"query": f"add {i} and 5 now", "model": "new", "score": float(i % 9 > 0), "cost": 0.002} for i in range(40)
    ]
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("add", "new", "--table", str(new), "--router", str(out))
    assert "routes to small, large, new." in unwrapped(done.output)
    after = run("explain", "add 3 and 9 now", "--router", str(out)).output
    assert [line.split()[:4] for line in after.splitlines()[1:3]] == [line.split()[:4] for line in before[1:3]]
    assert "new answers: " in after
    for name, router, said in (
        ("new", out, "already routed to"),
        ("other", out, "no model 'other'"),
        ("new", tmp_path, "no readable route.json"),
    ):
        with pytest.raises(InputError, match=said):
            run("add", name, "--table", str(new), "--router", str(router))


def unwrapped(output):
    """Lines put together: where they break depends on the length of the folder's name."""
    return " ".join(output.split())


def _labels(model, n=40):
    """Rows of a model that is right about sums, which are the hard questions, and about nothing else."""
    asked = [(f"add {i} and 5 now", 1.0) if i % 2 else (f"who wrote the old book {i}", 0.0) for i in range(n)]
    return "".join(json.dumps({"query": q, "model": model, "score": s, "cost": 0.002}) + "\n" for q, s in asked)


@pytest.mark.parametrize("policy", ["orchestra_llm", "tryage", "forc", "kernel_router"])
def test_a_model_is_added_to_any_policy_that_predicts_scores(policy, path, tmp_path):
    out, more, new = tmp_path / "route", tmp_path / "more", tmp_path / "new.jsonl"
    new.write_text(_labels("new"))
    asked = {"policy": policy, "budget": 0.006}
    Route(asked, ReplyTable.from_jsonl(path), {"small": FakeModel(), "large": FakeModel()}).save(out)
    before = run("explain", "add 3 and 9 now", "--router", str(out)).output.splitlines()
    done = unwrapped(run("add", "new", "--table", str(new), "--router", str(out), "--out", str(more)).output)
    assert "it routes to small, large, new." in done
    assert "a query to cost $0.0" in done
    after = run("explain", "add 3 and 9 now", "--router", str(more)).output
    assert [line.split()[:4] for line in after.splitlines()[1:3]] == [line.split()[:4] for line in before[1:3]]
    assert "new answers: " in after
    assert "new answers: " not in run("explain", "who wrote the old book 3", "--router", str(more)).output
    with pytest.raises(InputError, match="already routed to"):
        run("add", "new", "--table", str(new), "--router", str(more))
    new.write_text(_labels("newer", 4))
    with pytest.raises(InputError, match="has 4 scored queries: give at least 5"):
        run("add", "newer", "--table", str(new), "--router", str(more))


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("route_llm", "chooses between two models"),
        ("zooter", "predicts which model is better"),
        ("calibrated_cascade", "sets its thresholds on what all its models answered"),
        ("llm_blender", "ranks the answers of all its models"),
    ],
)
def test_policies_that_few_labels_cannot_teach_say_why(policy, said, path, tmp_path):
    out, new = tmp_path / "route", tmp_path / "new.jsonl"
    new.write_text(_labels("new"))
    assert run("fit", "-t", path, "-b", "20usd/1k", "-p", policy, "--out", str(out)).exit_code == 0
    with pytest.raises(InputError, match=f"{said}.*, so that a model cannot be added"):
        run("add", "new", "--table", str(new), "--router", str(out))


def test_a_model_that_would_spend_more_than_the_budget_is_told_of(path, tmp_path):
    out, new = tmp_path / "route", tmp_path / "new.jsonl"
    new.write_text(_labels("new").replace("0.002", "0.0099"))
    assert run("fit", "-t", path, "-b", "1.1usd/1k", "-p", "orchestra_llm", "--out", str(out)).exit_code == 0
    told = " ".join(run("add", "new", "--table", str(new), "--router", str(out)).output.split())
    assert "above the budget of $0.0011: fit anew" in told


def test_a_saved_route_is_explained_with_answers_recorded_given_or_asked(path, tmp_path, monkeypatch):
    out = str(tmp_path / "route")
    assert run("fit", "-t", path, "-b", "6usd/1k", "-p", "calibrated_cascade", "--out", out).exit_code == 0
    asked = ("explain", "add 4 and 8 now", "--router", out)
    told = " ".join(run(*asked).output.split())
    assert "Returned is the answer of small where its score (AnswerQuality) is at least" in told
    assert "depends on what small answers" in told
    assert "large answers: " in run(*asked, "--reply", "small== 12 perhaps, however").output
    monkeypatch.setattr("pilotfish.models.gguf.GGUFModel", lambda _source: FakeModel("= 12 sure"))
    assert "small answers: its answer scores" in run(*asked, "--model", "small=tiny").output
    recorded = json.loads((tmp_path / "route/table.jsonl").read_text().partition("\n")[0])["query"]
    assert "depends on" not in run("explain", recorded, "--router", out).output
    with pytest.raises(InputError, match="--reply names 'smal'"):
        run(*asked, "--reply", "smal=x")


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


def _kept(row, **change):
    return {name: value for name, value in {**row, **change}.items() if value is not None}


# What is wrong with a table, as a change to each row (by number), and what is said of it.
REFUSED = {
    "equal": (lambda row, i: _kept(row, score=1.0), "Every score in the table is 1: there is nothing to choose by"),
    "wrong": (lambda row, i: _kept(row, score=0.0), "Every score in the table is 0: there is nothing to choose by"),
    "one": (lambda row, i: row if row["model"] == "small" else None, "one model only, 'small'"),
    "one scored": (
        lambda row, i: _kept(row, score=row["score"] if row["model"] == "small" else None),
        "No query has a score and a cost for every model",
    ),
    "few": (lambda row, i: row if i < 6 else None, "has 3 different scored queries: give at least 4"),
    "no cost": (lambda row, i: _kept(row, cost=float("nan") if i == 3 else 0.1), "1 scored answers have no cost"),
    "infinite": (lambda row, i: _kept(row, cost=float("inf") if i == 3 else 0.1), "costs of query 1 .* is infinite"),
    "negative": (lambda row, i: _kept(row, cost=-1 if i == 3 else 0.1), "costs of query 1 .* is -1"),
    "twice": (lambda row, i: _kept(row, query="same" if i in (0, 2, 4) else row["query"]), "2 answers occur more than"),
    "empty": (lambda row, i: None, "is empty: give JSON lines"),
    "dear": (lambda row, i: _kept(row, cost=1.0), "budget is 0.006 but the cheapest model costs 1 per query"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tables_that_cannot_be_routed_are_refused_alike(name, tmp_path):
    change, said = REFUSED[name]
    rows = [change(row, i) for i, row in enumerate(make_table(40).rows())]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row is not None))
    for words in (("fit", "--out", str(tmp_path / "r.npz")), ("compare", "-p", "forc")):
        with pytest.raises(InputError, match=said):
            run(*words, "-t", str(path), "-b", "6usd/1k")
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.jsonl"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fit", "-p", "forc", "--out", "t.jsonl"), "--out is t.jsonl, where the table itself would be written over"),
        (("fit", "-p", "forc", "-t", "at/table.jsonl", "--out", "at"), "--out is at, where the table itself would"),
        (
            ("fit", "-p", "forc", "--model", "x=y"),
            "--model names 'x', which is no model here: give one of",
        ),
        (("compare", "-p", "forc", "--level", "2"), "level is 2, but no two scores are further apart than 1"),
        (("explain", "x", "--router", "t.jsonl"), "t.jsonl is no saved router .it is no npz archive.: give a file"),
        (("compare", "-t", "utf16.jsonl"), "utf16.jsonl cannot be read .*UTF-8"),
    ],
)
def test_what_is_asked_wrongly_is_refused(words, said, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = Path(path).read_bytes()
    Path("t.jsonl").write_bytes(text)
    Path("at").mkdir()
    Path("at/table.jsonl").write_bytes(text)
    Path("utf16.jsonl").write_bytes(text.decode().encode("utf-16"))
    table = () if {"-t", "--router"} & set(words) else ("-t", "t.jsonl")
    budget = () if words[0] == "explain" else ("-b", "6usd/1k")
    with pytest.raises(InputError, match=said):
        run(*words, *table, *budget)
    assert Path("t.jsonl").read_bytes() == Path("at/table.jsonl").read_bytes() == text


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("[1]", "settings of a route are a list: give an object"),
        ("{", "no readable route.json"),
        ('{"policy": "forc"}', "'budget' is missing"),
        ('{"policy": "forc", "budget": 1, "added": [{"model": "new"}]}', "Row 1 has query None and model 'new'"),
        ('{"policy": "forc", "budget": 1, "added": ["new"]}', "Row 1 is a str: give an object"),
        ('{"policy": "forc", "budget": true}', "Route field 'budget' is True: give dollars per query"),
        ('{"policy": "forc", "budget": 1, "models": "small"}', "Route field 'models' is 'small': give a list of names"),
        ('{"policy": "forc", "budget": 1, "options": [1]}', "Route field 'options' is .1.: give an object"),
        ('{"policy": "forc", "budget": 1, "seed": "one"}', "Route field 'seed' is 'one': give a whole number"),
        ('{"policy": "forc", "budget": 1, "level": "low"}', "Route field 'level' is 'low': give a loss of score"),
        ('{"policy": "forc", "budget": 1, "chosen": "x"}', "Route field 'chosen' is 'x', which is no setting of forc"),
        ('{"policy": "frugal_gpt", "budget": 1, "chosen": [99, [0]]}', "no setting of frugal_gpt: leave it out"),
        ('{"policy": "hybrid_llm", "budget": 1, "chosen": [0.5]}', "no setting of hybrid_llm"),
        ('{"policy": "treacle", "budget": 1, "chosen": 0.5}', "treacle has no plan for the price 0.5"),
    ],
)
def test_a_saved_route_that_was_changed_is_refused(written, said, path, tmp_path):
    (tmp_path / "table.jsonl").write_bytes(Path(path).read_bytes())
    (tmp_path / "route.json").write_text(written)
    with pytest.raises(InputError, match=said):
        run("explain", "x", "--router", str(tmp_path))


@pytest.mark.parametrize("out", ["t.jsonl/route", "other"])
def test_a_place_that_cannot_be_written_is_told_of(out, path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("t.jsonl").write_bytes(b"\xef\xbb\xbf" + Path(path).read_bytes())
    Path("other").write_text("is a file")
    words = ["fit", "-t", "t.jsonl", "-b", "6usd/1k", "-p", "orchestra_llm", "--out", out]
    monkeypatch.setattr("sys.argv", ["pilotfish", "route", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pilotfish: {out} cannot be read or written (")


def test_a_table_without_costs_is_told_of(tmp_path):
    table = make_table(40)
    replace(table, costs=np.zeros_like(table.costs)).to_jsonl(tmp_path / "t.jsonl")
    for words in (("fit", "--out", str(tmp_path / "r.npz")), ("compare", "-p", "forc")):
        said = unwrapped(run(*words, "-t", str(tmp_path / "t.jsonl"), "-b", "6usd/1k").output)
        assert "Every cost in the table is 0: models are told apart by their scores alone." in said


def test_few_queries_are_told_of(tmp_path):
    make_table(40).to_jsonl(tmp_path / "t.jsonl")
    words = ("fit", "-t", str(tmp_path / "t.jsonl"), "-b", "6usd/1k", "--out", str(tmp_path / "r.npz"))
    said = unwrapped(run(*words).output)
    assert "Only 30 queries were learned from, and the setting was chosen on 10" in said


def test_ties_go_to_the_cheaper_and_unscored_queries_are_counted(tmp_path):
    rows = [
        _kept(row, score=None if i < 10 and row["model"] == "large" else float(i // 2 % 2))
        for i, row in enumerate(make_table(120).rows())
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = run("fit", "-t", str(path), "-b", "6usd/1k", "--out", str(tmp_path / "r.npz"))
    assert "Left out 5 queries that some model has no score for." in made.output
    told = run("explain", "add 4 and 8 now", "--router", str(tmp_path / "r.npz"))
    assert "small answers: " in told.output


def test_all_policies_of_a_table_take_what_teaches_some_of_them_nothing(tmp_path):
    alike = [_kept(row, score=float(i // 2 % 2), reply="") for i, row in enumerate(make_table(120).rows())]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in alike))
    said = run("compare", "-t", str(path), "-b", "20usd/1k").output
    assert "calibrated_cascade" in said
    assert not {"llm_blender", "selective_query"} & set(said.split())
    with pytest.raises(InputError, match="llm_blender cannot be fitted on 72 queries: No question has a better"):
        run("compare", "-t", str(path), "-b", "20usd/1k", "-p", "llm_blender")


def test_policies_that_read_replies_say_so_where_none_are_recorded(tmp_path):
    path = tmp_path / "t.jsonl"
    replace(make_table(60, models=("small", "middle", "large")), replies=()).to_jsonl(path)
    for policy in ("smoothie", "selective_query", "frugal_gpt", "llm_blender"):
        with pytest.raises(InputError, match=rf"{policy} cannot be fitted .* recorded repl"):
            run("compare", "-t", str(path), "-b", "20usd/1k", "-p", policy)


def test_an_answer_that_is_missing_leaves_no_policy_out_and_a_reply_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 200)
    path = tmp_path / "t.jsonl"
    rows = list(make_table(60).rows())
    for kept, cascade, told in ((rows[1:], True, False), ([_kept(rows[0], reply=None), *rows[1:]], False, True)):
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        said = run("compare", "-t", str(path), "-b", "20usd/1k", "--html", str(tmp_path / "r.html")).output
        assert ("calibrated_cascade" in said) is cascade
        for text in (said, (tmp_path / "r.html").read_text()):
            assert ("Policies that read replies are left out: 1 scored answers have no reply" in text) is told


def test_labels_that_leak_are_told_of_by_fit_as_by_compare(tmp_path):
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, (900, 2))
    table = ReplyTable.of(
        [f"small{a} large{b} number {i}" for i, (a, b) in enumerate(right)],
        {"small": right[:, 0], "large": right[:, 1]},
        {"small": 0.001, "large": 0.002},
    )
    path = tmp_path / "t.jsonl"
    for leaking, leaks in ((table, 1), (replace(table, queries=tuple(f"number {i}" for i in range(900))), 0)):
        leaking.to_jsonl(path)
        for words in (("fit", "--out", str(tmp_path / "r.npz")), ("compare", "-p", "kernel_router")):
            said = " ".join(run(*words, "-t", str(path), "-b", "2usd/1k").output.split())
            assert said.count("kernel_router is as good as knowing the scores") == leaks


def test_rows_above_the_budget_say_so(path, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 200)
    page = tmp_path / "r.html"
    lines = run("compare", "-t", path, "-b", "6usd/1k", "-p", "tag_router", "--html", str(page)).output.splitlines()
    [single] = [line.split("  ") for line in lines if line.startswith("best single (large)")]
    assert [cell.strip() for cell in single if cell.strip()] == [
        "best single (large)", "-", "above budget", "$0.01", "0.00", "-"
    ]  # fmt: skip
    assert page.read_text().count("above budget") == 2


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


def test_a_task_of_the_log_becomes_a_table_that_policies_are_compared_on(tmp_path):
    log, out = tmp_path / "t.db", tmp_path / "t.jsonl"
    with TrafficLog(log) as opened:
        for i in range(60):
            said = "card" if i % 3 else "fee"
            prompt = f"{'the charge' if said == 'fee' else 'my visa'} of day {i}"
            about = {"task": "desk", "model": "large", "cost": 0.2}
            opened.append(Call.of(prompt, said, **about, prediction="card" if i % 7 else said))
            opened.append(Call.of(f"hello {i}", "hi", task="greeting", model="large", cost=0.2))
    done = run("table", "desk", "--log", str(log), "--out", str(out))
    assert "60 queries" in done.output
    assert "student answered 60" in done.output
    assert "Use " in run("compare", "-t", str(out), "-b", "200usd/1k", "-p", "kernel_router").output
    assert "add the replies of others" in run("table", "greeting", "--log", str(log), "--out", str(out)).output
    with pytest.raises(InputError, match="task is 'none'"):
        run("table", "none", "--log", str(log), "--out", str(out))
