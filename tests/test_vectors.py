"""Products and lengths of rows."""

from __future__ import annotations

import numpy as np
import pytest

from pilotfish.vectors import product, unit_rows


@pytest.mark.parametrize("n_rows", [1, 4, 5])
def test_product_is_the_matrix_product(n_rows: int) -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.random((n_rows, 7), dtype=np.float32), rng.random((7, 3), dtype=np.float32)
    np.testing.assert_allclose(product(X, Y), X @ Y, rtol=1e-5)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_rows_get_length_one_in_their_precision(kind: type[np.floating]) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 900)).astype(kind)
    rows[2] = 0
    scaled = unit_rows(rows)
    assert scaled.dtype == kind
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), [1, 1, 0, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(scaled[0], rows[0] / np.linalg.norm(rows[0]), rtol=1e-5)
