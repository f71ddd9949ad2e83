"""Policies on recorded replies: what they may look at, what they cost, and what is certified and served."""

from __future__ import annotations

import numpy as np
import pytest

from pilotfish.errors import InputError, ModelError, NotFittedError
from pilotfish.methods.build import make_policy
from pilotfish.methods.cascades import guaranteed_takeover
from pilotfish.models.fake import FakeModel
from pilotfish.route.certify import certify, loss_p_value, spend_upper
from pilotfish.route.compare import compare
from pilotfish.route.compound import AnyOf, Blender, LearnedPolicy, RankPolicy, TableGate
from pilotfish.route.deploy import Gate, deploy, serve, setting_within
from pilotfish.route.explain import explain
from pilotfish.route.policies import (
    AlwaysPolicy,
    CascadePolicy,
    GatePolicy,
    OraclePolicy,
    RandomPolicy,
    RoutePolicy,
    prices,
)
from pilotfish.route.router import Candidate
from pilotfish.rules import Threshold
from pilotfish.scorers.agreement import Agreement
from pilotfish.scorers.answers import AnswerQuality
from pilotfish.scorers.costs import CostModel, PerCost
from pilotfish.scorers.kernel import KernelQuality
from pilotfish.scorers.preferences import PairRanker
from pilotfish.scorers.quality import NeighbourQuality, PenalisedQuality
from pilotfish.traffic.table import ReplyTable
from pilotfish.types import Message, Reply, Request

ORDER = ("small", "large")
MAKERS = [
    lambda: AlwaysPolicy("large"),
    lambda: RandomPolicy(),
    lambda: RoutePolicy("kernel", KernelQuality()),
    lambda: RoutePolicy("forc", KernelQuality(second_stage=False), by_budget=True, n_settings=6),
    lambda: CascadePolicy("cascade", ORDER, (AnswerQuality(),)),
    lambda: CascadePolicy("gain", ORDER, (AnswerQuality(),), gain=True),
    lambda: CascadePolicy("gain per cost", ORDER, (PerCost(AnswerQuality()),), gain=True),
    lambda: GatePolicy("gate", *ORDER, TableGate(KernelQuality())),
    lambda: LearnedPolicy("learned", ORDER, n_settings=4),
    lambda: RankPolicy("rank", ORDER, PairRanker()),
    lambda: AnyOf("any", [CascadePolicy("c", ORDER, (AnswerQuality(),), n_settings=5), AlwaysPolicy("large")]),
]


def parts(table):
    return table.split((0.5, 0.25, 0.25), seed=0)


@pytest.mark.parametrize("make", MAKERS)
def test_the_order_of_a_tables_models_does_not_matter(make, table):
    fit, calibrate, _ = parts(table)
    policy, turned = make().fit(fit), calibrate.of_models(["large", "small"])
    for setting in policy.settings(calibrate)[::5]:
        one, other = policy.run(calibrate, setting), policy.run(turned, setting)
        assert np.array_equal(one.qualities(calibrate), other.qualities(turned))
        assert np.allclose(one.costs(calibrate), other.costs(turned))


def test_compare_takes_tables_whose_models_stand_in_another_order(table):
    fit, calibrate, test = parts(table)
    turned = [part.of_models(["large", "small"]) for part in (calibrate, test)]
    policies = [RoutePolicy("kernel", KernelQuality())]
    given = compare(fit, policies, 0.006, calibrate=calibrate, test=test)
    assert compare(fit, policies, 0.006, calibrate=turned[0], test=turned[1]).to_json() == given.to_json()
    with pytest.raises(InputError, match="no model 'small'"):
        compare(fit, policies, 0.006, calibrate=calibrate, test=test.of_models(["large"]))


@pytest.mark.parametrize("make", MAKERS)
def test_every_policy_keeps_the_contract(make, table):
    fit, calibrate, test = parts(table)
    policy = make().fit(fit)
    settings = policy.settings(calibrate)
    assert settings
    blind = ReplyTable(test.queries, test.models, np.zeros_like(test.scores), test.costs, replies=test.replies)
    costs = []
    for setting in settings:
        choice = policy.run(test, setting)
        assert choice.tried[np.arange(test.n_queries), choice.answered].all()
        np.testing.assert_array_equal(choice.answered, policy.run(blind, setting).answered)
        assert (choice.costs(test) >= test.costs[np.arange(test.n_queries), choice.answered] - 1e-15).all()
        costs.append(choice.costs(test).mean())
    assert costs[0] <= costs[-1] + 1e-9


