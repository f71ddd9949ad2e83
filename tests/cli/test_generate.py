"""The generate command, end to end on a tiny model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from pilotfish.cli.generate import generate
from pilotfish.decoding.controller import FixedLength
from pilotfish.errors import InputError
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


def test_fusion_choices_and_schema(folder, tmp_path):
    fused = run("say a.", "-t", folder, "-n", "8", "-f", "contrastive:alpha=0.1,beta=2", "-m", f"amateur={folder}")
    assert fused.exit_code == 0
    assert run("say", "-t", folder, "--choice", "yes", "--choice", "no").stdout.strip() in ("yes", "no")
    combination = tmp_path / "combination.npz"
    rng = np.random.default_rng(0)
    LearnedCombination().fit(rng.normal(size=(40, 4)), -rng.random(40), -rng.random(40)).save(combination)
    learned = run("say a.", "-t", folder, "-n", "8", "-f", f"comblm:file={combination}", "-m", f"other={folder}")
    assert learned.stdout == run("say a.", "-t", folder, "-n", "8").stdout  # two of the same model are that model
    searched = run("say a.", "-t", folder, "-n", "8", "--search", f"tuned={folder},untuned={folder},n_draws=1")
    assert len(searched.stdout.strip()) > 0
    pair = f"tuned={folder},untuned={folder}"
    sought = [run("a.", "-t", folder, "-n", "8", "--search", pair, "--seed", seed) for seed in "12"]
    assert sought[0].stdout != sought[1].stdout  # chunks are drawn, also where no temperature is given
    with pytest.raises(InputError, match="cannot be read"):
        run("say", "-t", folder, "--schema", str(tmp_path / "none.json"))
    (tmp_path / "s.json").write_text(json.dumps({"enum": ["ab"]}))
    for wrong, told in (
        (["-m", "a=b"], "give --fusion"),
        (["-f", "contrastive:alpha"], "NAME=VALUE"),
        (["-f", "contrastive:alpha=x"], "give a number"),
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
