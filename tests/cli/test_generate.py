"""The generate command, end to end on a tiny model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from pilotfish.cli.generate import generate
from pilotfish.decoding.controller import FixedLength
from pilotfish.decoding.decoder import Decoder
from pilotfish.errors import InputError
from pilotfish.methods.build_decoder import wrong_source
from pilotfish.traffic.calls import Call
from pilotfish.traffic.log import TrafficLog
from pilotfish.training.combination import LearnedCombination
from tests.decoding.small import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_model(tmp_path_factory.mktemp("asked") / "tiny"))


def run(*words):
    app = typer.Typer()
    app.command()(generate)
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def test_drafts_change_the_passes_and_not_the_text(folder, tmp_path, monkeypatch):
    # Whether drafting pays is measured: on a tiny model it is a toss-up, so it is decided here.
    monkeypatch.setattr("pilotfish.decoding.decoder.SpeedController", lambda _: FixedLength(4))
    plain = run("say a.", "-t", folder, "-n", "20", "--stats")
    fast = run("say a.", "-t", folder, "-n", "20", "-d", "lookup", "-d", "exit:2", "--stats")
    assert plain.exit_code == fast.exit_code == 0
    assert plain.stdout == fast.stdout
    tree = run("say a.", "-t", folder, "-n", "20", "-d", "branches:lookup,exit:2", "--stats")
    assert tree.stdout == plain.stdout
    assert "Branches" in tree.stderr
    corpus, log = tmp_path / "text.txt", tmp_path / "log.db"
    corpus.write_text(plain.stdout * 2)
    with TrafficLog(log) as traffic:
        traffic.append(Call.of("say a.", plain.stdout.strip()))
    for name in (f"corpus:{corpus}", f"log:{log}"):
        found = run("say a.", "-t", folder, "-n", "20", "-d", name, "--stats")
        assert found.stdout == plain.stdout
        assert "Retrieval" in found.stderr, name
    with pytest.raises(InputError, match="there is no file"):
        run("say a.", "-t", folder, "-d", "log:none.db")
    assert "20 tokens in" in plain.stderr
    assert "20 passes" in plain.stderr


def test_the_reply_is_shown_as_it_is_written(folder, monkeypatch):
    shown = []
    monkeypatch.setattr("builtins.print", lambda *words, **how: shown.append((words, how.get("flush"))))
    run("say a.", "-t", folder, "-n", "12")
    pieces = [words[0] for words, flushed in shown if flushed]
    assert len(pieces) > 6
    monkeypatch.undo()
    assert run("say a.", "-t", folder, "-n", "12").stdout == "".join(pieces) + "\n"


def test_stops_top_p_and_a_grammar(folder, tmp_path):
    whole = run("say a.", "-t", folder, "-n", "20").stdout.strip()
    stop = whole[6:8]
    assert run("say a.", "-t", folder, "-n", "20", "--stop", stop).stdout.rstrip("\n") == whole[: whole.index(stop)]
    sampled = ["say a.", "-t", folder, "-n", "20", "--temperature", "1", "--seed", "1", "--top-p"]
    drawn = [run(*sampled, share) for share in ("1", "1e-6")]
    assert drawn[0].stdout != drawn[1].stdout
    assert drawn[1].stdout.strip() == whole
    file = tmp_path / "digits.gbnf"
    file.write_text("root ::= [a-c] [a-c] [x-z]")
    text = run("say a.", "-t", folder, "--grammar", str(file)).stdout.strip()
    assert set(text[:2]) <= set("abc")
    assert text[2:] in ("x", "y", "z")


def test_a_wrong_source_is_held_against_the_right_one(folder, monkeypatch):
    asked = []
    whole = Decoder.stream
    monkeypatch.setattr(
        Decoder, "stream", lambda self, request, stats: asked.append(request) or whole(self, request, stats)
    )
    run("say a.", "-t", folder, "-n", "4", "-f", "source_contrastive", "-s", "right", "--wrong-source", "wrong")
    assert (asked[0].system, wrong_source(asked[0]).system) == ("right", "wrong")
    with pytest.raises(InputError, match="give --fusion source_contrastive"):
        run("say a.", "-t", folder, "--wrong-source", "x")


def test_switches_of_a_fusion_are_true_or_false(folder, monkeypatch):
    used = []
    whole = Decoder.stream
    monkeypatch.setattr(Decoder, "stream", lambda self, *asked: used.append(self.target.fusion) or whole(self, *asked))
    for switches in ("adaptive=false,copied=true", "adaptive=true"):
        run("say a.", "-t", folder, "-n", "2", "-s", "told", "-f", f"context_aware:alpha=0.5,{switches}")
    assert [(fusion.alpha, fusion.adaptive, fusion.copied) for fusion in used] == [
        (0.5, False, True),
        (0.5, True, False),
    ]


def test_fusion_choices_and_schema(folder, tmp_path):
    fused = run("say a.", "-t", folder, "-n", "8", "-f", "contrastive:alpha=0.1,beta=2", "-m", f"amateur={folder}")
    assert fused.exit_code == 0
    assert run("say", "-t", folder, "--choice", "yes", "--choice", "no").stdout.strip() in ("yes", "no")
    combination = tmp_path / "combination.npz"
    rng = np.random.default_rng(0)
    LearnedCombination().fit(rng.normal(size=(40, 4)), -rng.random(40), -rng.random(40)).save(combination)
    learned = run("say a.", "-t", folder, "-n", "8", "-f", f"comblm:file={combination}", "-m", f"other={folder}")
    assert learned.stdout == run("say a.", "-t", folder, "-n", "8").stdout  # two of the same model are that model
    drawn = f"tuned={folder},untuned={folder},n_draws=1"
    searched = run("say a.", "-t", folder, "-n", "8", "--seed", "0", "--search", drawn)
    assert len(searched.stdout.strip()) > 0
    pair = f"tuned={folder},untuned={folder}"
    sought = [run("a.", "-t", folder, "-n", "8", "--search", pair, "--seed", seed) for seed in "12"]
    assert sought[0].stdout != sought[1].stdout  # chunks are drawn, also where no temperature is given
    with pytest.raises(InputError, match="cannot be read"):
        run("say", "-t", folder, "--schema", str(tmp_path / "none.json"))
    (tmp_path / "no.json").write_text("{")
    for file, told in (
        ("none.json", r"^The file .* cannot be read"),
        ("no.json", r"^The schema .*give a file of JSON"),
    ):
        with pytest.raises(InputError, match=told):
            run("say", "-t", folder, "--schema", str(tmp_path / file))
    with pytest.raises(InputError, match=r"has '\\udcff', which is no character"):
        run("say \udcff", "-t", folder)
    (tmp_path / "s.json").write_text(json.dumps({"enum": ["a.b"]}))
    assert run("say", "-t", folder, "--choice", "ab", "--stats").stdout.strip() == "ab"
    for wrong, told in (
        (["-m", "a=b"], "give --fusion"),
        (["-f", "contrastive:alpha"], "NAME=VALUE"),
        (["-f", "contrastive:alpha=x"], "give a number"),
        (["-f", "contrastive:alpha=true"], "is True: give a number"),
        (["-f", "context_aware:copied=1"], "is 1.0: give true or false"),
        (["--dtype", "int8"], "dtype"),
        (["-f", "comblm", "-m", f"other={folder}"], "no option 'file'"),
        (["-f", "comblm:file=none.npz", "-m", f"other={folder}"], "none.npz"),
        (["--search", "tuned=a"], "untuned=NAME"),
        (["--search", "tuned=a,untuned=b,n_beams=0"], "at least 1"),
        (["--search", "tuned=a,untuned=b,n=1"], "no option 'n'"),
        (["--search", "tuned=a,untuned=b", "-d", "lookup"], "without draft"),
    ):
        with pytest.raises(InputError, match=told):
            run("say", "-t", folder, *wrong)
