"""The evaluate verb, its files, its page and its commands, from bad input to a whole run."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from pilotfish.cli import app
from pilotfish.comparison import compare_outputs
from pilotfish.comparison_page import comparison_page
from pilotfish.errors import InputError, MissingExtraError, ModelError, PilotfishError
from pilotfish.evaluate import Outputs, evaluate, read_outputs
from pilotfish.evaluation_page import evaluation_page
from pilotfish.forecast import forecast
from pilotfish.methods import cards, find
from pilotfish.methods.metrics import make_metrics
from pilotfish.models.fake import FakeModel
from pilotfish.scorers.bertscore import BertScore
from pilotfish.scorers.entailment import named_entailment
from pilotfish.scorers.reference import Length
from pilotfish.types import Exchange, Reply, Request
from tests.toy_encoder import write_toy_encoder

ROWS = {
    "reference_based": {"bleu", "rouge", "bertscore", "bartscore"},
    "reference_free": {
        "selfcheck", "semantic_entropy", "mean_log_prob", "proxy_lm", "llm_judge", "small_judges", "token_entropy",
    },
    "repair": {"hallucination_detector", "reconfidencing", "self_contradiction_numbers"},
    "competition": {"text_detection"},
}  # fmt: skip


class Given:
    """Scores by a list."""

    def __init__(self, scores):
        self.scores = scores

    def score(self, items):
        return np.array(self.scores[: len(items)], dtype=float)


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def run(*words):
    return CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)


def outputs(n=60, labels=True):
    items = [Exchange(Request.of(f"q{i}"), Reply("word " * (1 + i % 7)), (f"word {i}",)) for i in range(n)]
    return Outputs.of(items, np.arange(n) % 2.0 if labels else None)


def test_every_row_of_the_methods_is_there():
    for group, slugs in ROWS.items():
        assert {card.slug for card in cards(group)} >= slugs
        for slug in slugs:
            assert find(slug).command.startswith(("pilotfish", "python"))
    made = make_metrics(["bleu", "semantic_entropy"], {"entailment": None, "unused": 1})
    assert list(made) == ["bleu", "semantic_entropy"]
    judge = FakeModel("4")
    make_metrics(["llm_judge"], {"judge": judge, "rubric": "Shorter is better."})["llm_judge"].score(outputs(1).items)
    assert judge.calls[0].prompt.startswith("Shorter is better.")
    for names, said in ((["bartscore"], "needs --reader"), (["reconfidencing"], "does not score"), ([], "no metrics")):
        with pytest.raises(InputError, match=said):
            make_metrics(names)


def test_missing_scores_are_counted_and_never_enter_a_mean():
    scores = [0.5, math.nan, math.inf, 1.0] + [0.75] * 56
    done = evaluate(outputs(), {"given": Given(scores)})
    row, length = done.rows
    assert row.n_missing == 2
    assert row.mean.value == pytest.approx(np.mean([0.5, 1.0] + [0.75] * 56))
    assert row.mean.n == 58
    assert length.name == "length"
    assert done.to_rows()[1]["given"] is None
    none = evaluate(outputs(), {"none": Given([math.nan] * 60)})
    assert none.rows[0].mean is None
    assert none.rows[0].n_missing == 60


def test_labels_bring_baselines_calibration_and_matched_length():
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.7).astype(float)
    items = [Exchange(Request.of("q"), Reply("x" * int(5 + 40 * y + rng.integers(0, 60)))) for y in labels]
    good = labels + rng.normal(0, 0.7, 400)
    lengths = [len(e.reply.text) for e in items]
    done = evaluate(Outputs.of(items, labels), {"good": Given(good), "copy of length": Given(lengths)})
    by_name = {row.name: row for row in done.rows}
    assert done.majority == pytest.approx(max(labels.mean(), 1 - labels.mean()))
    assert by_name["good"].auroc.value > 0.8
    assert by_name["copy of length"].auroc.value == by_name["length"].auroc.value > 0.7
    assert by_name["copy of length"].auroc_matched.value < 0.6 < by_name["good"].auroc_matched.low
    assert by_name["good"].error.value < 0.1
    assert 0 <= by_name["good"].error.low <= by_name["good"].error.value <= by_name["good"].error.high < 0.15
    page = evaluation_page(done, "A <title>")
    for said in ("A &lt;title&gt;", "Reliability", "Worst by good", "length (baseline)", "majority baseline"):
        assert said in page
    assert "http" not in page
    assert "<script" not in page


def test_unsupported_sentences_are_told_with_their_places():
    context = ("Lima lies in Peru. It was founded in 1535.",)
    texts = ["Lima lies in Peru. It was <sold> in 1999.", "Lima lies in Peru. " * 40 + "It was sold in 1999. " * 20, ""]
    items = [Exchange(Request.of("Lima?"), Reply(text), context=context) for text in texts]
    done = evaluate(Outputs.of(items), make_metrics(["hallucination_detector", "mean_log_prob"]))
    assert list(done.sentences) == ["hallucination_detector"]
    first, second, none = (row["hallucination_detector_sentences"] for row in done.to_rows())
    worst = min(first, key=lambda s: s["support"])
    assert texts[0][worst["start"] : worst["end"]] == "It was <sold> in 1999."
    assert (len(second), none) == (60, [])
    page = evaluation_page(done, "x")
    assert "Lima lies in Peru. <mark>It was &lt;sold&gt; in 1999.</mark>" in page
    assert "... <mark>It was sold in 1999.</mark> It was" in page
    assert page.count("is marked") == 1


def test_groups_say_what_calibrating_by_them_gains(tmp_path):
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, 800)
    scores = rng.random(800)
    labels = (rng.random(800) < np.where(kinds == 1, 0.9, 0.2)).astype(float)
    rows = [
        {"id": i, "output": "x" * int(1 + 9 * s), "label": int(y), "group": f"topic {k}", "reference": "x"}
        for i, (s, y, k) in enumerate(zip(scores, labels, kinds, strict=True))
    ]
    file = write(tmp_path / "a.jsonl", rows)
    found = evaluate(read_outputs(file), {"given": Given(scores)})
    row = found.rows[0]
    before, after = row.grouping
    assert before > 0.08
    assert after < 0.02
    assert f"{before:.4f}<br>\u2192 {after:.4f}" in evaluation_page(
        evaluate(read_outputs(file), {"given": Given(scores)}), "x"
    )
    done = run("evaluate", file, "--metrics", "rouge")
    assert "calibrated by group: rouge" in " ".join(done.stdout.split())
    with pytest.raises(InputError, match="'group' on 799 of 800 lines"):
        read_outputs(write(tmp_path / "b.jsonl", [*rows[:-1], {"output": "x"}]))


def test_one_class_identical_outputs_and_no_labels_still_make_a_page():
    items = [Exchange(Request.of("q"), Reply("same"))] * 5
    for known in (np.ones(5), None):
        done = evaluate(Outputs.of(items, known), {"given": Given([0.5] * 5)})
        assert done.rows[0].auroc is None
        assert done.rows[0].probabilities is None
        assert "all outputs score" in evaluation_page(done, "x")
    with pytest.raises(InputError, match="no outputs to score"):
        evaluate(Outputs.of([]), {"given": Given([])})


def test_long_words_do_not_push_what_stands_beside_them_off_the_page():
    long = "https://example.org/" + "&" * 100
    item = Exchange(Request.of("q"), Reply(f"See {long} there. It is so."), ("right",), context=("No.",))
    scorers = make_metrics(["chrf", "hallucination_detector"])
    page = evaluation_page(evaluate(Outputs.of([item]), scorers), "x")
    assert page.count("See https://example.org/&amp;&amp;") == 2
    assert max(len(word.replace("&amp;", "&")) for word in re.findall(r"[^\s<>]+", page.partition("</style>")[2])) <= 40


def test_scores_that_differ_by_rounding_are_shown_as_one():
    done = evaluate(outputs(4), {"given": Given([0.3, 0.1 + 0.2, 0.3, 0.3])})
    made = evaluation_page(done, "Rounded")
    assert "all outputs score" in made
    assert "human (Spearman)" not in made  # no output has a human score


def test_a_scorer_that_fails_is_told_and_all_failing_is_an_error():
    class Fails:
        def score(self, items):
            raise ModelError("No model here.")

    done = evaluate(outputs(4), {"fails": Fails(), "length again": Length()})
    assert done.failures == {"fails": "No model here."}
    assert "No model here." in evaluation_page(done, "x")
    with pytest.raises(ModelError):
        evaluate(outputs(4), {"fails": Fails()})
    with pytest.raises(InputError, match="gave shape"):
        evaluate(outputs(4), {"short": Given([1.0])})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x"}, "line 1: field 'output' is None"),
        ({"output": "x", "label": 2}, "label is 2"),
        ({"output": "x", "answer": "y"}, "field 'answer' is unknown"),
        ({"output": "x", "references": [1]}, "field 'references' is a int"),
        ({"output": "x", "log_probs": [0.5]}, "above 0 or NaN"),
        ({"output": "x", "log_probs": [{"token": "a"}]}, "cannot be read"),
        ({"output": "x", "human": "good"}, "field 'human' is 'good'"),
        ({"output": "x", "prompt": 3}, "field 'prompt' is a int"),
        ({"output": "x", "messages": "Hi"}, "field 'messages' is a str: give a list of objects"),
        ({"output": "x", "messages": [3]}, "field 'messages' is a list: give a list of objects"),
        ([1], "no JSON object"),
    ],
)
def test_a_wrong_line_is_one_sentence(tmp_path, row, said):
    with pytest.raises(InputError, match=said):
        read_outputs(write(tmp_path / "o.jsonl", [row]))


def test_files_that_cannot_be_used(tmp_path):
    deep = b"[" * 100_000
    for text, said in ((b"", "no outputs"), (b"{", "line 1"), (deep, "line 1"), (b"\xff\xfe", "cannot be read")):
        (tmp_path / "o.jsonl").write_bytes(text)
        with pytest.raises(InputError, match=said):
            read_outputs(tmp_path / "o.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_outputs(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="such as '1'"):
        read_outputs(write(tmp_path / "o.jsonl", [{"id": 1, "output": "a"}, {"id": 1, "output": "b"}]))


def test_everything_of_a_line_is_read(tmp_path):
    row = {
        "id": "a", "messages": [{"role": "user", "content": "Hi"}], "output": "Hello", "reference": "Hello!",
        "samples": ["Hey", {"output": "Hi", "log_probs": [-2]}], "context": "A document.", "log_probs": [-0.5, -1],
        "label": True, "human": 4,
    }  # fmt: skip
    [item] = (found := read_outputs(write(tmp_path / "o.jsonl", [row]))).items
    assert (item.request.prompt, item.references, item.context) == ("Hi", ("Hello!",), ("A document.",))
    assert [[t.log_prob for t in r.log_probs] for r in (item.reply, *item.samples)] == [[-0.5, -1.0], [], [-2.0]]
    assert (found.labels[0], found.human[0], found.ids) == (1.0, 4.0, ["a"])


def test_a_line_is_read_as_json_has_it(tmp_path):
    separated = "one\u2028two\x85three"
    rows = [{"id": None, "prompt": None, "messages": None, "output": separated}, {"id": None, "output": "cut \ud83d"}]
    text = "\ufeff" + json.dumps(rows[0], ensure_ascii=False) + "\r\n" + json.dumps(rows[1]) + "\n"
    (tmp_path / "o.jsonl").write_bytes(text.encode())
    found = read_outputs(tmp_path / "o.jsonl")
    assert [item.reply.text for item in found.items] == [separated, "cut \ufffd"]
    assert found.ids == ["1", "2"]


@pytest.fixture
def files(tmp_path):
    rows = [
        {"id": i, "prompt": "Say the number.", "output": f"The number is {i % 3}.", "reference": f"The number is {i}.",
         "samples": ["The number is 0.", f"It is {i % 3}."], "label": int(i < 3)}
        for i in range(30)
    ]  # fmt: skip
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "b.jsonl", [{**r, "output": r["reference"]} for r in rows])
    return tmp_path


def test_the_command_scores_and_writes_everything(files):
    parquet = pytest.importorskip("pyarrow.parquet")
    names = "rouge,chrf,selfcheck,semantic_entropy,mean_log_prob"
    out, report = files / "scores.parquet", files / "deep" / "report.html"
    done = run("evaluate", files / "a.jsonl", "--metrics", names, "-o", out, "--report", report)
    assert done.exit_code == 0
    assert "No output has a score by mean_log_prob" in done.stdout
    assert "Majority baseline: 90.0%" in done.stdout
    table = parquet.read_table(out)
    assert table.num_rows == 30
    assert set(table.column_names) == {"id", *names.split(","), "length", "selfcheck_sentences"}
    [place] = table["selfcheck_sentences"][0].as_py()
    assert (place["start"], place["end"]) == (0, len("The number is 0."))
    assert "Worst by rouge" in report.read_text(encoding="utf-8")
    for suffix in ("csv", "jsonl"):
        target = files / f"scores.{suffix}"
        assert run("evaluate", files / "a.jsonl", "-o", target).exit_code == 0
        assert len(target.read_text().splitlines()) == 30 + (suffix == "csv")
    assert not list(files.glob(".*"))
    with pytest.raises(InputError, match=r"ends in \.parquet"):
        run("evaluate", files / "a.jsonl", "-o", files / "scores.txt")


def test_every_metric_that_needs_no_language_model_runs_from_the_command(files):
    names = ["bleu", "chrf", "rouge", "bertscore", "selfcheck", "semantic_entropy", "mean_log_prob", "token_entropy"]
    names += ["perplexity", "hallucination_detector", "self_contradiction_numbers"]
    encoder = write_toy_encoder(files / "encoder")
    out = files / "scores.jsonl"
    words = ("--metrics", ",".join(names), "--encoder", encoder, "-o", out)
    assert run("evaluate", files / "a.jsonl", *words).exit_code == 0
    assert set(json.loads(out.read_text().splitlines()[0])) == {"id", *names, "length", "selfcheck_sentences"}


def test_a_second_judge_and_a_negative_seed_are_refused(files):
    with pytest.raises(InputError, match="--judge is 'small,other': give one"):
        run("evaluate", files / "a.jsonl", "-m", "llm_judge", "--judge", "small,other")
    for words in (("evaluate", files / "a.jsonl"), ("compare", files / "a.jsonl", files / "b.jsonl", "-m", "rouge")):
        done = run(*words, "--seed", "-1")
        assert done.exit_code == 2
        assert "--seed" in done.output


def test_the_command_compares(files):
    done = run("compare", files / "b.jsonl", files / "a.jsonl", "--metrics", "chrf", "--interval", "90")
    assert done.exit_code == 0
    assert "first is better" in " ".join(done.stdout.split())
    for words, said in ((("--interval", "9"), "--interval is 9"), ((), "nothing to compare by")):
        with pytest.raises(InputError, match=said):
            run("compare", files / "a.jsonl", files / "b.jsonl", *words)


def test_sections_of_files_are_named_in_the_help():
    assert {"[stated]", "[models]"} <= set(run("forecast", "--help").output.split())
    assert "[takeover]" in run("replay", "--help").output


def test_the_page_of_a_comparison(files):
    words = ("--metrics", "chrf,mean_log_prob", "--report", files / "c.html")
    done = run("compare", files / "b.jsonl", files / "a.jsonl", *words)
    assert "No pair has scores of both outputs by mean_log_prob" in " ".join(done.stdout.split())
    page = (files / "c.html").read_text(encoding="utf-8")
    for said in ("length (baseline)", "first is better", "b.jsonl minus a.jsonl", "Widest apart by chrf"):
        assert said in page
    assert "mean_log_prob" not in page  # no output has a score by it
    same = compare_outputs(outputs(5), outputs(5), {"length again": Length()})
    assert "Widest apart" not in comparison_page(same, "one", "two")
    assert "http" not in page


def test_the_command_forecasts(tmp_path):
    sizes = {"small1-1b": 0.4, "small2-2b": 0.5, "mid-7b": 0.6, "big-30b": 0.7, "large-70b": 0.8}
    rows = [
        {"query": f"question {i}?", "task": task, "scores": {m: min(1.0, s + shift) for m, s in sizes.items()}}
        for task, shift in (("easy", 0.1), ("hard", -0.3), ("middle", 0.0))
        for i in range(4)
    ]
    tasks = write(tmp_path / "t.jsonl", rows)
    card = tmp_path / "large.toml"
    card.write_text("parameters = 60e9\n[stated]\neasy = 0.85\n", encoding="utf-8")
    words = ("forecast", "--model-card", card, "--proxies", "small1-1b,small2-2b", "--task", tasks)
    done = run(*words)
    assert done.exit_code == 0
    assert "90 %" in done.stdout
    found = {row.task: row for row in forecast(card, ["small1-1b", "small2-2b"], tasks).rows}
    assert found["easy"].value == 0.85
    assert found["hard"].value < found["middle"].value < found["easy"].value
    assert found["hard"].low <= found["hard"].value <= found["hard"].high
    for text, said in (("", "no 'parameters'"), ("x =", "cannot be read"), ("parameters = -1", "no 'parameters'")):
        card.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=said):
            run(*words)
    for text, said in (
        ("parameters = nan", "no 'parameters'"),
        ("parameters = true", "no 'parameters'"),
        ("parameters = 7e9\nstated = 5", "'stated' of the model card .* is 5"),
        ("parameters = 7e9\n[stated]\neasy = 'high'", "stated.easy of the model card .* is 'high'"),
        ("parameters = 7e9\nmodels = 3", "'models' of the model card .* is 3"),
        ("parameters = 7e9\n[models]\nsmall1-1b = -1", "models.small1-1b of the model card .* is -1"),
    ):
        card.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=said):
            forecast(card, ["small1-1b"], tasks)
    card.write_text("parameters = 7e9", encoding="utf-8")
    with pytest.raises(InputError, match="Proxy 'none' has no score"):
        forecast(card, ["none"], tasks)
    for row, said in (({"task": "x"}, "line 1 is wrong"), ({"query": "", "task": "x", "scores": {"a": 7}}, "outside")):
        with pytest.raises(InputError, match=said):
            forecast(card, ["a"], write(tmp_path / "bad.jsonl", [row]))
    nameless = write(tmp_path / "n.jsonl", [{"query": "q", "task": "x", "scores": {"a": 0.5, "b": 0.5}}])
    with pytest.raises(InputError, match="size of model 'a' is unknown"):
        forecast(card, ["a"], nameless)


def test_a_missing_package_names_its_extra(monkeypatch):
    import sys

    item = [Exchange(Request.of("q"), Reply("a"), ("a",))]
    for module, name in (("sacrebleu", "bleu"), ("rouge_score.rouge_scorer", "rouge")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=r"pilotfish\[metrics\]"):
            make_metrics([name])[name].score(item)
    assert issubclass(MissingExtraError, PilotfishError)


def test_confidence_is_learned_from_labels_and_applied_to_other_outputs(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"output": "x", "log_probs": [float(v)], "label": int(rng.random() < np.exp(v))} for v in -3 * rng.random(300)
    ]
    labelled, sure = write(tmp_path / "labelled.jsonl", rows), tmp_path / "sure.npz"
    metrics = ("--metrics", "mean_log_prob,perplexity,bleu")
    said = " ".join(run("evaluate", labelled, *metrics, "--learn-confidence", sure).output.split())
    assert "sure an answer is by mean_log_prob, perplexity. Not learned: bleu." in said
    new = write(tmp_path / "new.jsonl", [{"output": "x", "log_probs": [v]} for v in (-0.1, -2.5)] + [{"output": "x"}])
    run("evaluate", new, "-m", "mean_log_prob", "--confidence", sure, "-o", tmp_path / "scores.jsonl")
    high, low, none = (json.loads(x)["mean_log_prob"] for x in (tmp_path / "scores.jsonl").read_text().splitlines())
    assert high == pytest.approx(0.9, abs=0.1)
    assert low == pytest.approx(0.08, abs=0.1)
    assert none is None
    with pytest.raises(InputError, match="no calibration of 'bleu': it holds mean_log_prob, perplexity"):
        run("evaluate", new, "-m", "bleu", "--confidence", sure)
    with pytest.raises(InputError, match="No metric has 40 scores"):
        run("evaluate", new, "--learn-confidence", tmp_path / "none.npz", "-o", tmp_path / "kept.csv")
    assert (tmp_path / "kept.csv").is_file()
    np.savez(tmp_path / "other.npz", **{"PlattCalibration other_ x": np.zeros(2)})
    with pytest.raises(InputError, match="no saved calibration"):
        run("evaluate", new, "-m", "mean_log_prob", "--confidence", tmp_path / "other.npz")


def test_bertscore_takes_another_layer(tmp_path):
    rows = write(tmp_path / "rows.jsonl", [{"output": "the cat sleeps", "reference": "a dog rests on the mat"}])
    encoder, found = write_toy_encoder(tmp_path / "encoder"), []
    for layer in (1, 2):
        run("evaluate", rows, "-m", "bertscore", "--encoder", encoder, "--layer", layer, "-o", tmp_path / "s.jsonl")
        found.append(json.loads((tmp_path / "s.jsonl").read_text())["bertscore"])
    own = BertScore(encoder, layer=1).score(read_outputs(rows).items)
    assert found[0] == pytest.approx(own[0])
    assert found[0] != pytest.approx(found[1], abs=1e-4)


def test_options_of_single_metrics_reach_them(tmp_path):
    line = {"output": "the cat sat", "reference": "the cat sat on the mat"}
    place, out = tmp_path / "outputs.jsonl", tmp_path / "scores.jsonl"
    place.write_text(json.dumps(line) + "\n")
    for kind, score in (("rouge1", 2 * 3 / (3 + 6)), ("rouge2", 2 * 2 / (2 + 5))):
        assert run("evaluate", place, "-m", "rouge", "--option", f"rouge.kind={kind}", "-o", out).exit_code == 0
        assert json.loads(out.read_text())["rouge"] == pytest.approx(score)
    for option, why in (
        ("kind=rouge1", "--option is 'kind': give METRIC.NAME=VALUE"),
        ("chrf.kind=1", "options of 'chrf', which is not measured"),
        ("rouge.size=1", "Metric 'rouge' has no option 'size': it takes kind"),
        ("rouge.kind=rouge9", "Rouge kind is 'rouge9'"),
    ):
        with pytest.raises(InputError, match=why):
            run("evaluate", place, "-m", "rouge", "--option", option)


def test_an_entailment_model_that_is_nowhere_is_told(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr("pilotfish.models.transformers._at_hub", lambda _: False)
    with pytest.raises(ModelError, match=r"could not load nowhere .*: give a folder, or a name of the hub"):
        named_entailment("nowhere").probabilities([("a", "b")])
