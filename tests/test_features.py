"""Spaces of texts: what they keep, and that one call alone reads as it does in a batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.errors import InputError, NotFittedError
from pilotfish.features import HashedNgrams, TextSpace

TEXTS = ["cancel my card", "cancel the card now", "what is the exchange rate", "rate of exchange", "hello", "top up"]


@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_ngrams_are_unit_vectors_and_do_not_depend_on_the_batch(texts: list[str]) -> None:
    vectors = HashedNgrams(64).embed(texts)
    norms = np.linalg.norm(vectors, axis=1)
    assert np.all((np.abs(norms - 1) < 1e-5) | (norms == 0))
    np.testing.assert_array_equal(vectors[-1], HashedNgrams(64).embed(texts[-1:])[0])


def test_ngrams_see_spelling_and_ignore_case() -> None:
    a, b, c, d = HashedNgrams().embed(["Withdraw CASH", "withdraw cash", "withdrawal of cash", "visa or mastercard"])
    np.testing.assert_array_equal(a, b)
    assert a @ c > 0.3 > abs(a @ d) + 0.1


def test_space_keeps_inner_products_when_all_axes_are_kept() -> None:
    space = TextSpace("ngrams")
    points = space.fit_transform(TEXTS)
    views = HashedNgrams().embed(TEXTS)
    centred = views - views.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    centred -= centred.mean(axis=0)
    np.testing.assert_allclose(points @ points.T, (centred @ centred.T) * space.scale_**2, atol=1e-4)
    assert np.isclose((points**2).sum(axis=1).mean(), 1, atol=1e-4)


def test_space_reads_one_text_as_it_does_many_and_comes_back_from_its_state() -> None:
    space = TextSpace("ngrams", n_dimensions=3)
    points = space.fit_transform(TEXTS)
    alone = np.vstack([space.transform([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, points, atol=1e-5)
    plain, arrays = space.get_state()
    np.testing.assert_array_equal(TextSpace.from_state(plain, arrays).transform(TEXTS), space.transform(TEXTS))


def test_space_rejects_what_it_cannot_use() -> None:
    with pytest.raises(NotFittedError, match="fit first"):
        TextSpace("ngrams").transform(["a"])
    with pytest.raises(InputError, match="at least 2"):
        TextSpace("ngrams").fit(["a"])
    with pytest.raises(InputError, match="kind"):
        TextSpace("words").fit(["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="n_buckets"):
        HashedNgrams(1).embed(["a"])


def test_a_text_alone_is_placed_as_in_a_batch_also_after_fitting_again() -> None:
    texts = ["one card", "two cards lost", "a transfer", "transfers of money", "", "é 日本"]
    space = TextSpace("ngrams", n_dimensions=3).fit(["what else", "nothing here", "nor there", "at all"])
    for _ in range(2):
        together = space.fit(texts).transform(texts)
        alone = np.vstack([space.transform([text]) for text in texts])
        np.testing.assert_allclose(alone, together, atol=1e-5)
        space = TextSpace.from_state(*space.get_state())