def test_both_ends_of_a_cascade_are_reached(table):
    fit, calibrate, _ = parts(table)
    policy = CascadePolicy("c", ORDER, (AnswerQuality(),)).fit(fit)
    settings = policy.settings(calibrate)
    assert (policy.run(calibrate, settings[0]).answered == 0).all()
    last = policy.run(calibrate, settings[-1])
    assert (last.answered == 1).all()
    # An answer that is never kept is not asked for, on a table and in service.
    np.testing.assert_allclose(last.costs(calibrate), 0.01)
    models = {name: FakeModel(name, name=name) for name in ORDER}
    assert [reply.model for reply in serve(policy, settings[-1], models).generate([Request.of("x")])] == ["large"]
    assert not models["small"].calls


def test_samples_are_paid_for(three):
    policy = CascadePolicy("c", ("small", "large"), (Agreement(),), samples_of=("middle",))
    np.testing.assert_allclose(policy.run(three, (2.0,)).costs(three), 0.014)


def test_three_stages_search_thresholds_together(three):
    fit, calibrate, _ = parts(three)
    policy = CascadePolicy("c", three.models, (AnswerQuality(), AnswerQuality())).fit(fit)
    settings = policy.settings(calibrate)
    means = [policy.run(calibrate, s).costs(calibrate).mean() for s in settings]
    assert means == sorted(means)
    assert all(len(s) == 2 for s in settings)


def test_prices_order_choices_from_cheap_to_dear():
    scores = np.array([[0.2, 0.9], [0.8, 0.9], [0.9, 0.5]])
    costs = np.tile([1.0, 3.0], (3, 1))
    found = prices(scores, costs, 20)
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.35
    assert found[-1] < -0.2


def test_cost_model_fits_a_line_and_refuses_no_cost():
    model = CostModel().fit(["a", "aaa", "aaaaa"], np.array([[1.0], [2.0], [3.0]]))
    np.testing.assert_allclose(model.predict(["aaaaaaa"]), [[4.0]])
    with pytest.raises(InputError, match="no cost"):
        CostModel().fit(["a"], np.array([[np.nan]]))


def test_cascades_need_replies_and_one_scorer_a_stage(table):
    bare = ReplyTable.of(table.queries, dict(zip(ORDER, table.scores.T, strict=True)), {"small": 0.1, "large": 1.0})
    with pytest.raises(InputError, match="no recorded replies"):
        CascadePolicy("c", ORDER, (AnswerQuality(),)).fit(bare)
    with pytest.raises(InputError, match="one scorer"):
        CascadePolicy("c", ORDER, ())


def test_penalties_are_put_on_models_of_the_table(table):
    with pytest.raises(InputError, match="penalties names 'nobody', which is no model here"):
        RoutePolicy("penalised", PenalisedQuality(KernelQuality(), {"nobody": 1.0})).fit(table)


def test_penalties_count_in_service_too(table, says):
    models = {name: says(name) for name in table.models}
    for penalty, chosen in ((0.0, "large"), (5.0, "small")):
        policy = RoutePolicy("tryage", PenalisedQuality(KernelQuality(), {"large": penalty})).fit(table)
        [reply] = serve(policy, 0.0, models).generate([Request.of("add 3 and 9 now")])
        assert reply.model == chosen


def test_ties_go_to_the_cheaper_model():
    table = ReplyTable.of([f"q{i}" for i in range(40)], {"a": np.ones(40), "b": np.ones(40)}, {"a": 1.0, "b": 0.1})
    choice = OraclePolicy().run(table, 0.0)
    assert (choice.answered == 1).all()


def test_certificates_hold_on_fresh_queries(table):
    fit, calibrate, test = table.split((0.3, 0.4, 0.3), seed=1)
    policy = RoutePolicy("kernel", KernelQuality()).fit(fit)
    proof = certify(policy, calibrate, strong="large", level=0.1)
    choice = policy.run(test, proof.setting)
    assert 0.1 < proof.weak_share < 0.9
    assert test.scores[:, 1].mean() - choice.qualities(test).mean() <= 0.1
    assert choice.costs(test).mean() <= proof.spend_upper
    assert certify(policy, calibrate.subset(range(8)), strong="large", level=0.01).setting is None
    grouped = certify(policy, calibrate, strong="large", level=0.5, by_group=True)
    assert grouped.n == 10
    with pytest.raises(InputError, match="above 0"):
        certify(policy, calibrate, strong="large", level=0)


def test_what_assigns_a_whole_table_is_certified_as_it_decides_one_query(table):
    policies = [RoutePolicy(name, KernelQuality(), by_budget=name == "forc") for name in ("forc", "by price")]
    report = compare(table, policies, budget=0.006, level=0.2)
    assert report.row("forc").certificate.setting is not None
    assert report.row("forc").certificate.setting == report.row("by price").certificate.setting


