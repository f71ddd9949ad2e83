"""Recipes whose keys are wrong are refused in one sentence before anything is read."""

from __future__ import annotations

import numpy as np
import pytest

from pilotfish.curation import Language, LanguageIdentifier, Settings, curate, curate_files, privacy
from pilotfish.curation.classifiers import ParetoSample
from pilotfish.curation.importance import GumbelTopK
from pilotfish.curation.perplexity import thirds
from pilotfish.curation.recipe import Recipe
from pilotfish.errors import ConfigError, InputError
from pilotfish.models import catalog
from tests.curation.texts import prose, write_lines

DEDUP = '[[step]]\nuse = "minhash_dedup"\n'
RULES = '[[step]]\nuse = "rules"\nsets = ["gopher"]\n'
LIKE = 'like = "like.jsonl"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('step = ["a"]', "Step 1 is 'a'"),
        ("step = [1]", "Step 1 is 1"),
        ("field = 5\n" + DEDUP, "field = 5: give a valid string"),
        ('longest = "x"\n' + DEDUP, "longest = 'x': give a valid integer"),
        ('memory = "1GB"\n' + DEDUP, "memory = '1GB'"),
        ('write_dropped = "yes"\n' + DEDUP, "give a valid boolean"),
        ('on_bad = "stop"\n' + DEDUP, "give 'skip' or 'refuse'"),
        (DEDUP + "index = 5", "index = 5"),
        (DEDUP + 'n_bands = "14"', r"Step 1 \(minhash_dedup\) has n_bands = '14': give a valid integer"),
        (DEDUP + "n_bands = 14.5", "n_bands = 14.5"),
        (DEDUP + "seed = -1", "seed = -1"),
        (RULES + 'without = ["gopher_shrt_doc"]', "no rule 'gopher_shrt_doc'"),
        (RULES + 'limits = { gopher_short_doc = { low = "30" } }', "give a valid number"),
        (RULES + "limits = { gopher_below_avg_threshold = { high = 1 } }", "low 3 and high 1"),
        ('[[step]]\nuse = "rules"', "it has no rule"),
        ('[[step]]\nuse = "rules"\nsets = "gopher"', "sets = 'gopher': give a list"),
        ('[[step]]\nuse = "rules"\nblocked_words = "nowhere"', "No such file"),
        ('[[step]]\nuse = "quality"\ncurated = "like.jsonl"\nraw = "like.jsonl"\nalpha = 0', "alpha 0"),
        ('[[step]]\nuse = "privacy"\nmost = "x"', "most = 'x'"),
        ('[[step]]\nuse = "lima"\nn = 0\n' + LIKE, "choose 0 documents"),
        ('[[step]]\nuse = "random"\nn = -1\n' + LIKE, "choose -1 documents"),
        ('[[step]]\nuse = "importance_resampling"\nn = 1\nlike = ["like.jsonl"]', "like = "),
        ('field = "body"\n[[step]]\nuse = "importance_resampling"\nn = 1\n' + LIKE, "text in field 'body'"),
        ('[[step]]\nuse = "python"\nfunction = "math:pi"', "no function"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(text, said, tmp_path):
    write_lines(tmp_path / "like.jsonl", [prose(1), prose(2)])
    with pytest.raises(ConfigError, match=said):
        Recipe.from_toml(text, tmp_path)


@pytest.mark.parametrize(
    "settings", [{"ending": ".csv"}, {"ending": "jsonl"}, {"ending": ".parquet.gz"}, {"memory": 0}]
)
def test_settings_are_refused_before_anything_is_read(settings, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", ["one"])
    with pytest.raises(InputError, match=next(iter(settings))):
        curate_files([source], tmp_path / "out", [], settings=Settings(**settings))
    assert not (tmp_path / "out").exists()


def test_files_of_steps_have_their_text_in_the_field_of_the_recipe(tmp_path):
    (tmp_path / "like.jsonl").write_text('{"body": "fish swim"}\n')
    text = 'field = "body"\n[[step]]\nuse = "importance_resampling"\nn = 1\n' + LIKE
    recipe = Recipe.from_toml(text, tmp_path)
    assert len(list(curate([{"body": "fish"}, {"body": "stone"}], recipe.steps, field="body"))) == 1


def test_a_run_is_told_by_the_code_of_its_functions(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    said = set()
    for number in (1, 2):
        (tmp_path / f"own_{number}.py").write_text(f"def f(d):\n    return {number}\n")
        text = f'[[step]]\nuse = "python"\nfunction = "own_{number}:f"\n'
        said.add(Recipe.from_toml(text, tmp_path).fingerprint.replace(f"own_{number}", ""))
    assert len(said) == 2


def test_a_language_that_the_model_does_not_know_is_refused(identifier):
    with pytest.raises(InputError, match="no language 'english'"):
        list(curate(["A text."], [Language("english", identifier=identifier)]))


@pytest.fixture
def identifier():
    if not catalog.is_pulled("lid.176"):
        pytest.skip("the model lid.176 is absent")
    return LanguageIdentifier()


def test_numbers_that_choose_nothing_sensible_are_refused():
    for make in (lambda: ParetoSample(-1.0), lambda: GumbelTopK(-1)):
        with pytest.raises(InputError, match="-1"):
            make()


def test_texts_without_a_score_do_not_move_the_thirds():
    assert thirds(np.array([-np.inf, -np.inf, *range(10)])) == thirds(np.arange(10.0))
    with pytest.raises(InputError, match="no scores"):
        thirds(np.array([-np.inf]))


def test_one_path_is_no_list_of_files(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", ["one"])
    for one in (source, str(source)):
        with pytest.raises(InputError, match="is one path: give a list"):
            curate_files(one, tmp_path / "out", [])


def test_a_tagger_takes_the_words_of_a_text_once(monkeypatch):
    seen = set()
    features = privacy._features

    def watched(words, i, before):
        seen.add(id(words))
        return features(words, i, before)

    monkeypatch.setattr(privacy, "_features", watched)
    texts = ["Ask Ann Lee now", "Go to the shop"]
    privacy.PrivacyTagger().fit(texts, [[(4, 11, "PERSON")], []])
    assert len(seen) <= len(texts)


def test_spans_of_another_shape_are_told_of(tmp_path):
    (tmp_path / "labelled.jsonl").write_text('{"text": "Ask Ann", "spans": [[4, 7]]}\n')
    text = '[[step]]\nuse = "privacy"\ntagger = "t.npz"\nlabelled = "labelled.jsonl"\n'
    with pytest.raises(ConfigError, match=r"Step 1 \(privacy\) cannot be made"):
        Recipe.from_toml(text, tmp_path)
