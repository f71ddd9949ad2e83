"""What every metric of answers keeps: a number or NaN per answer, whatever the text, and nothing carried over."""

from __future__ import annotations

import numpy as np
import pytest

from pilotfish.methods.metrics import make_metrics
from pilotfish.models.fake import FakeModel
from pilotfish.types import Exchange, Reply, Request, TokenLogProb
from tests.toy_encoder import write_toy_encoder

NAMES = [
    "bleu", "chrf", "rouge", "bertscore", "selfcheck", "semantic_entropy", "mean_log_prob", "token_entropy",
    "perplexity", "llm_judge", "hallucination_detector", "self_contradiction_numbers",
]  # fmt: skip
ODD = [
    "", " \n\t", "🙂👩‍👩‍👧",
    "日本語のテキスト。次の文。", "Привет, мир! Second sentence in English.", "עברית וعربي",
    "\ud800 half",
    "a" * 5000, "1,,2..3 = = 4 < > 9", "The answer is 4.", "[SEP] [CLS] <|im_end|>", "e\u0301" * 50,
]  # fmt: skip


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    encoder = write_toy_encoder(tmp_path_factory.mktemp("conformance") / "encoder")
    judge = FakeModel(lambda r: "3" if len(r.prompt) % 2 else "I would rather not.")
    return make_metrics(NAMES, {"encoder": encoder, "judge": judge})


def item(text: str) -> Exchange:
    tokens = (TokenLogProb("a", -0.5, (("a", -0.5), ("b", -1.0))),) if text.strip() else ()
    samples = tuple(Reply(other) for other in ODD[:4])
    context = ("The answer is 4. 日本語のテキスト。",)
    return Exchange(
        Request.of("What is it?"), Reply(text, log_probs=tokens), ("The answer is 4.", ""), samples, context
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_text_has_a_number_or_none(metrics, name):
    metric = metrics[name]
    found = metric.score([item(text) for text in ODD])
    assert found.shape == (len(ODD),)
    assert found.dtype == np.float64
    assert not np.isinf(found).any()
    assert metric.score([]).shape == (0,)
    alone = np.array([metric.score([item(text)])[0] for text in ODD])
    assert np.allclose(found, alone, equal_nan=True, atol=1e-5)
    bare = metric.score([Exchange(Request.of(""), Reply(""))])
    assert bare.shape == (1,)
    assert not np.isinf(bare).any()


@pytest.mark.parametrize("name", NAMES)
def test_equal_outputs_score_equally(metrics, name):
    same = metrics[name].score([item("The answer is 4. It is 4 = 4.")] * 3)
    assert np.allclose(same, same[0], equal_nan=True)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "llm_judge"])  # the judge here refuses some
def test_a_text_of_a_hundred_thousand_words_is_scored(metrics, name):
    [found] = metrics[name].score([item("It is 4, they say, and 2 + 2 = 4. " * 10_000)])
    assert np.isfinite(found)
