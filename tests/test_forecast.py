"""The forecast verb: how wide its intervals are, and what it says of too little."""

from __future__ import annotations

import json

import pytest

from pilotfish.errors import InputError
from pilotfish.forecast import forecast


def files(tmp_path, scores_of):
    """Six models on four tasks, of which one is the proxy."""
    models = ["proxy-1b", *(f"m{k}-{k + 2}b" for k in range(5))]
    rows = [
        {"query": f"{task}?", "task": task, "scores": {m: s for m in models if (s := scores_of(m, t)) is not None}}
        for t, task in enumerate(("adding", "reading", "naming", "telling"))
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "card.toml").write_text("parameters = 9e9\n")
    return tmp_path / "card.toml", ["proxy-1b"], tmp_path / "t.jsonl"


def test_an_interval_of_few_errors_reaches_as_far_as_the_farthest_and_says_what_it_holds(tmp_path):
    many = forecast(*files(tmp_path, lambda m, t: 0.1 * (int(m[-2]) + t)))
    assert "90 % of 20 forecasts" in many.note
    card, proxies, tasks = files(tmp_path, lambda m, t: 0.1 * (int(m[-2]) + t))
    kept = [json.loads(line) for line in tasks.read_text().splitlines()][:1]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in kept))
    few = forecast(card, proxies, tasks)
    assert "the farthest of 5 forecasts" in few.note
    assert "so few hold 83 %, not 90 %" in few.note


def test_what_lacks_a_score_is_named(tmp_path):
    with pytest.raises(InputError, match="Proxy 'proxy-1b' has no score on task 'reading'"):
        forecast(*files(tmp_path, lambda m, t: None if (m, t) == ("proxy-1b", 1) else 0.5))
    with pytest.raises(InputError, match="The only model with scores is proxy-1b: give those of at least 2"):
        forecast(*files(tmp_path, lambda m, t: 0.5 if m == "proxy-1b" else None))
