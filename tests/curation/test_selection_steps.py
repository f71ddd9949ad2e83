"""Steps of a recipe that choose among all documents: the same for files, iterator and any number of workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pilotfish.curation import D4, ImportanceResampling, Rules, SemanticDedup, Settings, curate, curate_files
from pilotfish.curation import run as run_module
from pilotfish.curation.documents import Document
from pilotfish.curation.importance import GumbelTopK, ImportanceWeight
from pilotfish.curation.picks import PICKS, Picked, pick
from pilotfish.curation.recipe import Recipe
from pilotfish.curation.report import to_html
from pilotfish.curation.scan import Batch
from pilotfish.curation.semantic import prototypicality
from pilotfish.errors import ConfigError, InputError
from pilotfish.features import HashedNgrams
from tests.curation.texts import edited, kept_ids, prose, write_lines
from tests.models.fixtures import pulled

N = 60
TARGET = [f"the shark swims beside the fish in clear water number {i}" for i in range(20)]


def texts() -> list[str]:
    """Prose, near-copies of it at the end, and texts like the target here and there."""
    made = [prose(i) for i in range(N)]
    made[5::10] = [f"{'. '.join(TARGET)}. This is text {i}." for i in range(len(made[5::10]))]
    return [*made, *(edited(made[i], 2) for i in range(6))]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = texts()
    return [write_lines(tmp_path / f"in{k}.jsonl", made[k * 22 : k * 22 + 22], k * 22) for k in range(3)]


def resampling() -> list:
    return [Rules.gopher_quality(), ImportanceResampling(TARGET, 12), Rules.c4()]


def diverse() -> list:
    return [D4(0.5, 0.9, 4, HashedNgrams(256))]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".state" not in p.parts
    }


@pytest.mark.parametrize("steps", [resampling, diverse])
def test_files_iterator_and_workers_agree(steps, files, tmp_path):
    settings = Settings(write_dropped=True)
    tally = curate_files(files, tmp_path / "one", steps(), settings=settings)
    curate_files(files, tmp_path / "two", steps(), workers=2, settings=settings)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    source = [{"id": f"d{i}", "text": t} for i, t in enumerate(texts())]
    kept = [d.id for d in curate(source, steps())]
    assert kept == kept_ids(tmp_path / "one")
    said = [json.loads(line) for p in (tmp_path / "one" / "dropped").iterdir() for line in p.read_text().splitlines()]
    assert len(said) + len(kept) == tally.n_in == len(source)
    assert {row["id"] for row in said}.isdisjoint(kept)
    assert "not_drawn" in to_html(tally) or "prototype" in to_html(tally)


@pytest.mark.parametrize("steps", [resampling, diverse])
@pytest.mark.parametrize("stage", [1, 2])
def test_a_killed_run_goes_on(steps, stage, files, tmp_path):
    def killed() -> None:
        work = run_module.work

        def stop_at(job):
            if (job.stage, job.number) == (stage, 1):
                os.kill(os.getpid(), signal.SIGKILL)
            return work(job)

        run_module.work = stop_at
        curate_files(files, tmp_path / "out", steps())

    child = multiprocessing.get_context("fork").Process(target=killed)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    curate_files(files, tmp_path / "out", steps())
    curate_files(files, tmp_path / "whole", steps())
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    # Given once more, the finished run is recognised.
    again = curate_files(files, tmp_path / "out", steps())
    assert again.n_out == len(kept_ids(tmp_path / "whole"))


def test_resampling_is_the_draw_by_weights_of_what_comes(files, tmp_path):
    made = [text for text in texts() if len(text.split()) >= 50]
    scores = ImportanceWeight().fit(TARGET, made).score(made)
    expected = set(GumbelTopK(12, 3).decide(scores).indices.tolist())
    dropped: dict[str, float] = {}
    step = ImportanceResampling(TARGET, 12, seed=3)
    kept = [d.text for d in curate(made, [step], on_dropped=lambda d, *why: dropped.setdefault(d.text, why[2]))]
    assert kept == [text for i, text in enumerate(made) if i in expected]
    assert dropped == pytest.approx(
        {text: s for i, (text, s) in enumerate(zip(made, scores, strict=True)) if i not in expected}
    )
    assert sum("shark swims beside the fish" in text for text in kept) == 7
    # Every document stays where there are fewer than asked for, and none of nothing.
    assert len(list(curate(made[:3], [ImportanceResampling(TARGET, 12)]))) == 3
    assert list(curate([], [ImportanceResampling(TARGET, 12)])) == []
    with pytest.raises(InputError, match="at least one of each"):
        ImportanceResampling([], 3)


def test_d4_drops_duplicates_and_then_the_typical():
    class Angles:
        n_dimensions = 2

        def embed(self, texts):
            angles = np.array([float(text) for text in texts])
            return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    middle = ["0.00", "0.20", "-0.21", "0.70", "-0.43"]
    why = Counter()
    kept = curate(
        [*middle, "0.001", "1.2", "-1.2"],
        [D4(3 / 7, 0.99, 1, Angles())],
        on_dropped=lambda d, *rest: why.update([rest[1]]),
    )
    assert [d.text for d in kept] == ["0.70", "1.2", "-1.2"]
    assert why == {"duplicate": 1, "prototype": 4}
    with pytest.raises(InputError, match="part of 1"):
        D4(0.0)


def test_prototypes_are_the_same_in_parts():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(900, 8)) + 4 * np.eye(8)[rng.integers(0, 3, 900)]
    whole = prototypicality([vectors], 3)
    parts = prototypicality(np.array_split(vectors, 4), 3)
    assert parts == pytest.approx(whole)
    # The cosine to the mean of a cluster, when the clusters are known.
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    one = prototypicality([vectors], 1)
    centre = unit.mean(axis=0) / np.linalg.norm(unit.mean(axis=0))
    assert np.corrcoef(one, unit @ centre)[0, 1] > 0.99


def test_a_pick_sees_all_documents(files, tmp_path):
    seen = {}

    def every_seventh(pool, target):
        seen.update(pool=[d.id for d in pool], target=[d.text for d in target])
        return np.arange(0, len(pool), 7)

    step = Picked("sevenths", every_seventh, [Document(text) for text in TARGET])
    curate_files(files, tmp_path / "out", [step], workers=2)
    assert seen["pool"] == [f"d{i}" for i in range(66)]
    assert seen["target"] == TARGET
    assert kept_ids(tmp_path / "out") == seen["pool"][::7]


@pytest.mark.parametrize("method", [m for m in PICKS if m not in ("less", "data_whisperer", "d4")])
def test_picks_are_steps_of_a_recipe(method, files, tmp_path):
    pulled("wordllama")
    write_lines(tmp_path / "like.jsonl", TARGET)
    recipe = Recipe.from_toml(f'[[step]]\nuse = "{method}"\nlike = "like.jsonl"\nn = 9\nseed = 2\n', tmp_path)
    made = curate_files(files, tmp_path / "out", recipe.steps)
    pool = [Document(text, f"d{i}") for i, text in enumerate(texts())]
    expected = pick(method, 9, seed=2)(pool, [Document(text) for text in TARGET])
    assert kept_ids(tmp_path / "out") == [f"d{i}" for i in sorted(expected.tolist())]
    assert made.dropped[method]["not_chosen"][0] == 66 - len(expected)


def test_recipes_of_selections(files, tmp_path):
    pulled("wordllama")
    write_lines(tmp_path / "like.jsonl", TARGET)
    recipe = Recipe.from_toml(
        '[[step]]\nuse = "d4"\nshare = 0.5\nleast = 0.98\nn_clusters = 4\n'
        '[[step]]\nuse = "importance_resampling"\nlike = "like.jsonl"\nn = 5\n',
        tmp_path,
    )
    assert [step.name for step in recipe.steps] == ["d4", "importance_resampling"]
    made = curate_files(files, tmp_path / "out", recipe.steps, recipe=recipe.fingerprint)
    assert made.n_out == 5
    assert set(made.dropped) == {"semantic_dedup", "d4", "importance_resampling"}
    for text, said in (
        ('use = "d4"', "no key 'share'"),
        ('use = "d4"\nshare = 2', "part of 1"),
        ('use = "importance_resampling"\nlike = "like.jsonl"\nn = 0', "at least one of each"),
        ('use = "less"\nlike = "like.jsonl"\nn = 3', "no key 'model'"),
    ):
        with pytest.raises(ConfigError, match=said):
            Recipe.from_toml(f"[[step]]\n{text}\n", tmp_path)


@pytest.mark.parametrize("steps", [resampling, diverse])
def test_tasks_of_a_cluster_give_the_same(steps, files, tmp_path):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        curate_files(files, tmp_path / "cluster", steps(), on="ray://")
    finally:
        ray.shutdown()
    curate_files(files, tmp_path / "here", steps())
    assert content(tmp_path / "cluster") == content(tmp_path / "here")


def test_signs_take_a_byte_each_and_match_those_of_an_older_index(tmp_path):
    step = SemanticDedup(0.9, HashedNgrams(256), index=tmp_path / "index")
    made = ["stocks fell on monday", "the fish swims far", "a garden in winter", "quartz and zebra", "100 of 200"]
    _, signs = step.keys(Batch(made), np.arange(5), [])
    assert signs.nbytes == 5 * 1024
    assert len(list(curate(made, [step]))) == 5
    for path in (tmp_path / "index").rglob("checks.npy"):
        np.save(path, np.load(path).astype(np.uint32))
    assert [d.text for d in curate([*made, "something else"], [step])] == ["something else"]
    write_lines(tmp_path / "a.jsonl", [*made, "and a thing of another kind"])
    tally = curate_files([tmp_path / "a.jsonl"], tmp_path / "out", [step], settings=Settings(memory=600))
    assert tally.n_out == 1