def test_certificates_are_rarely_broken():
    rng = np.random.default_rng(0)
    broken = 0
    for seed in range(200):
        losses = rng.choice([-1.0, 0.0, 1.0], 400, p=[0.05, 0.8, 0.15])
        broken += loss_p_value(losses, 0.1, 1.0, 0.05, seed) <= 0.05
    assert broken / 200 <= 0.05
    assert spend_upper(np.array([0.0, 1.0] * 500), 0.05, 1.0) < 0.56
    assert spend_upper(np.zeros(5), 0.05, 0.0) == 0.0


def test_spend_is_bounded_where_the_dear_model_is_rarely_asked():
    class Number:
        def score(self, items):
            return np.array([float(r.prompt) for r in items])

    rng, broken = np.random.default_rng(0), 0
    for _ in range(200):
        drawn = rng.random(150)
        queries = [str(x) for x in drawn]
        table = ReplyTable.of(queries, {"w": np.ones(150), "s": np.arange(150) > 0}, {"w": 0.01, "s": 1.0})
        proof = certify(GatePolicy("gate", "w", "s", Number()), table, strong="s", level=0.1, settings=[0.01, np.inf])
        assert proof.setting == 0.01
        broken += proof.spend_upper < 0.01 * 1.0 + 0.99 * 0.01
    assert broken / 200 <= 0.05


def test_settings_found_by_score_are_not_certified_on_the_queries_that_found_them(three, table):
    fit, calibrate = three.split((0.5, 0.5), seed=0)
    for slug in ("calibrated_cascade", "frugal_gpt"):
        policy = make_policy(slug, three).fit(fit)
        with pytest.raises(InputError, match=rf"{slug} finds its settings by their scores.*settings=policy.settings"):
            guaranteed_takeover(policy, calibrate, "large", 0.3)
        assert guaranteed_takeover(policy, calibrate, "large", 0.3, settings=policy.settings(fit)).setting is not None
    of_two = make_policy("calibrated_cascade", table).fit(parts(table)[0])
    assert guaranteed_takeover(of_two, parts(table)[1], "large", 0.3).setting is not None


def test_policies_become_models(table, says):
    fit, calibrate, _ = parts(table)
    models = {"small": says("small", 0.001), "large": says("large", 0.01)}
    asked = [Request.of("add 3 and 9 now"), Request.of("who wrote the old book 7")]
    router = deploy(RoutePolicy("kernel", KernelQuality()), models, fit, calibrate, budget=0.006)
    assert [r.model for r in router.generate(asked)] == ["large", "small"]
    gate = deploy(GatePolicy("gate", *ORDER, TableGate(KernelQuality())), models, fit, calibrate, budget=0.006)
    assert isinstance(gate, Gate)
    assert [r.model for r in gate.generate(asked)] == ["large", "small"]
    assert gate.generate([]) == []
    cascade = serve(CascadePolicy("c", ORDER, (AnswerQuality(),)).fit(fit), (float("-inf"),), models)
    assert [r.model for r in cascade.generate(asked)] == ["small", "small"]
    assert serve(AlwaysPolicy("large"), "large", models) is models["large"]
    with pytest.raises(InputError, match="cheapest model costs"):
        deploy(RoutePolicy("kernel", KernelQuality()), models, fit, calibrate, budget=0.0001)
    with pytest.raises(InputError, match="cannot be served"):
        serve(OraclePolicy(), 0.0, models)
    with pytest.raises(InputError, match="no 'large'"):
        serve(AlwaysPolicy("large"), "large", {})
    with pytest.raises(InputError, match="raise the budget"):
        setting_within(AlwaysPolicy("large").fit(fit), calibrate, 0.001)


def test_gate_sends_what_has_no_score_to_the_strong_model(says):
    class Nothing:
        def score(self, items):
            return np.full(len(items), np.nan)

    gate = Gate(says("weak"), says("strong"), Nothing(), Threshold(float("-inf")))
    assert gate.generate([Request.of("x")])[0].model == "strong"


def test_gates_and_blenders_do_without_a_model_that_fails(table, says):
    class Sure:
        def score(self, items):
            return np.ones(len(items))

    broken = FakeModel(lambda request: ModelError("Gone.") if "a" in request.prompt else "here")
    replies = Gate(broken, says("strong"), Sure(), Threshold(0.5)).generate([Request.of("a"), Request.of("b")])
    assert [reply.model for reply in replies] == ["strong", "fake"]
    assert "weak model failed (ModelError), strong model" in replies[0].reason
    ranker = PairRanker().fit(["q"] * 4, [["= 1 sure", "= 2 perhaps"]] * 4, np.array([[1.0, 0.0]] * 4))
    [left] = Blender([broken, says("b")], ranker, names=("one", "other")).generate([Request.of("a")])
    assert (left.model, left.reason) == ("b", "ranked first of 1 (other, win rate 1.00)")
    with pytest.raises(ModelError, match="Gone"):
        Blender([broken, broken], ranker).generate([Request.of("a")])


