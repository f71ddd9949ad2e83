"""Reply tables: reading, splitting, refusing."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.errors import InputError
from pilotfish.traffic import Call, TrafficLog
from pilotfish.traffic.table import ReplyTable, refuse_shared_queries


def small(n=6):
    return ReplyTable.of(
        [f"q{i}" for i in range(n)],
        {"a": np.arange(n) % 2, "b": np.ones(n)},
        {"a": 0.1, "b": 1.0},
        replies={"a": [f"ra{i}" for i in range(n)], "b": [f"rb{i}" for i in range(n)]},
        groups=[f"g{i % 3}" for i in range(n)],
    )


def test_jsonl_round_trip(tmp_path):
    table = small()
    scores = table.scores.copy()
    scores[2, 0] = np.nan
    table = ReplyTable(table.queries, table.models, scores, table.costs, replies=table.replies, groups=table.groups)
    table.to_jsonl(tmp_path / "t.jsonl")
    back = ReplyTable.from_jsonl(tmp_path / "t.jsonl")
    assert (back.queries, back.models, back.replies, back.groups) == (
        table.queries,
        table.models,
        table.replies,
        table.groups,
    )
    np.testing.assert_array_equal(back.scores, table.scores)
    np.testing.assert_array_equal(back.costs, table.costs)
    assert [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]


def test_answers_not_asked_are_nan():
    table = ReplyTable.from_rows(
        [
            {"query": "x", "model": "a", "score": True, "cost": 1},
            {"query": "y", "model": "b", "score": 0, "cost": 2.0},
        ]
    )
    np.testing.assert_array_equal(table.asked, [[True, False], [False, True]])
    assert table.scores[0, 0] == 1.0
    with pytest.raises(InputError, match="No query has a score"):
        table.complete()


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.integers(0, 5))
def test_split_shares_no_text_and_loses_nothing(texts, seed):
    table = ReplyTable.of(texts, {"m": np.zeros(len(texts))}, {"m": 1.0})
    parts = table.split((0.5, 0.25, 0.25), seed=seed)
    assert sorted(q for part in parts for q in part.queries) == sorted(texts)
    refuse_shared_queries(a=parts[0], b=parts[1], c=parts[2])


def test_split_by_group_keeps_groups_whole():
    fit, test = small(30).split((0.67, 0.33), seed=1, by="group")
    assert fit.n_queries == 20
    assert not set(fit.groups) & set(test.groups)


def test_shared_queries_are_refused_with_the_count():
    table = small()
    with pytest.raises(InputError, match="2 queries are in both fit and test"):
        refuse_shared_queries(fit=table.subset([0, 1, 2]), test=table.subset([1, 2, 3]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"costs": {"a": np.inf, "b": 1.0}}, "is infinite"),
        ({"costs": {"a": -1.0, "b": 1.0}}, "at least 0"),
        ({"costs": {"a": np.nan, "b": 1.0}}, "have no cost"),
        ({"costs": {"a": 1.0}}, "no column for model 'b'"),
        ({"scores": {"a": [1, np.inf], "b": [0, 1]}}, "infinite"),
        ({"scores": {"a": [1], "b": [0, 1]}}, "one number per query"),
        ({"groups": ["x"]}, "one per query"),
        ({"scores": {"a": ["good", 0], "b": [1, 1]}}, "scores of model 'a' are no numbers"),
        ({"replies": {"a": ["x"], "b": ["x", "y"]}}, "replies of model 'a' are 1 for 2 queries"),
        ({"replies": {"a": ["x", "y"]}}, "replies of model 'b' are 0 for 2 queries"),
    ],
)
def test_bad_tables_are_refused(change, said):
    given = {"scores": {"a": [1, 0], "b": [1, 1]}, "costs": {"a": 0.1, "b": 1.0}, "groups": (), **change}
    with pytest.raises(InputError, match=said):
        ReplyTable.of(["x", "y"], **given)


def test_queries_that_are_no_text_are_refused():
    with pytest.raises(InputError, match="Query 1 is 7: give queries as text"):
        ReplyTable.of(["x", 7], {"a": [1, 0]}, {"a": 1.0})


def test_a_table_is_split_in_the_room_of_its_texts():
    table = ReplyTable.of([*map(str, range(2000)), "x" * 100_000], {"a": np.zeros(2001)}, {"a": 1.0})
    tracemalloc.start()
    table.split((0.5, 0.5))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 10e6


def test_half_of_an_emoji_is_read_and_written_again(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"query": "a\\ud83d", "model": "m", "score": 1, "cost": 1}')
    table = ReplyTable.from_jsonl(tmp_path / "t.jsonl")
    table.to_jsonl(tmp_path / "again.jsonl")
    assert ReplyTable.from_jsonl(tmp_path / "again.jsonl").queries == table.queries == ("a\ufffd",)


def test_a_table_that_could_not_be_read_again_is_not_written(tmp_path):
    table = ReplyTable.of(["x", "y", "x"], {"a": [1, 0, 0]}, {"a": 1.0})
    with pytest.raises(InputError, match="1 queries occur more than once"):
        table.to_jsonl(tmp_path / "t.jsonl")
    assert not list(tmp_path.iterdir())


def test_same_model_twice_is_refused():
    with pytest.raises(InputError, match="'a' more than once"):
        ReplyTable(("q",), ("a", "a"), np.zeros((1, 2)), np.ones((1, 2)))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("{", "line 1 is no JSON"),
        ("[]", "line 1 is no JSON object"),
        ("[" * 100_000, "line 1 is no JSON"),
        ('{"query": "x"}', "model None"),
        ('{"query": "x", "model": "a", "score": "good"}', "score 'good'"),
        ('{"query":"x","model":"a","cost":1}\n' * 2, "1 answers occur more than once"),
        ('{"query":"x","model":"a","cost":1' + "0" * 400 + "}", "cost inf"),
    ],
)
def test_bad_jsonl_is_refused(tmp_path, lines, said):
    path = tmp_path / "t.jsonl"
    path.write_text(lines)
    with pytest.raises(InputError, match=said):
        ReplyTable.from_jsonl(path)


def test_split_refuses_bad_shares_and_missing_groups():
    with pytest.raises(InputError, match="positive shares"):
        small().split((0.9, 0.2))
    table = ReplyTable.of(["x"], {"m": [1]}, {"m": 1.0})
    with pytest.raises(InputError, match="no groups"):
        table.split((0.5,), by="group")
    with pytest.raises(InputError, match="seed is -1"):
        table.split((0.5,), seed=-1)


def test_numbers_survive_json(tmp_path):
    small().to_jsonl(tmp_path / "t.jsonl")
    first = json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])
    assert first == {"query": "q0", "model": "a", "reply": "ra0", "score": 0.0, "cost": 0.1, "group": "g0"}


def test_columns_are_found_by_name():
    table = small()
    assert table.of_models(["b"]).scores.shape == (6, 1)
    with pytest.raises(InputError, match="no model 'z'"):
        table.column("z")


def test_logged_calls_become_a_table(tmp_path):
    path = tmp_path / "t.db"
    with TrafficLog(path) as log:
        log.append(Call.of("a", "card", task="desk", model="large", cost=0.2, prediction="fee"))
        log.append(
            Call.of("b", "fee", task="desk", model="large", answered_by="student:v1", prediction="fee", audit="card")
        )
        log.append(Call.of("c", "card", task="desk", model="large", cost=0.2, gold="fee", prediction="fee"))
    table = ReplyTable.from_traffic("desk", path)
    assert table.models == ("large", "student")
    np.testing.assert_array_equal(table.scores, [[1, 0], [1, 0], [0, 1]])
    assert table.replies[1] == ("card", "fee")
    with pytest.raises(InputError, match="no answered calls"):
        ReplyTable.from_traffic("other", path)
