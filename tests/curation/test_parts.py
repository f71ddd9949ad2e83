"""Scorers, selection, influence and mixing: formulas against hand-worked values, real models on real text."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from pilotfish.curation import Document, Filter, Language, LanguageIdentifier, Rules, SemanticDedup, ShortTexts, curate
from pilotfish.curation import recipe as recipe_module
from pilotfish.curation.choose import choose_files, resample_files
from pilotfish.curation.classifiers import EducationalQuality, NgramClassifier, ParetoSample
from pilotfish.curation.importance import GumbelTopK, ImportanceWeight
from pilotfish.curation.influence import (
    adam_directions,
    best_in_turn,
    gradient_match,
    linear_gradients,
    linear_influence,
    projected,
)
from pilotfish.curation.perplexity import ErrorLength, Perplexity, el2n, thirds
from pilotfish.curation.privacy import Privacy, PrivacyTagger, span_f1
from pilotfish.curation.recipe import Recipe
from pilotfish.curation.scan import Batch
from pilotfish.curation.selection import herded, in_context_worth, k_centres, needed, representative
from pilotfish.errors import InputError, NotFittedError
from pilotfish.features import HashedNgrams
from pilotfish.methods import cards, find
from pilotfish.methods.finetuning_data import lima, mods
from pilotfish.methods.finetuning_data import representative_selection as represent
from pilotfish.methods.pretraining_data import d4, perplexity_filter, quality_classifier, toxicity_filter
from pilotfish.models import catalog
from pilotfish.models.arpa import ArpaModel
from pilotfish.models.fake import FakeModel
from pilotfish.models.fasttext import FastTextModel, _add_ngrams
from pilotfish.models.ngram import NGramModel
from pilotfish.models.transformers import pretrained
from pilotfish.rules import Between
from tests.curation.texts import write_lines
from tests.models.fixtures import pulled

PRETRAINING = {
    "heuristic_rules",
    "exact_dedup",
    "minhash_dedup",
    "semantic_dedup",
    "d4",
    "quality_classifier",
    "toxicity_filter",
    "privacy_filter",
    "educational_quality",
    "perplexity_filter",
    "importance_resampling",
    "language_id",
    "doremi",
    "autoscale",
    "mixing_agent",
    "presence",
}
FINETUNING = {"representative_selection", "data_whisperer", "lima", "mods", "less"}
FISH = ["the fish swims in clear water", "small fish and large sharks swim", "water is clear where the fish swim"]
MONEY = ["stocks fell on monday as banks sold", "the bank raised rates again", "markets fell and banks sold stocks"]


def test_every_row_has_its_card():
    assert {card.slug for card in cards("pretraining_data")} == PRETRAINING
    assert {card.slug for card in cards("finetuning_data")} == FINETUNING
    assert len(find("heuristic_rules").make().rules) == len((Rules.gopher() + Rules.c4() + Rules.fineweb()).rules)


WEATHER = "The weather is fine today. " * 5


@pytest.fixture(scope="module")
def identifier():
    if not catalog.is_pulled("lid.176"):
        pytest.skip("the model lid.176 is absent: 'pilotfish models pull lid.176' fetches it")
    return LanguageIdentifier()


def test_languages_and_scripts(identifier):
    said = {
        "en": "The weather is fine today and we go to the sea.",
        "de": "Das Wetter ist heute schön und wir fahren ans Meer.",
        "ru": "Сегодня хорошая погода, и мы едем к морю.",
        "ja": "今日は天気がいいので、海に行きます。",
        "el": "Σήμερα ο καιρός είναι καλός.",
        "fr": "Il fait beau aujourd'hui et nous allons à la mer.",
        "ko": "오늘은 날씨가 좋아서 바다에 갑니다.",
    }
    assert identifier.predict(list(said.values()))[0] == list(said)
    probabilities = FastTextModel().probabilities([said["en"], ""])
    assert probabilities.sum(axis=1) == pytest.approx([1, 0], abs=1e-4)
    kept = [d.id for d in curate([{"id": k, "text": t} for k, t in said.items()], [Language({"en": 0.5, "de": 0.5})])]
    assert kept == ["en", "de"]
    assert identifier.predict(["", "123 456"])[0][0] == ""


def test_short_texts_are_judged_by_letters(identifier):
    short = ShortTexts(["en", "de", "fr", "nb", "zu"])
    both = LanguageIdentifier(short_texts=short)
    words = ["Fahrkarte", "sunshine", "aujourd'hui", "ngiyabonga", "kjærlighet"]
    labels, sure = both.predict([*words, "123", WEATHER])
    assert labels == ["de", "en", "fr", "zu", "no", "", "en"]  # lid.176 has one label for Norwegian, and no Zulu
    alone, surest = identifier.predict([WEATHER])
    assert (labels[-1], sure[-1]) == (alone[0], pytest.approx(surest[0]))  # long: as without
    assert short.of(["Fahrkarte"]).sum() == pytest.approx(1)
    assert both.of(Batch([])).shape == (0, len(both.labels))
    kept = curate(words, [Language("de", identifier=both)])
    assert [d.text for d in kept] == ["Fahrkarte"]
    with pytest.raises(InputError, match="unknown \\['xx'\\]"):
        ShortTexts(["en", "xx"])
    with pytest.raises(InputError, match="at least two"):
        ShortTexts(["en"])


def test_letter_ngrams_are_added_whatever_room_there_is():
    rng = np.random.default_rng(0)
    there = rng.random(128) < 0.5
    known = np.append(np.packbits(there, bitorder="little").view(np.uint64), np.uint64(0))
    pruned = np.array([0, there[:64].sum(), there.sum()], dtype=np.int32)
    matrix = rng.normal(size=(int(there.sum()) + 5, 16)).astype(np.float32)
    word = "<" + "wörterbuch" * 30 + ">"
    want, n_want = np.zeros(16), 0
    for i in range(len(word)):
        for size in (2, 3, 4):
            h = 2166136261
            for byte in word[i : i + size].encode():
                h = ((h ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & 0xFFFFFFFF
            if i + size <= len(word) and there[h % 128]:
                want, n_want = want + matrix[5 + there[: h % 128].sum()], n_want + 1
    letters = np.frombuffer(word.encode(), dtype=np.uint8)
    for room in (8, 4096):
        total, rows = np.zeros(16, dtype=np.float32), np.empty(room, dtype=np.int32)
        found = _add_ngrams(letters, letters.size, pruned, known, np.uint32(128), 5, 2, 4, matrix, rows, total)
        assert found == n_want
        assert total == pytest.approx(want, abs=1e-3)


def test_a_file_that_is_no_fasttext_model(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="no supervised fastText model"):
        FastTextModel(tmp_path / "x.bin").load()


def test_the_classifier_is_the_logistic_of_its_weights(tmp_path):
    model = NgramClassifier(4096).fit(FISH, MONEY)
    counts = [len(text.split()) * 2 - 1 for text in FISH]
    assert (model.score(FISH) > 0.5).all()
    assert (model.score(MONEY) < 0.5).all()
    model.save(tmp_path / "m.npz")
    again = NgramClassifier.load(tmp_path / "m.npz")
    assert (again.score(FISH) == model.score(FISH)).all()
    flat = NgramClassifier(64)
    flat.weights_, flat.intercept_ = np.ones(64, dtype=np.float32), 0.5
    assert flat.score(FISH) == pytest.approx([1 / (1 + np.exp(-(np.sqrt(n) + 0.5))) for n in counts])
    with pytest.raises(NotFittedError):
        NgramClassifier().score(FISH)
    (tmp_path / "no.npz").write_bytes(b"x")
    with pytest.raises(InputError, match="no saved classifier"):
        NgramClassifier.load(tmp_path / "no.npz")


def test_pareto_sampling_keeps_more_of_better():
    scores = np.repeat([0.0, 0.5, 0.9, 1.0], 4000) - np.tile(np.linspace(0, 1e-6, 4000), 4)
    kept = np.bincount(ParetoSample(9).decide(scores).indices // 4000, minlength=4) / 4000
    # P(pareto > x) = (1 + x) ** -9
    assert kept == pytest.approx([2**-9, 1.5**-9, 1.1**-9, 1.0], abs=0.02)


def test_two_classifiers_share_one_pass():
    fish = Filter("fish", NgramClassifier(512).fit(FISH, MONEY), Between(low=0.5))
    money = Filter("money", NgramClassifier(1024).fit(MONEY, FISH), Between(high=0.5))
    assert [d.text for d in curate([*FISH, *MONEY], [fish, money])] == FISH


def test_educational_quality_learns_from_a_model(tmp_path):
    class Rates:
        def generate(self, requests):
            return [
                FakeModel("4").generate([r])[0] if "fish" in r.prompt else FakeModel("no idea").generate([r])[0]
                for r in requests
            ]

    model = EducationalQuality(HashedNgrams(128))
    assert np.isnan(model.label([*FISH, *MONEY], Rates())).tolist() == [False] * 3 + [True] * 3
    model.fit([*FISH, *MONEY], [4, 4, 4, 0, 0, 0])
    assert model.score(FISH).min() > model.score(MONEY).max()
    model.save(tmp_path / "ratings.npz")
    again = EducationalQuality.load(tmp_path / "ratings.npz", HashedNgrams(128))
    np.testing.assert_array_equal(again.score(FISH), model.score(FISH))
    with pytest.raises(InputError, match="no saved rating model"):
        EducationalQuality.load(tmp_path)


def test_importance_weights_are_log_ratios():
    weight = ImportanceWeight(1 << 16, smoothing=0.5).fit(["a b"], ["a b", "c d"])
    # Three n-grams of the target, six of the raw corpus: each of "a b" once in both.
    size = 1 << 16
    expected = 3 * np.log((1.5 / (3 + size / 2)) / (1.5 / (6 + size / 2)))
    assert weight.score(["a b"])[0] == pytest.approx(expected, rel=1e-3)
    chances = np.zeros(2)
    for seed in range(600):
        chances[GumbelTopK(1, seed).decide(np.log([0.25, 0.75])).indices[0]] += 1 / 600
    assert chances == pytest.approx([0.25, 0.75], abs=0.05)


def test_private_data_is_masked(data_dir):
    import gzip

    with gzip.open(data_dir / "pii_presidio/synth_v2.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    spans = [[(s["start_position"], s["end_position"], s["entity_type"]) for s in row["spans"]] for row in rows]
    texts = [row["full_text"] for row in rows]
    tagger = PrivacyTagger().fit(texts[:400], spans[:400])
    f1 = span_f1([tagger.find(t) for t in texts[1400:]], spans[1400:])[2]
    assert f1 > 0.7
    [masked] = Privacy(tagger)(["Write to jo@example.org."])
    assert masked == "Write to [EMAIL]." or "jo@example.org" not in masked


def test_perplexity_and_arpa(tmp_path):
    model = NGramModel(2).fit(FISH * 2)
    scorer = Perplexity(model)
    scores = scorer.score([FISH[0], MONEY[0]])
    assert scores[0] == pytest.approx(-np.log(model.perplexity([FISH[0]])))
    assert scores[0] > scores[1]
    low, high = thirds(scorer.score(FISH))
    step = perplexity_filter(model, FISH)
    assert (step.rule.low, step.rule.high) == (low, high)
    path = tmp_path / "m.arpa"
    path.write_text(
        "\\data\\\nngram 1=4\nngram 2=1\n\n\\1-grams:\n-1.0\t<unk>\n-99\t<s>\t-0.5\n-0.7\ta\t-0.2\n-0.4\t</s>\n\n"
        "\\2-grams:\n-0.1\t<s> a\n\n\\end\\\n"
    )
    logs = ArpaModel(path).log_prob("a b") / np.log(10)
    assert logs == pytest.approx([-0.1, -0.2 - 1.0, -0.4])
    path.write_text("nothing")
    with pytest.raises(InputError, match="has no n-gram"):
        ArpaModel(path)


def test_error_vectors_of_a_language_model(tmp_path):
    model = NGramModel(2).fit(FISH * 2)
    tokens = model.tokenizer.encode(FISH[0])
    prefixes = [" ".join(FISH[0].split()[:i]) for i in range(1, len(tokens))]
    lengths = []
    for prefix, token in zip(prefixes, tokens[1:], strict=True):
        p = model.distribution(prefix)
        p[2] = 0  # A session gives nothing to what is unknown.
        p /= p.sum()
        lengths.append(np.sqrt(np.sum(p**2) - 2 * p[token] + 1))
    scorer = ErrorLength([model, model])
    scores = scorer.score([FISH[0], MONEY[0], "fish"])
    assert scores[0] == pytest.approx(np.mean(lengths), rel=1e-6)
    assert scores[0] < scores[1] < scores[2] == np.inf
    # A long text is read in parts, and each token is still told by those before it.
    long = " ".join(FISH * 20)
    whole = model.tokenizer.encode(long[:1000])
    p = np.exp(model.session().extend(whole[:-1]).log_probs())
    assert scorer.score([long])[0] == pytest.approx(el2n(p, whole[1:]).mean(), rel=1e-6)
    step = perplexity_filter(model, FISH, "el2n")
    assert (step.name, step.rule.low, step.rule.high) == ("el2n", *thirds(scorer.score(FISH)))
    write_lines(tmp_path / "fish.jsonl", FISH)
    recipe_text = '[[step]]\nuse = "el2n"\nmodel = "lm.npz"\ntrain = "fish.jsonl"\nhigh = 1.0\n'
    recipe = Recipe.from_toml(recipe_text, tmp_path)
    assert [d.text for d in curate([*FISH, *MONEY], recipe.steps)] == FISH
    # What the saved model was learned from is not read again; the model is.
    (tmp_path / "fish.jsonl").unlink()
    assert Recipe.from_toml(recipe_text, tmp_path).fingerprint == recipe.fingerprint
    NGramModel(2).fit(MONEY).save(tmp_path / "lm.npz")
    assert Recipe.from_toml(recipe_text, tmp_path).fingerprint != recipe.fingerprint
    with pytest.raises(InputError, match="whole distribution"):
        ErrorLength([object()])


def test_semantic_duplicates_stand_apart_by_angle():
    class Fixed:
        n_dimensions = 2

        def embed(self, texts):
            angles = np.array([float(text) for text in texts])
            return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    near, far = str(np.arccos(0.99)), str(np.arccos(0.6))
    kept = [d.text for d in curate(["0", near, far], [SemanticDedup(0.95, Fixed())])]
    assert kept == ["0", far]
    with pytest.raises(InputError, match="cosine between 0 and 1"):
        SemanticDedup(1.5)


def test_influence_is_that_of_leaving_out():
    rng = np.random.default_rng(0)
    X, X_test = rng.normal(size=(60, 4)), rng.normal(size=(30, 4))
    y = X @ np.ones(4) + rng.normal(size=60) * np.where(np.arange(60) < 6, 3, 0.2)
    y_test = X_test @ np.ones(4)
    penalty = 1e-3 * 60 * np.eye(4)

    def loss(keep):
        w = np.linalg.solve(X[keep].T @ X[keep] + penalty, X[keep].T @ y[keep])
        return np.mean((y_test - X_test @ w) ** 2)

    every = np.arange(60)
    truth = np.array([loss(every[every != i]) - loss(every) for i in every])
    ours = linear_influence(X, y, X_test, y_test)
    assert np.corrcoef(np.argsort(np.argsort(ours)), np.argsort(np.argsort(truth)))[0, 1] > 0.95


def test_gradients_and_directions():
    X, p = np.array([[1.0, 2.0]]), np.array([[0.2, 0.8]])
    assert linear_gradients(X, [1], p) == pytest.approx(np.array([[0.2, -0.2, 0.4, -0.4]]))
    g = np.array([[0.5, -2.0]])
    m, v = np.array([0.1, 0.0]), np.array([0.01, 0.04])
    expected = ((0.9 * m + 0.1 * g) / (1 - 0.9**3)) / (np.sqrt((0.999 * v + 0.001 * g**2) / (1 - 0.999**3)) + 1e-8)
    assert adam_directions(g, m, v, 3) == pytest.approx(expected, rel=1e-5)
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(3, 6000))
    rows[1] = rows[0] + 0.1 * rows[2]
    small = projected(rows, 2048)
    assert small[0] @ small[1] == pytest.approx(rows[0] @ rows[1], rel=0.1)
    matched = gradient_match(np.eye(2), np.array([[1.0, 0], [0, 1], [0, 3]]), ["a", "b", "b"])
    assert matched == pytest.approx(np.eye(2))
    both = gradient_match(np.array([[3.0, 4.0]]), np.array([[1.0, 0], [0, 1]]))
    assert both == pytest.approx(np.array([[7 / (5 * np.sqrt(2))]]))
    assert best_in_turn(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]), 3).tolist() == [0, 2, 1]


def test_selection_covers_and_needs():
    vectors = np.array([[1.0, 0], [0.99, 0.1], [0, 1], [0.1, 0.99], [-1, 0]])
    assert k_centres(vectors, 3).tolist() == [0, 4, 2]
    assert set(representative(vectors, np.array([[1.0, 0.0], [0.0, 1.0]]), 2).tolist()) <= {0, 1, 2, 3}
    chosen = needed(vectors, np.array([1, 1, 1, 1, -1.0]), 3, lambda c: np.array([9.0, 1, 1, 0, 9]), share=0.34)
    assert 4 not in chosen
    assert 0 in chosen
    embedder = HashedNgrams(128)
    assert represent([*FISH, *MONEY], FISH[:1], 2, embedder)[0] == 0
    assert len(lima([*FISH, *MONEY], np.arange(6.0), 2, embedder)) == 2
    assert len(mods([*FISH, *MONEY], np.arange(6.0), 4, lambda c: np.arange(6.0), embedder=embedder)) == 4
    assert len(d4(embedder.embed([*FISH, *MONEY]).astype(float), 3, 2)) == 3


def test_filters_made_of_texts():
    assert quality_classifier(FISH, MONEY).name == "quality"
    step = toxicity_filter(MONEY, FISH, 0.5)
    assert [d.text for d in curate([*FISH, *MONEY], [step])] == FISH


def test_files_are_chosen_beside_controls(tmp_path):
    pool = write_lines(tmp_path / "pool.jsonl", [*FISH * 3, *MONEY * 5])
    like = write_lines(tmp_path / "like.jsonl", FISH)
    made = resample_files([pool], [like], tmp_path / "out", 9)
    assert made.n_out == 9
    assert made.likeness["chosen"] > made.likeness["full"]
    rows = [json.loads(line)["text"] for line in (tmp_path / "out/chosen.jsonl").read_text().splitlines()]
    assert sum(row in FISH for row in rows) >= 7
    again = choose_files([pool], [like], tmp_path / "two", lambda p, t: np.array([0, 1]))
    assert again.n_out == 2
    with pytest.raises(InputError, match="not empty"):
        resample_files([pool], [like], tmp_path / "out", 9)


def test_recipes_of_small_models(tmp_path):
    write_lines(tmp_path / "good.jsonl", FISH)
    write_lines(tmp_path / "raw.jsonl", MONEY)
    rows = [{"text": t, "label": int(t in MONEY)} for t in [*FISH, *MONEY]]
    (tmp_path / "toxic.jsonl").write_text("\n".join(map(json.dumps, rows)))
    NGramModel(2).fit(FISH).save(tmp_path / "lm.npz")
    recipe = Recipe.from_toml(
        '[[step]]\nuse = "quality"\ncurated = "good.jsonl"\nraw = "raw.jsonl"\nleast = 0.5\n'
        '[[step]]\nuse = "toxicity"\nlabelled = "toxic.jsonl"\nmost = 0.5\n'
        '[[step]]\nuse = "perplexity"\nmodel = "lm.npz"\nlow = -20\n'
        '[[step]]\nuse = "privacy"\n',
        tmp_path,
    )
    assert [d.text for d in curate([*FISH, *MONEY, "fish at jo@a.org swim"], recipe.steps)] == [
        *FISH,
        "fish at [EMAIL] swim",
    ]


def test_documents_are_plain():
    assert Document("x").line() == b'{"text":"x"}\n'


def test_herding_matches_the_mean_better_than_chance_and_keeps_the_shares_of_labels():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [300, 100])
    X = rng.normal(size=(400, 8)) + 3 * labels[:, None]
    chosen = herded(X, 40, labels)
    assert np.bincount(labels[chosen]).tolist() == [30, 10]
    assert np.unique(chosen).size == 40
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)

    def off(which):
        return np.linalg.norm(unit[which].mean(axis=0) - unit.mean(axis=0))

    assert off(chosen) < 0.5 * np.mean([off(rng.permutation(400)[:40]) for _ in range(50)])


def test_recipes_learn_what_is_not_saved_yet(tmp_path, monkeypatch):
    pulled("wordllama")
    asked = []

    class Rates:
        def __init__(self, model, base_url=None):
            asked.append((model, base_url))

        def generate(self, requests):
            return FakeModel(lambda r: "4" if "fish" in r.prompt else "0").generate(requests)

    monkeypatch.setattr(recipe_module, "OpenAIModel", Rates)
    write_lines(tmp_path / "sample.jsonl", [*FISH, *MONEY])
    write_lines(tmp_path / "fish.jsonl", FISH)
    rows = [{"text": f"{name} swims", "spans": [[0, len(name), "NAME"]]} for name in ("Anna", "Berta", "Clara")]
    rows += [{"text": fish, "spans": []} for fish in FISH]
    (tmp_path / "names.jsonl").write_text("\n".join(map(json.dumps, rows * 5)))
    text = (
        '[[step]]\nuse = "educational_quality"\nmodel = "edu.npz"\nsample = "sample.jsonl"\nrater = "large"\n'
        'endpoint = "http://nowhere/v1"\nleast = 2.0\n'
        '[[step]]\nuse = "perplexity"\nmodel = "lm.npz"\ntrain = "fish.jsonl"\nlow = -20\n'
        '[[step]]\nuse = "privacy"\ntagger = "names.npz"\nlabelled = "names.jsonl"\n'
    )
    for _ in range(2):
        kept = curate(
            [*FISH, *MONEY, "Clara swims in water where the fish swims"], Recipe.from_toml(text, tmp_path).steps
        )
        assert [d.text for d in kept] == [*FISH, "[NAME] swims in water where the fish swims"]
    # The large model is asked once, and what it taught is kept.
    assert asked == [("large", "http://nowhere/v1")]
    assert {p.name for p in tmp_path.glob("*.npz")} == {"edu.npz", "lm.npz", "names.npz"}


def test_a_language_model_of_transformers_ranks_text(tmp_path):
    pytest.importorskip("torch")
    pulled("smollm2-135m-instruct")
    recipe = Recipe.from_toml('[[step]]\nuse = "perplexity"\nmodel = "smollm2-135m-instruct"\nlow = -5\n', tmp_path)
    plain = "The capital of France is Paris, and the capital of Italy is Rome."
    shuffled = "is of Rome. the capital Paris, and France The of is capital Italy"
    seen = {}
    kept = curate([plain, shuffled, "a"], recipe.steps, on_dropped=lambda d, *why: seen.setdefault(d.text, why[2]))
    assert [d.text for d in kept] == [plain]
    assert seen[shuffled] < -5
    assert seen["a"] == -np.inf


def test_worth_in_context_is_that_of_whole_prompts():
    torch = pytest.importorskip("torch")
    pulled("smollm2-135m-instruct")
    tokenizer, model = pretrained("AutoModelForCausalLM", "smollm2-135m-instruct", "x", attn_implementation="eager")
    examples = [(f"What is {i} and {i}?", str(2 * i)) for i in range(5)]
    found = in_context_worth("smollm2-135m-instruct", examples, n_shots=3, n_queries=2, seed=1)
    order = np.random.default_rng(1)
    first = order.permutation(5)[:3]
    queries = order.choice(np.setdiff1d(np.arange(5), first), 2, replace=False)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    shots = [ids(f"Question: {examples[i][0]}\nAnswer: {examples[i][1]}\n\n") for i in first]
    ends = np.cumsum([0, *map(len, shots)])
    expected = np.zeros(3)
    for q in queries:
        answer = ids(f" {examples[q][1]}")
        whole = [t for shot in shots for t in shot] + ids(f"Question: {examples[q][0]}\nAnswer:") + answer
        with torch.no_grad():
            out = model(torch.tensor([whole]), output_attentions=True)
        chances = torch.softmax(out.logits[0], -1)[range(len(whole) - len(answer) - 1, len(whole) - 1), answer]
        seen = torch.stack(out.attentions)[:, 0, :, -len(answer) :].mean(dim=(0, 1, 2)).numpy()
        mass = np.array([seen[a:b].mean() for a, b in pairwise(ends)])
        expected += float(chances.log().mean().exp()) * mass / mass.sum() / 2
    assert found[first] == pytest.approx(expected, rel=1e-3)
