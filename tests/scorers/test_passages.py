"""Sentences, windows and words of scripts without spaces, and of texts without sentences."""

from __future__ import annotations

import numpy as np

from pilotfish.scorers.grounding import Grounding
from pilotfish.scorers.passages import content_words, facts, sentences, windows
from pilotfish.scorers.selfcheck import SelfCheck
from pilotfish.types import Exchange, Reply, Request

ASKED = Request.of("?")


def test_sentences_end_without_a_space_where_the_script_has_none():
    text = "它在秘鲁。“很大？！”他说:「好。」नमस्ते। कैसे? كيف؟ جيد"
    found = [text[a:b] for a, b in sentences(text)]
    assert found == ["它在秘鲁。", "“很大？！", "他说:「好。", "नमस्ते।", "कैसे?", "كيف؟", "جيد"]
    assert len(sentences("。。。" * 1000)) == 1
    assert content_words("大桥 of 1886") == ["大", "桥", "1886"]
    assert facts("大桥建于1886年") == ["1886"]


def test_a_supported_sentence_of_a_script_without_spaces_is_known_from_others():
    context = ("波尔图大桥建于1886年，由铁制成，只有一个拱。它横跨杜罗河。",)
    answers = [Reply(text) for text in ("大桥由铁制成。", "大桥建于1930年。", "大桥卖给了巴西的僧侣。")]
    good, wrong_year, made_up = Grounding().score([Exchange(ASKED, a, context=context) for a in answers])
    assert good > 0.6 > 0.4 > wrong_year
    assert good > made_up + 0.2
    samples = tuple(Reply(text) for text in ("这座桥由铁制成。", "桥是用铁制成的。"))
    same, other = SelfCheck().score(
        [Exchange(ASKED, Reply(t), samples=samples) for t in ("桥由铁制成。", "桥由木头搭成。")]
    )
    assert same > other


def test_what_stands_late_in_a_long_line_supports_an_answer():
    line = " ".join(f"item {i} colour grey," for i in range(400)) + " the harbour opened in spring"
    made = windows(line)
    assert "".join(windows("x" * 5000, 350)).count("x") >= 5000
    assert made[-1].endswith("in spring")
    assert max(map(len, made)) <= 1400
    assert all(word in " ".join(made).split() for word in line.split())
    good, bad = Grounding().score(
        [Exchange(ASKED, Reply(t), context=(line,)) for t in ("The harbour opened in spring.", "Monks sold the abbey.")]
    )
    assert good > 0.7
    assert np.isfinite(bad)
    assert bad < 0.5
