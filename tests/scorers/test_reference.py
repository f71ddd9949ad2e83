"""Metrics with references: the libraries' own values, the formula of BERTScore, and odd texts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pilotfish.errors import InputError, NotFittedError
from pilotfish.models.embedder import OnnxEmbedder
from pilotfish.scorers.bertscore import BertScore, _cut
from pilotfish.scorers.reference import Bleu, Chrf, Rouge
from pilotfish.types import Exchange, Reply, Request
from tests.models.fixtures import pulled
from tests.toy_encoder import write_toy_encoder

ODD = ["", "   ", "🙂🙂", "日本語のテキスト", "Привет, мир", "mixed 日本 and Latin", "\x00\ud800", "x" * 3000]


def exchange(text, *references):
    return Exchange(Request.of("Say it."), Reply(text), references)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy_encoder(tmp_path_factory.mktemp("toy") / "encoder")


def test_bleu_chrf_and_rouge_are_the_libraries():
    sacrebleu = pytest.importorskip("sacrebleu")
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    answer, references = "the cat sat on a mat", ["the cat sat on the mat", "a cat was on the mat"]
    [bleu], [chrf] = Bleu().score([exchange(answer, *references)]), Chrf().score([exchange(answer, *references)])
    assert bleu == pytest.approx(sacrebleu.sentence_bleu(answer, references).score / 100)
    assert chrf == pytest.approx(sacrebleu.sentence_chrf(answer, references).score / 100)
    for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        own = rouge_scorer.RougeScorer([kind], use_stemmer=True)
        best = max(own.score(r, answer)[kind].fmeasure for r in references)
        assert Rouge(kind).score([exchange(answer, *references)])[0] == pytest.approx(best)
    items = [exchange(answer, *references), exchange("dogs run", "dogs run fast")]
    corpus = sacrebleu.corpus_bleu([answer, "dogs run"], [[references[0], "dogs run fast"], [references[1], None]])
    assert Bleu().corpus_score(items) == pytest.approx(corpus.score / 100)
    assert 0 < Chrf().corpus_score(items) < 1


def test_rouge_reads_words_of_any_script():
    assert Rouge().score([exchange("Привет, мир", "Привет мир"), exchange("日本語", "日本語")]) == pytest.approx([1, 1])
    # Vowels of Devanagari are marks, and Latin letters may stand right beside Chinese ones.
    assert Rouge().score([exchange("की", "का"), exchange("用iPhone拍", "用Pixel拍")]) == pytest.approx([0, 2 / 3])


def test_rouge_stems_the_same_words_beside_any_character():
    plain = "She was running - quickly - to the dogs' houses."
    odd = plain.replace("-", "\u2014").replace("'", "\u2019") + " 🐕"
    for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        assert Rouge(kind).score([exchange(plain, odd), exchange(odd, plain)]) == pytest.approx([1, 1])


def test_bleu_of_scripts_without_spaces_takes_their_tokenizer():
    sacrebleu = pytest.importorskip("sacrebleu")
    said, right = "我喜欢吃苹果和香蕉", "我喜欢吃苹果和梨子"
    expected = sacrebleu.sentence_bleu(said, [right], tokenize="zh").score / 100
    assert Bleu("zh").score([exchange(said, right)]) == pytest.approx([expected])
    assert Bleu("zh").corpus_score([exchange(said, right)]) == pytest.approx(expected)
    assert Bleu().score([exchange(said, right)]) == [0]
    with pytest.raises(InputError, match=r"Bleu tokenize is 'cn': use one of .*zh"):
        Bleu("cn").score([exchange(said, right)])


def test_odd_texts_and_missing_references_have_a_stated_score(toy):
    for metric in (Bleu(), Chrf(), Rouge(), BertScore(toy)):
        found = metric.score([exchange(t, "the cat sleeps .") for t in ODD])
        assert np.isfinite(found).all()
        assert found[0] == 0.0
        assert metric.score([exchange("the cat", "")])[0] == 0.0
        assert math.isnan(metric.score([exchange("the cat")])[0])
        assert metric.score([]).shape == (0,)
        same = metric.score([exchange("the cat sleeps on the mat", "the cat sleeps on the mat")] * 3)
        assert same == pytest.approx([1, 1, 1], abs=1e-5)
        assert same.max() <= 1
    with pytest.raises(InputError, match="1 of 1 answers have no reference"):
        Bleu().corpus_score([exchange("the cat")])
    with pytest.raises(InputError, match="Rouge kind is 'rouge9'"):
        Rouge("rouge9").score([exchange("a", "a")])


def test_a_text_of_a_hundred_thousand_words_has_a_score():
    long = "word " * 100_000
    for metric in (Bleu(), Chrf(), Rouge()):
        assert np.isfinite(metric.score([exchange(long, "the cat sleeps"), exchange("the cat", long)])).all()


def test_bertscore_is_its_formula(toy):
    answer, reference = "the cat sleeps", "a dog sleeps on the mat ."
    encoder = OnnxEmbedder(toy, poolings=("tokens",), max_length=64)
    a, b = encoder.token_vectors(encoder.token_ids([answer, reference]))
    similar = a.astype(np.float64) @ b.T
    precision, recall = similar.max(axis=1)[1:-1].mean(), similar.max(axis=0)[1:-1].mean()
    score = BertScore(toy)
    [f1] = score.score([exchange(answer, reference)])
    assert score.detail_["precision"][0] == pytest.approx(precision, abs=1e-6)
    assert score.detail_["recall"][0] == pytest.approx(recall, abs=1e-6)
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-6)
    swapped = BertScore(toy)
    swapped.score([exchange(reference, answer)])
    assert swapped.detail_["precision"][0] == pytest.approx(recall, abs=1e-6)


def test_rarity_is_counted_anew_for_every_set_of_references(toy):
    items = [
        exchange("a red dog runs .", "the cat sleeps"),
        exchange("one two", "it is red"),
        exchange("he", "the man"),
    ]
    used = BertScore(toy, idf=True)
    used.score(items[:1])
    assert used.score(items) == pytest.approx(BertScore(toy, idf=True).score(items))


def test_bertscore_of_several_references_is_the_best_and_batches_do_not_matter(toy):
    texts = ["the cat sleeps", "a dog runs .", "it is red and blue", "he walks", "one two"]
    score = BertScore(toy)
    alone = [[score.score([exchange(a, b)])[0] for b in texts] for a in texts]
    assert np.allclose(score.score([exchange(a, *texts[:3]) for a in texts]), np.max(np.array(alone)[:, :3], axis=1))


def test_many_pairs_and_long_texts_are_taken_in_parts(toy, monkeypatch):
    items = [exchange(a, b) for a in ("the cat sleeps", "a dog runs .") for b in ("it is red", "the man walks", "one")]
    whole = BertScore(toy).score(items)
    monkeypatch.setattr("pilotfish.scorers.bertscore._PAIRS_AT_ONCE", 2)
    monkeypatch.setattr("pilotfish.scorers.bertscore._ROWS_AT_ONCE", 3)
    assert BertScore(toy).score(items) == pytest.approx(whole, abs=1e-6)


def test_tokens_that_every_reference_has_weigh_alike(toy):
    alike, other, empty = "the cat sleeps", "a dog rests", ""
    found = BertScore(toy, idf=True).score([exchange(text, alike) for text in (alike, other, empty)])
    assert found[0] == pytest.approx(1.0)
    assert found[0] > found[1] > found[2] == 0.0


def test_idf_weighs_and_rescaling_stretches(toy):
    references = ["the cat sleeps", "the dog runs", "the man walks", "the red mat"]
    weighed = BertScore(toy, idf=True)
    weighed.score([exchange("the cat", r) for r in references])
    fitted = BertScore(toy, idf=True).fit(references)
    assert fitted.idf_[fitted._ids(["the"])[0][0][1]] == pytest.approx(0.0)
    assert fitted.idf_[fitted._ids(["cat"])[0][0][1]] == pytest.approx(math.log(5 / 2))
    rescaled = BertScore(toy, rescale=True).fit(references)
    assert rescaled.score([exchange("the cat sleeps", "the cat sleeps")])[0] == pytest.approx(1.0)
    plain = BertScore(toy).score([exchange("one two", "the cat sleeps")])[0]
    assert rescaled.score([exchange("one two", "the cat sleeps")])[0] < plain
    with pytest.raises(NotFittedError, match="rescale=True"):
        BertScore(toy, rescale=True).score([exchange("a", "a")])
    with pytest.raises(InputError, match="at least 2"):
        BertScore(toy).fit(["a", "a"])


def test_windows_cover_every_token_once():
    for n, size in ((5, 8), (8, 8), (9, 8), (40, 8), (1001, 64)):
        spans = _cut(n, size)
        taken = []
        for start, stop, kept in spans:
            end = stop if stop == n else stop - size // 4
            taken += range(kept, end)
            assert start <= kept
        assert taken == list(range(n))


def test_a_long_text_is_read_to_its_end(toy):
    head = "the cat sleeps . " * 100
    score = BertScore(toy, max_length=32)
    same, other = score.score([exchange(head + "one two", head + "one two"), exchange(head + "one two", head)])
    assert same == pytest.approx(1.0, abs=1e-5)
    assert other < same
    assert np.isfinite(score.score([exchange("word " * 100_000, "the cat")])).all()


def test_real_encoder_prefers_the_paraphrase():
    pulled("all-minilm-l6-v2")
    reference = "The committee approved the plan on Tuesday."
    items = [
        exchange(t, reference) for t in ("On Tuesday the board accepted the proposal.", "Bananas are rich in iron.")
    ]
    good, bad = BertScore("minilm", precision="int8").score(items)
    assert good > bad + 0.2
