"""Models that KenLM wrote say the same as the ARPA file they were made of."""

from __future__ import annotations

import base64
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from pilotfish.curation.recipe import Recipe
from pilotfish.curation.steps import Filter
from pilotfish.errors import InputError, MissingExtraError
from pilotfish.models.arpa import ArpaModel, KenLMModel

ARPA = r"""
\data\
ngram 1=5
ngram 2=4
ngram 3=2

\1-grams:
-1.0	<unk>	0
0	<s>	-0.5
-0.7	a	-0.2
-0.9	b	-0.3
-0.4	</s>	0

\2-grams:
-0.1	<s> a	-0.05
-0.6	a b	-0.15
-0.3	b a	0
-0.25	b </s>

\3-grams:
-0.2	<s> a b
-0.35	a b a

\end\
"""
# What KenLM's build_binary made of it, as a hash table and as a trie.
PROBING = (
    "c-qU&O)OBz$yLZGDJihh*U!#KO-##7%}LQq&d=3P&QD2INXswEO)OC;OD!tS%+FIW<zhg9274f}pAks>2Lg}?BUFYNOdhaD7Gs6d"
    "EKr(>0TqDc3+fd2TDFyf^$2EXU%n(R&W^4Q8F1x%|5#i6ARA<+xt7+X+CSZ|m@!l}><1B0&VFNKWBapbeD<ZKrP<G#Idk9HGiU6O"
    "<QZ5h8BGq|n8^tg-wRZ?ca}BNwS3;|b7swy1ge+ZCwAWJ^SYWW37}rEK8{aJ87&))g@Md{$mZYzJg3>`O_kr!4{}3w{W8bmX))@?"
    "#+&yctFbA~%eG^%DYj!sWJqGL(FZaBTR&d*"
)
TRIE = (
    "c-qU&O)OBz$yLZGDJihh*U!#KO-##7%}LQq&d=3P&QD2INXswEO)OC;OD!tS%+FIW<zhg9274f}pAks>2Lg}?BUFYNOdhajf{KAK"
    "D^!jJN;4su1QRQ$Q`~FWR>~lloqhR|xHvmk&i9YC#SgO0wX`PH{^@>&WcPj$!GH?(!x+ZK#{18n@!1FCpFML1#BPAunU<Eef7Z;I"
    "`<T%TU}3-xGSkxDnHn2^bpjeH59BKV6@CGEO6}~Kp808MZTT>j954pZ_^(T6&OFJEY>rK7UbY>BO|czAB7==SkV;|z0L!3Db^"
)
TEXTS = ["a b a", "b a b", "a c b", "", "c c"]


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    path = tmp_path / "m.arpa"
    path.write_text(ARPA)
    return path


@pytest.mark.parametrize("made", [PROBING, TRIE])
def test_a_binary_file_says_what_its_arpa_file_says(made: str, arpa: Path) -> None:
    pytest.importorskip("kenlm")
    path = arpa.with_suffix(".klm")
    path.write_bytes(zlib.decompress(base64.b85decode(made)))
    ours, theirs = ArpaModel(arpa), KenLMModel(path)
    assert theirs.order == ours.order == 3
    for text in TEXTS:
        assert theirs.log_prob(text) == pytest.approx(ours.log_prob(text), abs=1e-5)
    recipe = arpa.with_suffix(".toml")
    recipe.write_text('[[step]]\nuse = "perplexity"\nmodel = "m.klm"\nlow = -2.0\n')
    [step] = Recipe.load(recipe).steps
    assert isinstance(step, Filter)
    assert step.scorer.score(["a b a"])[0] == pytest.approx(np.mean(ours.log_prob("a b a")), abs=1e-5)


def test_a_broken_binary_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("kenlm")
    (tmp_path / "m.klm").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0 and no more")
    with pytest.raises(InputError, match="cannot be read"):
        KenLMModel(tmp_path / "m.klm")


def test_the_package_is_named_where_it_is_missing(arpa: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(MissingExtraError, match="kenlm"):
        KenLMModel(arpa)
