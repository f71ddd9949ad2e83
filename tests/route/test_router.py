"""The router as a model: reasons, limits, caches, models added later, saving."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from pilotfish.errors import ContextLengthError, InputError, UpstreamError
from pilotfish.models.fake import FakeModel
from pilotfish.route.compound import TableGate
from pilotfish.route.explain import explain
from pilotfish.route.policies import RoutePolicy
from pilotfish.route.router import Candidate, Router
from pilotfish.scorers.kernel import KernelQuality
from pilotfish.scorers.preferences import MatrixFactorisation, SimilarityElo
from pilotfish.scorers.prompts import PromptFeatures
from pilotfish.scorers.quality import MeanQuality, NeighbourQuality, PenalisedQuality, RetargetedQuality
from pilotfish.traffic.table import ReplyTable
from pilotfish.types import Message, Request
from tests.models.fixtures import pulled

SUM, BOOK = Request.of("add 3 and 9 now"), Request.of("who wrote the old book 7")


@pytest.fixture
def router(table, says):
    models = {"small": says("small", 0.001), "large": says("large", 0.01)}
    return Router.fit(models, table, price=20.0)


def test_routes_in_order_with_reasons(router):
    replies = router.generate([SUM, BOOK, SUM])
    assert [r.model for r in replies] == ["large", "small", "large"]
    assert [r.text.split(" says ")[1] for r in replies] == [SUM.prompt, BOOK.prompt, SUM.prompt]
    assert replies[0].reason.startswith("router: large predicted 0.9")
    assert router.generate([]) == []


def test_the_next_best_answers_where_a_model_fails(table, says):
    broken = FakeModel(lambda request: UpstreamError("Gone.") if "book 7" in request.prompt else "x", name="x-2026")
    router = Router.fit({"small": broken, "large": says("large")}, table, price=20.0)
    replies = router.generate([BOOK, SUM, Request.of("who wrote the old book 8")])
    assert [reply.model for reply in replies] == ["large", "large", "small"]
    assert replies[0].reason.startswith("small failed (UpstreamError); router: large predicted")
    with pytest.raises(UpstreamError, match="Gone"):
        Router.fit({"small": broken, "large": broken}, table).generate([BOOK])


def test_context_tools_and_images_rule_models_out(table, says):
    models = {"small": says("small"), "large": says("large")}
    narrow = [Candidate("small", context=20, tools=False, images=False)]
    router = Router.fit(models, table, price=20.0, candidates=narrow)
    picture = Message("user", ({"type": "text", "text": BOOK.prompt}, {"type": "image_url", "image_url": {"url": "x"}}))
    tools = BOOK.replace(extra={"tools": [{"type": "function"}]})
    long = BOOK.replace(max_tokens=100)
    assert [r.model for r in router.generate([BOOK, tools, Request((picture,)), long])] == ["small"] + ["large"] * 3
    router = Router.fit(models, table, candidates=[*narrow, Candidate("large", context=30)])
    with pytest.raises(ContextLengthError, match="No model takes"):
        router.generate([BOOK.replace(max_tokens=100)])


def test_a_warm_cache_is_worth_staying_for(table, says):
    models = {"small": says("small"), "large": says("large")}
    # The history of 10,000 tokens costs the small model 0.08 dollars, the large one 0.1 dollars afresh and 0.01 warm.
    prices = [Candidate("small", price_in=8.0, price_cached=8.0), Candidate("large", price_in=10.0, price_cached=1.0)]
    router = Router.fit(models, table, price=20.0, candidates=prices)
    router.cost.lines_ = np.array([[0.0, 0.01], [0.0, 0.06]])
    talk = (Message("user", "x" * 35_000), Message("assistant", "y"), Message("user", BOOK.prompt))
    assert router.generate([Request(talk)])[0].model == "small"
    warm = Request(talk, metadata={"answered_by": "large"})
    assert router.generate([warm])[0].model == "large"
    np.testing.assert_allclose(router.weigh([Request(talk), warm])[1], [[0.09, 0.16], [0.09, 0.07]], atol=1e-5)
    instructed = Request((Message("system", "x" * 3500), Message("user", BOOK.prompt)))
    cached = instructed.replace(metadata={"answered_by": "large"})
    np.testing.assert_allclose(router.weigh([instructed, cached])[1], [[0.01, 0.06], [0.01, 0.051]])


def test_a_model_is_added_from_few_labels_and_nothing_else_changes(router, says):
    before, _ = router.predict([SUM.prompt, BOOK.prompt])
    queries = [f"add {i} and 5 now" if i % 2 else f"who wrote the old book {i}" for i in range(40)]
    good_at_sums = ReplyTable.of(queries, {"new": [float(i % 2) for i in range(40)]}, {"new": 0.002})
    router.add_model("new", says("new"), good_at_sums)
    after, costs = router.predict([SUM.prompt, BOOK.prompt])
    np.testing.assert_array_equal(after[:, :2], before)
    assert after[0, 2] > 0.6 > 0.4 > after[1, 2]
    assert costs[0, 2] == pytest.approx(0.002)
    assert [r.model for r in router.generate([SUM, BOOK])] == ["new", "small"]
    with pytest.raises(InputError, match="already routed"):
        router.add_model("new", says("new"), good_at_sums)
    with pytest.raises(InputError, match="has 3 scored"):
        router.add_model("other", says("o"), ReplyTable.of(queries[:3], {"other": [1, 0, 1]}, {"other": 0.1}))


@pytest.mark.parametrize("scorer", [SimilarityElo(), MatrixFactorisation(n_steps=5)])
def test_no_model_is_added_to_what_predicts_in_no_unit_of_scores(scorer, table, says):
    router = Router.fit({name: says(name) for name in table.models}, table, scorer)
    new = ReplyTable.of([f"add {i}" for i in range(9)], {"new": np.ones(9)}, {"new": 0.002})
    with pytest.raises(InputError, match="predicts in no unit of scores"):
        router.add_model("new", says("new"), new)


def test_saved_and_loaded_without_pickle(router, says, tmp_path):
    queries = [f"who wrote the old book {i}" for i in range(10)]
    router.add_model("new", says("new"), ReplyTable.of(queries, {"new": np.arange(10) % 2}, {"new": 0.5}))
    router.save(tmp_path / "r.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["r.npz"]
    again = Router.load(tmp_path / "r.npz", router.models)
    for one, other in zip(
        router.predict([SUM.prompt, BOOK.prompt]), again.predict([SUM.prompt, BOOK.prompt]), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=5e-3)
    assert [n for n, _ in again.decide([SUM, BOOK])] == [n for n, _ in router.decide([SUM, BOOK])]
    with pytest.raises(InputError, match="models has no"):
        Router.load(tmp_path / "r.npz", {"small": says("small")})
    (tmp_path / "bad.npz").write_bytes(b"not a router")
    with pytest.raises(InputError, match="no saved router"):
        Router.load(tmp_path / "bad.npz", {})


def test_what_reads_the_prompts_is_saved_by_its_name_and_not_asked_of_the_reader(table, says, tmp_path):
    pulled("wordllama")
    models = {"small": says("small"), "large": says("large")}
    plain, read = (Router.fit(models, table, KernelQuality(PromptFeatures.of(kind))) for kind in ("words", "static"))
    read.save(tmp_path / "r.npz")
    said, again = read.predict([SUM.prompt])[0], Router.load(tmp_path / "r.npz", models).predict([SUM.prompt])[0]
    np.testing.assert_allclose(again, said, atol=5e-3)
    assert np.abs(plain.predict([SUM.prompt])[0] - said).max() > 1e-6
    with pytest.raises(InputError, match=r"kind is 'statik': use one of words, static, encoder, language"):
        PromptFeatures.of("statik")


def test_routers_of_the_version_before_are_read(router, tmp_path):
    router.save(tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as file:
        arrays = dict(file)
    _about(arrays, version=1)
    del arrays["scorer.features.kind"]
    np.savez(tmp_path / "old.npz", **arrays)
    again = Router.load(tmp_path / "old.npz", router.models)
    np.testing.assert_allclose(again.predict([SUM.prompt])[0], router.predict([SUM.prompt])[0], atol=5e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: _about(a, version=3), "has format version 3 and this is version 2: upgrade Pilotfish"),
        (lambda a: _about(a, candidates=[{"name": "small", "speed": 3}]), "no saved router .*speed"),
        (lambda a: a.update(about=np.frombuffer(b"{}", dtype=np.uint8)), "no saved router .'version'"),
        (lambda a: a.pop("scorer.weights"), "no saved router .'weights'"),
        (lambda a: a.pop("cost.lines"), "no saved router .'cost.lines'"),
    ],
)
def test_a_saved_router_that_was_changed_is_refused(router, tmp_path, change, said):
    router.save(tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as file:
        arrays = dict(file)
    change(arrays)
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(InputError, match=said):
        Router.load(tmp_path / "r.npz", router.models)


def _about(arrays, **changed):
    about = json.loads(arrays["about"].tobytes()) | changed
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)


def test_what_cannot_be_saved_or_routed_is_refused(table, says, tmp_path):
    models = {"small": says("small"), "large": says("large")}
    router = Router.fit(models, table, NeighbourQuality())
    with pytest.raises(InputError, match="cannot be saved"):
        router.save(tmp_path / "x.npz")
    scorer = KernelQuality().fit(table.queries, table.scores, table.models)
    with pytest.raises(InputError, match="models has no 'large'"):
        Router({"small": models["small"]}, scorer, router.cost, 0.0)


def test_groups_of_a_table_reach_the_scorer_of_every_policy_and_are_kept(table, says, tmp_path):
    kernel, kinds = KernelQuality(), tuple("sums" if q.startswith("add") else "books" for q in table.queries)
    grouped = replace(table, groups=kinds)
    wrapped = (
        kernel,
        MeanQuality([kernel]),
        PenalisedQuality(kernel, {}),
        RetargetedQuality(kernel, lambda _, scores, __: scores),
    )
    fits = [lambda own=own: RoutePolicy("r", own).fit(grouped) for own in wrapped]
    for target in (None, np.maximum):
        fits.append(lambda target=target: TableGate(kernel, target).fit_table(grouped, "small", "large"))
    for fit in fits:
        kernel.groups_ = None
        fit()
        assert kernel.groups_.names_ == ("books", "sums")
    models = {"small": says("small"), "large": says("large")}
    router = Router.fit(models, grouped)
    router.save(tmp_path / "r.npz")
    again = Router.load(tmp_path / "r.npz", models)
    assert again.scorer.groups_.names_ == ("books", "sums")
    np.testing.assert_allclose(again.predict(table.queries)[0], router.predict(table.queries)[0], atol=5e-3)
    assert re.search(r"It looks like a query of 'books' \((9\d|100)%\)\.$", explain(again, BOOK).reason)
    assert "looks like" not in explain(Router.fit(models, replace(table, groups=())), BOOK).reason
