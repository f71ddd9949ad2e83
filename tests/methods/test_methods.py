"""The registry: every row of the cascades and routing tables is there, says what it needs, and can be built by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pilotfish.errors import InputError
from pilotfish.methods import cards, find, method
from pilotfish.methods.build import Route, check_route, make_policy, policies_without_models
from pilotfish.methods.cascades import cascade_aware_training, guaranteed_takeover, selective_query
from pilotfish.methods.routing import hybrid_llm, routing_benchmark
from pilotfish.route.budget import parse_budget
from pilotfish.route.compare import compare
from pilotfish.route.policies import RoutePolicy
from pilotfish.scorers.kernel import KernelQuality
from pilotfish.traffic.table import ReplyTable
from pilotfish.types import Reply, Request, TokenLogProb
from tests.route.conftest import Says, make_table

CASCADES = {
    "query_level_uncertainty", "calibrated_cascade", "selective_query", "frugal_ml", "frugal_gpt", "idk_cascade",
    "cascade_aware_training", "treacle", "verbalised_confidence", "chain_of_verification", "automix",
    "consistency_cascade", "guaranteed_takeover",
}  # fmt: skip
ROUTING = {
    "cp_router", "smoothie", "tag_router", "llm_blender", "hybrid_llm", "zooter", "tryage", "orchestra_llm",
    "route_llm", "forc", "routing_benchmark",
}  # fmt: skip

DECODING = {
    "speculative_decoding", "speculative_sampling", "lookup_drafting", "self_drafting", "cross_vocabulary",
    "speed_controller", "comblm", "inference_policy_adapter", "proxy_tuning", "contrastive_decoding",
    "contrastive_grounding", "induce_then_contrast", "private_contrast", "weak_to_strong_search",
}  # fmt: skip


HEADS = {"cascade_aware_training", "selective_query"}


def test_every_row_is_there_with_its_card():
    assert {card.slug for card in cards("cascades")} >= CASCADES
    assert {card.slug for card in cards("routing")} >= ROUTING
    assert {card.slug for card in cards()} >= DECODING
    for card in cards():
        assert card.summary.endswith(".")
        assert len(card.summary) < 130
        assert card.paper
        assert card.command.startswith(("pilotfish", "python"))
    with pytest.raises(InputError, match="no method 'nothing'"):
        find("nothing")
    with pytest.raises(InputError, match="registered twice"):

        @method("forc", paper="x", group="routing", needs="black box", command="x")
        def other() -> None:
            """Another."""

    with pytest.raises(InputError, match="no docstring"):

        @method("bare", paper="x", group="routing", needs="black box", command="x")
        def bare() -> None:
            pass


@pytest.fixture(scope="module")
def three():
    return make_table(240, models=("small", "middle", "large"))


@pytest.fixture(scope="module")
def labelled(three):
    return answered_by_label(three)


def answered_by_label(three):
    """Two models answer what a query is about; the small one is right on sums only."""
    right = ["Book" if "book" in query else "Sum" for query in three.queries]
    replies = {"small": ["sum"] * len(right), "large": right}
    scores = {"small": [float(r == "Sum") for r in right], "large": [1.0] * len(right)}
    return ReplyTable.of(three.queries, scores, {"small": 0.001, "large": 0.01}, replies=replies)


@pytest.fixture(scope="module")
def confident(three):
    """Most replies state a confidence, high where they are right."""
    told = [
        tuple(
            f"{text} Confidence: {90 if score else 20}%" if i % 9 else text
            for text, score in zip(row, right, strict=True)
        )
        for i, (row, right) in enumerate(zip(three.replies, three.scores, strict=True))
    ]
    return replace(three, replies=tuple(told))


class Sees(Says):
    """Answers yes to what holds a book, with probabilities."""

    def generate(self, requests):
        said = ["Yes" if "book" in r.prompt else "No" for r in requests]
        tops = [((s, -0.1), ("No" if s == "Yes" else "Yes", -2.4)) for s in said]
        tokens = [(TokenLogProb(s, -0.1, top),) for s, top in zip(said, tops, strict=True)]
        return [Reply(s, self.name, log_probs=token) for s, token in zip(said, tokens, strict=True)]


WITHOUT = [
    "calibrated_cascade", "consistency_cascade", "forc", "frugal_gpt", "frugal_ml", "hybrid_llm", "idk_cascade",
    "kernel_router", "llm_blender", "orchestra_llm", "route_llm", "tag_router", "treacle", "tryage", "zooter",
]  # fmt: skip


@pytest.mark.parametrize("slug", WITHOUT)
def test_policies_run_by_name_from_a_table_alone(slug, three):
    fit, calibrate, test = three.split((0.5, 0.25, 0.25), seed=0)
    options = {"length": 2} if slug == "frugal_gpt" else {}
    policy = make_policy(slug, fit, options=options).fit(fit)
    settings = policy.settings(calibrate)
    choice = policy.run(test, settings[len(settings) // 2])
    assert choice.qualities(test).mean() > 0.3


@pytest.mark.parametrize("slug", ["query_level_uncertainty", "chain_of_verification", "automix"])
def test_policies_that_ask_a_live_model(slug, three):
    part = three.subset(range(60))
    with pytest.raises(InputError, match="needs"):
        make_policy(slug, part)
    policy = make_policy(slug, part, live={"small": Sees("small")}).fit(part)
    assert policy.settings(part)


def test_a_live_model_is_asked_once_for_each_query_of_a_table(three):
    part, asked = three.subset(range(60)), []

    class Counts(Sees):
        def generate(self, requests):
            asked.extend(requests)
            return super().generate(requests)

    models = {name: Counts(name) for name in three.models}
    Route({"policy": "query_level_uncertainty", "budget": 1.0}, part, models)
    assert len(asked) == 15


def test_conformal_router_learns_its_set_then_routes(three):
    asked = {"policy": "cp_router", "budget": 1.0, "options": {"options": ["Yes", "No"], "delta": 0.4}}
    with pytest.raises(InputError, match="begins with one of Yes, No"):
        Route(asked, three, {name: Sees(name) for name in three.models})
    replies = [["Yes" if "book" in query else "No"] * 3 for query in three.queries]
    told = replace(three, replies=replies)
    route = Route({**asked, "chosen": -1.0}, told, {name: Sees(name) for name in three.models})
    said = [reply.model for reply in route.generate([Request.of("the book?"), Request.of("it?")])]
    assert said == ["small", "small"]


def test_smoothie_needs_replies_only(three):
    class Letters:
        n_dimensions = 3

        def embed(self, texts):
            import numpy as np

            return np.array([[len(t), t.count("e"), t.count("s")] for t in texts], dtype=np.float32)

    policy = make_policy("smoothie", three, options={"embedder": Letters(), "k": 0}).fit(three)
    assert policy.settings(three)


def test_hybrid_labels_differ(three):
    fit = three.subset(range(120))
    scored = [hybrid_llm(three.models, kind).fit(fit).scores(fit) for kind in ("deterministic", "transformed")]
    assert all(s.shape == (120,) for s in scored)
    assert hybrid_llm(three.models, "probabilistic").fit(fit).scores(fit).max() <= 1.0


def test_trained_heads_and_reports_are_made_by_name(three):
    assert cascade_aware_training(three.models).head.aware
    assert selective_query(three.models, 0.3).head.price == 0.3
    fit, calibrate = three.split((0.5, 0.5), seed=0)
    policy = RoutePolicy("kernel", KernelQuality()).fit(fit)
    assert guaranteed_takeover(policy, calibrate, "large", 0.3).setting is not None
    report, worded = (routing_benchmark(three, [make_policy("tag_router", three)], b) for b in (0.006, "6usd/1k"))
    assert worded.to_json() == report.to_json()
    assert report.rows[0].name == "tag_router"


def test_answers_of_two_models_have_no_samples_to_agree_with():
    table = make_table(20)
    with pytest.raises(InputError, match=r"nothing to compare the first one's answers with.*--model small="):
        make_policy("consistency_cascade", table)
    assert make_policy("consistency_cascade", table, live={"small": Says("small")}).scorers[0].n_calls == 4


def test_a_sampler_is_not_paid_for_where_other_models_are_compared_with(three):
    live = {name: Says(name) for name in three.models}
    asked, recorded = (make_policy("consistency_cascade", three, live=given).fit(three) for given in (live, None))
    for setting in recorded.settings(three):
        assert (asked.run(three, setting).costs(three) == recorded.run(three, setting).costs(three)).all()


def test_a_model_without_costs_is_named():
    table = ReplyTable.of(["x", "y"], {"a": [1, 0], "b": [float("nan")] * 2}, {"a": 1.0, "b": float("nan")})
    with pytest.raises(InputError, match="Model 'b' has no cost in the table"):
        make_policy("frugal_gpt", table)


def test_all_policies_of_a_table_are_listed(three, labelled):
    names = {policy.name for policy in policies_without_models(three)}
    assert not names & HEADS
    assert {policy.name for policy in policies_without_models(labelled)} >= HEADS
    assert {"frugal_gpt", "forc", "tag_router", "llm_blender"} <= names
    two = three.of_models(["small", "large"])
    assert "consistency_cascade" not in {policy.name for policy in policies_without_models(two)}


def test_what_is_wrong_about_a_route_is_named(three):
    models = {name: Says(name) for name in three.models}
    settings = {"policy": "calibrated_cascade", "budget": "8usd/1k"}
    route = Route({**settings, "models": ["small", "large"]}, three, models)
    assert route.generate([Request.of("add 1 and 2 now")])[0].model in ("small", "large")
    for change, said in (
        ({"policy": "nothing"}, "no method"),
        ({"budget": "none"}, "budget is 'none'"),
        ({"budget": None}, "'budget' is None: give dollars"),
        ({"budget": "0.00001"}, "the cheapest model costs 0.001 per query"),
        ({"policy": "orchestra_llm", "models": ["small"]}, "one model only"),
        ({"colour": "red"}, "'colour' is unknown"),
        ({"options": {"colour": 1}}, "no option 'colour'"),
        ({"policy": "routing_benchmark"}, "needs table, policies, budget"),
    ):
        with pytest.raises(InputError, match=said):
            check_route({**settings, **change}, three, models)
    for change, said in (
        ({"policy": "cascade_aware_training"}, "different ones: a head answers by label"),
        ({"level": 1e-4}, "no setting of calibrated_cascade is certified"),
        ({"level": 0.5, "budget": 0.0011}, "cheapest certified setting may spend"),
    ):
        check_route({**settings, **change}, three, models)
        with pytest.raises(InputError, match=said):
            Route({**settings, **change}, three, models)
    with pytest.raises(InputError, match="'budget' is missing"):
        check_route({"policy": "forc"}, three, models)


def test_a_route_with_a_level_serves_the_cheapest_certified_setting(three):
    models = {name: Says(name) for name in three.models}
    asked = {"policy": "route_llm", "budget": 1.0, "options": {"kind": "kernel"}, "models": ["small", "large"]}
    free, held = Route({**asked, "level": 0.9}, three, models), Route({**asked, "level": 0.3}, three, models)
    assert free.settings["level"] == 0.9
    assert free.measured[1] < held.measured[1] <= Route(asked, three, models).measured[1]


def test_a_head_that_is_right_throughout_is_no_leak():
    table = answered_by_label(make_table(500))
    report = compare(table, [cascade_aware_training(table.models)], 0.02)
    assert report.row("cascade_aware_training").quality == 1.0
    assert report.warnings == ()
    settings = {"policy": "cascade_aware_training", "budget": 0.02}
    assert Route(settings, table, {name: Says(name) for name in table.models}).warnings == ()


def test_a_head_answers_what_it_is_sure_of(labelled):
    fit, test = labelled.split((0.5, 0.5), seed=0)
    for slug in ("selective_query", "cascade_aware_training"):
        policy = make_policy(slug, fit, options={"price": 0.01} if slug == "selective_query" else {}).fit(fit)
        dear, cheap = (policy.run(test, setting) for setting in (float("inf"), float("-inf")))
        assert dear.qualities(test) == pytest.approx(test.scores[:, 1])
        assert cheap.costs(test).sum() == 0
        assert cheap.qualities(test).mean() > 0.95


def test_answers_nobody_gave_score_nothing():
    table = ReplyTable.of(["a", "b"], {"m": [1, 1]}, {"m": 1.0}, replies={"m": ["yes", "no"]})
    assert table.score_of(0, "Yes.") == 1
    assert table.score_of(0, "no") == 0


NOT_A_POLICY = {"guaranteed_takeover", "routing_benchmark"}
# A table holds no probabilities beside its replies.
NOT_OF_A_TABLE = {"stated_confidence"}
SERVED = [
    c.slug for group in ("cascades", "routing") for c in cards(group) if c.slug not in NOT_A_POLICY | NOT_OF_A_TABLE
]


@pytest.mark.parametrize("slug", SERVED)
def test_every_policy_is_served_saved_and_loaded_alike(three, labelled, confident, tmp_path, slug):
    three = labelled if slug in HEADS else confident if slug == "verbalised_confidence" else three
    models = {name: Sees(name) for name in three.models}
    options = {"options": ["= 1", "= 2"]} if slug == "cp_router" else {}
    route = Route({"policy": slug, "budget": 1.0, "options": options}, three, models)
    asked = [Request.of(query) for query in three.queries[:6]]
    said = [reply.model for reply in route.generate(asked)]
    assert set(said) <= {*three.models, "head"}
    explained = [route.explain(request) for request in asked]
    assert [told.chosen.replace(slug, "head") for told in explained] == said
    assert all(sum(row.verdict == "answers" for row in told.rows) == 1 for told in explained)
    assert all(told.chosen in told.reason for told in explained)
    assert sum(row.share for row in explained[0].rows) == pytest.approx(1.0)
    assert all(row.cost >= 0 for row in explained[0].rows)
    route.save(tmp_path / "route")
    again = Route.load(tmp_path / "route", models)
    assert again.settings == route.settings
    assert [reply.model for reply in again.generate(asked)] == said


def test_a_price_saved_where_numbers_are_rounded_otherwise_is_the_same_plan(three):
    models = {name: Says(name) for name in three.models}
    chosen = Route({"policy": "treacle", "budget": 0.004}, three, models).settings["chosen"]
    assert chosen > 0
    settings = {"policy": "treacle", "budget": 0.004, "chosen": chosen * (1 + 1e-12)}
    assert Route(settings, three, models).settings["chosen"] == settings["chosen"]


def test_a_model_added_from_queries_that_occur_twice_is_refused_before_it_is_saved(three):
    route = Route({"policy": "orchestra_llm", "budget": 1.0}, three, {name: Says(name) for name in three.models})
    new = ReplyTable.of(["same"] * 9, {"new": [1.0] * 9}, {"new": 0.1})
    with pytest.raises(InputError, match="8 answers occur more than once"):
        route.add_model("new", Says("new"), new)
    assert route.settings["added"] == []


def test_a_model_is_asked_for_the_confidence_that_decides(three, confident):
    asked = []

    class States(Says):
        def generate(self, requests):
            asked.extend(requests)
            sure = {"small": 20, "middle": 90}[self.name] if self.name in ("small", "middle") else None
            return [
                Reply(f"{self.name} says so. Confidence: {sure}%" if sure else "large", self.name) for _ in requests
            ]

    models = {name: States(name) for name in three.models}
    settings = make_policy("verbalised_confidence", confident).fit(confident).settings(confident)
    assert any(0.2 < at <= 0.9 for setting in settings for at in setting)
    route = Route({"policy": "verbalised_confidence", "budget": 1.0, "chosen": (0.5, 0.5)}, confident, models)
    [reply] = route.generate([Request.of("who wrote it", system="Be short.")])
    assert (reply.text, reply.confidence) == ("middle says so.", 0.9)
    assert "scored 0.2: passed on" in reply.reason
    assert asked[0].system.startswith("Be short.\n\nAfter the answer, write 'Confidence: '")
    for policy in ("verbalised_confidence", "stated_confidence"):
        with pytest.raises(InputError, match="scores no recorded reply of 'small' by"):
            Route({"policy": policy, "budget": 1.0}, three, models)


@pytest.mark.parametrize(
    ("slug", "options", "said"),
    [
        ("orchestra_llm", {"k": "zero"}, "Option 'k' of 'orchestra_llm' is 'zero': input should be a valid integer"),
        ("route_llm", {"kind": "foo"}, "should be 'similarity', 'matrix'"),
        ("tryage", {"penalties": 3}, "valid dictionary"),
        ("kernel_router", {"features": "x"}, "should be 'words', 'static', 'encoder' or 'language'"),
        ("smoothie", {"embedder": "x"}, "takes a part, which only Python can give"),
        ("frugal_gpt", {"length": 1}, "length is 1: give at least 2"),
        ("zooter", {"temperature": 0}, "temperature 0: give"),
        ("zooter", {"smoothing": 2.0}, "smoothing is 2"),
        ("automix", {"n_samples": 0}, "n_samples is 0: give at least 1"),
        ("consistency_cascade", {"n_samples": -1}, "n_samples is -1: give at least 1"),
    ],
)
def test_options_are_read_as_the_method_takes_them(three, slug, options, said):
    with pytest.raises(InputError, match=said):
        make_policy(slug, three, live={"small": Sees("small")}, options=options)


@pytest.mark.parametrize(
    ("slug", "n_calls"), [("automix", 3), ("chain_of_verification", 5), ("query_level_uncertainty", 1)]
)
def test_the_calls_of_a_scorer_are_paid_for(three, slug, n_calls):
    live = {"small": Sees("small")}
    policy = make_policy(slug, three, live=live, options={"n_samples": 3} if slug == "automix" else {}).fit(three)
    at = 0.5 if slug == "query_level_uncertainty" else (0.5,)
    spent, small = policy.run(three, at).costs(three), 0.001
    assert spent.max() == pytest.approx(0.01 + n_calls * small + (0 if slug == "query_level_uncertainty" else small))
    assert spent.min() == pytest.approx(small + n_calls * small) or spent.min() == spent.max()


def test_what_is_accepted_unseen_is_not_verified(three):
    models = {name: Says(name) for name in three.models}
    asked = {"policy": "automix", "budget": 1.0, "chosen": (float("-inf"),), "options": {"planned": False}}
    route = Route(asked, three, models)
    models["small"].asked.clear()
    assert route.generate([Request.of("x")])[0].model == "small"
    assert models["small"].asked == ["x"]


def test_a_head_leaves_tools_to_the_large_model(labelled):
    large = Says("large")
    route = Route(
        {"policy": "selective_query", "budget": 1.0, "chosen": 0.0}, labelled, {"small": large, "large": large}
    )
    asked = Request.of(labelled.queries[0])
    replies = route.generate([asked, asked.replace(extra={"tools": [{"type": "function"}]})])
    assert [reply.model for reply in replies] == ["head", "large"]


def test_a_folder_without_a_route_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no readable route\.json"):
        Route.load(tmp_path, {})


@pytest.mark.parametrize(
    ("text", "value"), [("2usd/1k", 0.002), ("$5/1k", 0.005), ("0.25", 0.25), ("3 usd / 1m", 3e-6)]
)
def test_budgets_are_read(text, value):
    assert parse_budget(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "-1", "0", "two", "1e", "nan", "1/0k"])
def test_bad_budgets_are_refused(text):
    with pytest.raises(InputError, match="give dollars"):
        parse_budget(text)