@pytest.mark.parametrize(
    "policy",
    [
        GatePolicy("gate", "small", "large", TableGate(KernelQuality())),
        CascadePolicy("cascade", ("small", "large"), (AnswerQuality(),)),
        RoutePolicy("route", KernelQuality()),
    ],
    ids=lambda policy: policy.name,
)
def test_limits_hold_for_every_kind_of_policy(policy, table, says):
    models = {name: says(name) for name in table.models}
    setting = {"gate": float("-inf"), "cascade": (float("-inf"),), "route": 1e6}[policy.name]
    served = serve(policy.fit(table), setting, models, [Candidate("small", context=20, tools=False, images=False)])
    request = Request.of("who wrote the old book 7")
    tools = request.replace(extra={"tools": [{"type": "function"}]})
    picture = Request((Message("user", ({"type": "image_url", "image_url": {"url": "x"}},)),))
    asked = [request, tools, picture, request.replace(max_tokens=100), Request.of("who " * 40)]
    assert [reply.model for reply in served.generate(asked)] == ["small"] + ["large"] * 4
    assert models["small"].asked == [request.prompt]


def test_what_the_weak_model_cannot_take_is_not_scored(says):
    class Asks:
        def score(self, items):
            assert not any(item.extra for item in items)
            return np.ones(len(items))

    gate = Gate(says("s"), says("l"), Asks(), Threshold(0.5), "s", "l", Candidate("s", tools=False))
    asked = [Request.of("x"), Request.of("y", extra={"tools": [{}]}), Request.of("z")]
    assert [reply.model for reply in gate.generate(asked)] == ["s", "l", "s"]
    assert explain(gate, asked[1]).reason == "l answers: the prompt has no score, or is not one that s can take."


def test_blender_ranks_sums_and_fuses(table, says):
    replies = [[row[0], row[1]] for row in table.replies]
    ranker = PairRanker().fit(table.queries, replies, table.scores)
    models = [says("a", 1.0), says("b", 2.0)]
    [reply] = Blender(models, ranker).generate([Request.of("x")])
    assert reply.usage.cost == 3.0
    [fused] = Blender(models, ranker, fuser=says("fuser", 4.0)).generate([Request.of("x")])
    assert (fused.model, fused.usage.cost) == ("fuser", 7.0)
    calling = FakeModel(lambda _: Reply("", "c", extra={"tool_calls": [{}]}))
    for order, told in (([calling, *models], "b"), ([*models, calling], "c")):
        [reply] = Blender(order, ranker, fuser=says("fuser")).generate([Request.of("x")])
        assert (reply.model, reply.usage.cost) == (told, 3.0)
    with pytest.raises(InputError, match="at least 2"):
        Blender(models[:1], ranker)


def test_neighbours_are_a_baseline_too(table):
    policy = RoutePolicy("knn", NeighbourQuality(k=5)).fit(parts(table)[0])
    assert len(policy.settings(parts(table)[1])) > 2


def test_within_a_budget_cheap_questions_go_on_before_dear_ones():
    rng = np.random.default_rng(0)
    dear = rng.random(400) < 0.5
    queries = [f"{'a long riddle ' * 8 if d else 'a sum'} {i}" for i, d in enumerate(dear)]
    gain = rng.random(400) < 0.7
    costs = {"small": np.full(400, 0.001), "large": np.where(dear, 0.1, 0.01)}
    scores = {"small": 1.0 - gain, "large": np.ones(400)}
    replies = {"small": [f"= {i} {'perhaps' if g else 'sure'}" for i, g in enumerate(gain)], "large": ["="] * 400}
    table = ReplyTable.of(queries, scores, costs, replies=replies)
    fit, calibrate, test = parts(table)
    reached = {}
    for scorer in (AnswerQuality(), PerCost(AnswerQuality())):
        policy = CascadePolicy("c", ORDER, (scorer,), gain=True).fit(fit)
        choice = policy.run(test, setting_within(policy, calibrate, 0.01))
        reached[type(scorer).__name__] = float(choice.qualities(test).mean())
    assert reached["PerCost"] > reached["AnswerQuality"] + 0.1


def test_gains_per_dollar_need_dollars():
    with pytest.raises(InputError, match="no cost above zero"):
        PerCost(AnswerQuality()).fit_costs([], np.zeros(0))
    with pytest.raises(NotFittedError, match="fit_costs"):
        PerCost(AnswerQuality()).score([])
