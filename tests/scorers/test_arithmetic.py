"""Statements about numbers: what is checked, what is put right, and what is no statement at all."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pilotfish.scorers.answers import is_stated, wrong_equations
from pilotfish.scorers.arithmetic import ArithmeticCheck, mended, statements
from pilotfish.types import Exchange, Reply, Request

# Right as a whole, though what looks like an equation in them is not one alone.
PARTS = [
    "a tip of .20*10 = $2.00", "6 birds * 2/3 = 4 birds", "1 - 3/5 = 2/5", "2(40+9) = 98", "3 1/2 - 2 = 1 1/2",
    "-5 + 3 = -2", "120 \u2013 80 - 15 = 25", "15 pages x 1/3 = 5 pages", "4 * 60 / 5 = 4 * 12",
    "$409 500 + $500 = $410 000", "$7,500/75% = $10,000",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("9.11 > 9.9", "9.11 < 9.9"),
        ("So 9.11 is bigger than 9.9.", "So 9.11 is smaller than 9.9."),
        ("2 + 2 = 5", "2 + 2 = 4"),
        ("We get 3 x 4 = 12 and 12 / 5 = 2.4.", "We get 3 x 4 = 12 and 12 / 5 = 2.4."),
        ("Nothing to count here.", "Nothing to count here."),
        ("100% - 80% = 30%, 3 / 6 = 50%, 20 + 30 = 50%", "100% - 80% = 20%, 3 / 6 = 50%, 20 + 30 = 50%"),
        ("Steps:\n- 2 + 2 = 5\n1. 3 + 3 = 7", "Steps:\n- 2 + 2 = 4\n1. 3 + 3 = 6"),
        *[(part, part) for part in PARTS],
    ],
)
def test_numbers_are_checked_and_mended(text, right):
    assert mended(text) == right
    assert all(s.holds for s in statements(mended(text)))


def test_comparisons_end_with_whole_numbers_and_endless_ones_take_no_time():
    assert [s.holds for s in statements("1,000 > 23, and 1,5 is less than 3.")] == [True, False]
    assert not statements("1 < 1,000 + 23")
    for text in ("1" * 100_000, "1," * 50_000, "1 > " + "1" * 100_000 + " ="):
        started = time.perf_counter()
        statements(text)
        assert time.perf_counter() - started < 2


def test_arithmetic_check_has_no_score_without_statements():
    found = ArithmeticCheck().score([Exchange(Request.of("?"), Reply(text)) for text in ("Hello.", "1 < 2", "")])
    assert np.isnan(found[[0, 2]]).all()
    assert found[1] == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "2 + 2 > 3", "3 * 4 > 10", "10-5 > 3", "2^3 > 7", "2 + 2 is greater than 3", "5 is less than 2 * 3",
        "0.5 > 20%", "900,000 < 1 million", "100 < 2e3", "There are 3\n> 5 apples", "10:30 + 1 = 11:30",
    ],
)  # fmt: skip
def test_what_is_part_of_a_longer_statement_is_none(text):
    assert statements(text) == []


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("1001 + 1002 = 2004", False), ("2024 - 1 = 2022", False), ("1,000 * 1,000 = 1,000,100", False),
        ("0.01 + 0.01 = 0.03", False), ("0.002 * 2 = 0.005", False), ("7 / 2 = 3", False), ("100 + 201 = 300", False),
        ("10 / 3 = 3.3", True), ("2 / 3 = 0.66", True), ("2 / 3 = 0.67", True), ("22 / 7 = 3.14", True),
        ("123 * 456 = 56,100", True), ("1234.56 * 3 = 3704", True), ("0.1 + 0.2 = 0.3", True),
    ],
)  # fmt: skip
def test_a_statement_may_be_rounded_but_not_wrong_in_its_last_digit(text, holds):
    assert [s.holds for s in statements(text)] == [holds]
    assert wrong_equations(text) == (int(holds), int(not holds))


def test_large_results_are_put_right_in_full():
    assert mended("123456 * 1234567 = 1") == "123456 * 1234567 = 152414703552"
    assert all(s.holds for s in statements(mended("123456 * 1234567 = 1, 1 / 1,000,000 = 2")))
    assert not is_stated(3.0, "1" + "0" * 400)
