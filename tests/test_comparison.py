"""Comparing two systems: what is paired with what, and what is said of the rest."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from pilotfish.cli import app
from pilotfish.comparison import compare_outputs
from pilotfish.comparison_page import comparison_page
from pilotfish.errors import InputError
from pilotfish.evaluate import Outputs, read_outputs
from pilotfish.models.fake import FakeModel
from pilotfish.scorers.judges import PairJudge
from pilotfish.types import Exchange, Reply, Request


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" if row else "\n" for row in rows))
    return path


def iter_scores(*scores):
    """Scores the first call with the first list, the second with the second."""
    left = iter(scores)
    return type("Both", (), {"score": lambda self, items: np.array(next(left), dtype=float)})()


class Given:
    """Scores by a list."""

    def __init__(self, scores):
        self.scores = scores

    def score(self, items):
        return np.array(self.scores[: len(items)], dtype=float)


def outputs(n=60, labels=True):
    items = [Exchange(Request.of(f"q{i}"), Reply("word " * (1 + i % 7)), (f"word {i}",)) for i in range(n)]
    return Outputs.of(items, np.arange(n) % 2.0 if labels else None)


def test_blank_lines_do_not_shift_two_files_against_each_other(tmp_path):
    rows = [{"prompt": f"q{i}", "output": f"answer {i}"} for i in range(4)]
    first = read_outputs(write(tmp_path / "a.jsonl", rows))
    second = read_outputs(write(tmp_path / "b.jsonl", [rows[0], None, *rows[1:]]))
    done = compare_outputs(first, second, {})
    assert [(x.reply.text, y.reply.text) for _, x, y in done.pairs] == [(f"answer {i}",) * 2 for i in range(4)]
    assert done.warnings() == []


def test_outputs_without_a_partner_and_pairs_of_other_prompts_are_told(tmp_path):
    rows = [{"prompt": f"q{i}", "output": f"answer {i}", "reference": f"answer {i}"} for i in range(6)]
    a, b = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows[1:])
    words = ["compare", a, b, "--metrics", "chrf", "--report", tmp_path / "page.html"]
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    page = (tmp_path / "page.html").read_text()
    for text in (" ".join(result.output.split()), page):
        assert "1 outputs of the first and 0 of the second have no partner" in text
        assert "5 of 5 pairs answer different prompts" in text


def test_a_panel_without_a_pair_to_judge_says_so(tmp_path, monkeypatch):
    rows = [{"prompt": "q", "output": "a" * (1 + i), "human": i % 2} for i in range(12)]
    other = [{**row, "human": 1 - row["human"]} for row in rows]
    a, b = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", other)
    monkeypatch.setattr("pilotfish.scorers.judges.named_judge", lambda name: FakeModel("A"))
    result = CliRunner().invoke(app, ["compare", str(a), str(b), "--judge", "one,two"], catch_exceptions=False)
    assert "No pair is left for the panel" in result.output


def test_prompts_that_are_not_known_are_not_compared():
    items = [Exchange(Request.of("q"), Reply("a"))] * 3
    unknown = [Exchange(Request.of(""), Reply("b"))] * 3
    done = compare_outputs(Outputs.of(items), Outputs.of(unknown), {}, [PairJudge(FakeModel("A"))])
    assert (done.n_other_prompts, done.n_alone) == (0, (0, 0))
    assert np.isfinite(done.differences["judge"]).all()


def test_comparison_pairs_by_id_and_counts_what_it_leaves_out():
    first, second = outputs(40), outputs(50)
    better = np.where(np.arange(50) == 3, np.nan, 1.0)
    both = iter_scores(better[:40], np.zeros(40))
    judge = PairJudge(FakeModel("A"))
    done = compare_outputs(first, second, {"given": both}, [judge])
    assert done.n == 40
    assert done.n_left_out["given"] == 1
    assert done.verdict("given") == "first is better"
    assert done.verdict("length") == "no difference shown"
    assert done.tests["judge"].difference.value == 0.0
    few = compare_outputs(outputs(2), outputs(2), {"given": iter_scores([1.0, 0.9], [0.5, 0.4])})
    assert few.tests["given"].difference.low > 0
    assert few.verdict("given") == "no difference shown"
    silent = PairJudge(FakeModel("I refuse."))
    with pytest.raises(InputError, match="No pair has a score"):
        compare_outputs(first, second, {}, [silent])
    other = Outputs(second.items, [f"x{i}" for i in range(50)], second.labels, second.human)
    with pytest.raises(InputError, match="share no 'id'"):
        compare_outputs(first, other, {})


def test_agreement_with_people_stands_beside_that_of_length():
    lengths = np.arange(60) % 7 - 3
    first = Outputs.of([Exchange(Request.of("q"), Reply("x" * int(5 + d))) for d in lengths])
    second = Outputs.of([Exchange(Request.of("q"), Reply("x" * 5)) for _ in lengths])
    people = np.where(np.arange(60) < 40, np.sign(lengths) * -1.0, np.nan)  # people like the shorter
    judged = replace(first, human=people), replace(second, human=np.zeros(60))
    done = compare_outputs(*judged, {"shorter": iter_scores(-lengths, np.zeros(60)), "same": Given([1.0] * 60)})
    n = int((people[:40] != 0).sum())
    assert (done.agreement["shorter"].value, done.agreement["shorter"].n) == (1.0, n)
    assert (done.agreement["length"].value, done.agreement["same"].value) == (0.0, 0.5)
    assert "100% [90%, 100%]" in comparison_page(done, "a", "b")
    assert compare_outputs(first, second, {"same": Given([1.0] * 60)}).agreement == {}


def test_several_judges_and_gold_labels_make_a_panel():
    rng = np.random.default_rng(0)
    truth = rng.random(120) < 0.8
    good = [Exchange(Request.of(f"q{i}"), Reply("right" if t else "wrong")) for i, t in enumerate(truth)]
    bad = [Exchange(Request.of(f"q{i}"), Reply("wrong" if t else "right")) for i, t in enumerate(truth)]

    class Knows:
        def __init__(self, share):
            self.share = share

        def compare(self, first, second):
            right = np.array([e.reply.text == "right" for e in first], dtype=float)
            return np.where(np.random.default_rng(1).random(len(first)) < self.share, right, 1 - right)

    judges = [Knows(0.95), Knows(0.1), Knows(0.5)]
    gold = np.where(np.arange(120) < 40, truth, np.nan)
    first = replace(Outputs.of(good), human=gold)
    second = replace(Outputs.of(bad), human=1 - gold)
    done = compare_outputs(first, second, {}, judges)
    assert done.n_left_out["panel"] == 40
    assert done.tests["panel"].difference.low > 0 > done.tests["judge"].difference.low
    assert "panel" not in compare_outputs(first, second, {}, judges[:1]).tests
    assert "panel" not in compare_outputs(Outputs.of(good), Outputs.of(bad), {}, judges).tests
