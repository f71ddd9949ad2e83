"""Packed products are the products for any number of rows and threads; no row hangs on those beside it."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")

from pilotfish.models import products  # noqa: E402
from pilotfish.models.products import PackedMatrix, multiplies  # noqa: E402

if not multiplies(torch.zeros(32, 2)):
    pytest.skip("this processor is multiplied for by torch", allow_module_level=True)


@pytest.mark.parametrize("n", [0, 1, 2, 5, 6, 7, 13, 14, 15, 28, 100])
@pytest.mark.parametrize(("n_out", "n_in"), [(32, 1), (96, 7), (160, 576)])
def test_a_product_is_that_of_torch(threads: int, n: int, n_out: int, n_in: int) -> None:
    made = torch.Generator().manual_seed(n)
    weight, rows = (torch.randn(shape, generator=made) for shape in ((n_out, n_in), (n, n_in)))
    wanted = (rows.double() @ weight.double().T).float()
    assert torch.allclose(PackedMatrix(weight).product(rows), wanted, atol=1e-4)


def test_a_row_has_the_same_result_alone_and_beside_others(threads: int) -> None:
    rows = torch.randn(40, 64)
    matrix = PackedMatrix(torch.randn(128, 64))
    together = matrix.product(rows)
    assert all(torch.equal(matrix.product(rows[i : i + 1])[0], together[i]) for i in range(40))


def test_rows_of_any_shape_and_stride() -> None:
    weight = torch.randn(64, 8)
    rows = torch.randn(8, 5, 3).permute(2, 1, 0)
    assert torch.allclose(PackedMatrix(weight).product(rows), rows @ weight.T, atol=1e-5)
    assert PackedMatrix(weight).product(rows).shape == (3, 5, 64)


def test_a_process_that_was_copied_goes_on_alone() -> None:
    weight, rows = torch.randn(64, 8), torch.randn(3, 8)
    matrix = PackedMatrix(weight)
    wanted = matrix.product(rows)
    if not hasattr(os, "fork"):
        pytest.skip("no copies of processes here")
    child = os.fork()
    if child == 0:
        os._exit(0 if products._alone and torch.equal(matrix.product(rows), wanted) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_has_another_shape_or_type_is_not_multiplied_here() -> None:
    assert not multiplies(torch.zeros(33, 2))
    assert not multiplies(torch.zeros(64, 2, dtype=torch.bfloat16))
