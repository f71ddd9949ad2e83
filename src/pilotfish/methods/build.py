"""Policies by name: what the command line and the gateway's configuration call."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pilotfish.errors import InputError, PilotfishError
from pilotfish.files import replacing
from pilotfish.methods import cards, find
from pilotfish.methods.options import missing, read_options
from pilotfish.protocols import Model
from pilotfish.route.budget import parse_budget
from pilotfish.route.certify import certify
from pilotfish.route.compare import curve_of, leaks, warned_of_leaks, warned_of_table
from pilotfish.route.compound import RankPolicy
from pilotfish.route.deploy import in_service, refuse_addition, serve, setting_within
from pilotfish.route.explain import Explanation, explain
from pilotfish.route.heads import HeadPolicy, right_answers
from pilotfish.route.policies import Policy
from pilotfish.route.router import Candidate, Router
from pilotfish.scorers.costs import CostModel
from pilotfish.traffic.table import ReplyTable, refuse_no_choice
from pilotfish.types import Reply, Request

__all__ = [
    "Route",
    "by_cost",
    "check_route",
    "make_policy",
    "models_of",
    "policies_without_models",
    "warned_of_replies",
]

_FEW = 100
_LIVE = ("weak", "verifier", "sampler")


def by_cost(table: ReplyTable) -> tuple[str, ...]:
    """Names of the models from the cheapest to the dearest.

    Raises
    ------
    InputError
        When a model has no cost in the table.
    """
    for j, model in enumerate(table.models):
        if not np.isfinite(table.costs[:, j]).any():
            raise InputError(f"Model {model!r} has no cost in the table: give the cost of its answers.")
    return tuple(table.models[j] for j in np.argsort(np.nanmean(table.costs, axis=0), kind="stable"))


def make_policy(
    slug: str,
    table: ReplyTable,
    *,
    models: Sequence[str] = (),
    live: Mapping[str, Model] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Policy:
    """Make a policy by its method's name, for the models of a table.

    Parameters
    ----------
    slug : str
        A method of the groups cascades and routing, as ``pilotfish methods`` lists them.
    table : ReplyTable
        Says which models there are and what they cost; nothing is fitted.
    models : sequence of str
        From first to last; left out, the table's from the cheapest to the dearest.
    live : mapping of str to Model
        Needed by methods that ask a model while they decide; the first model is asked.
    options : mapping
        Further arguments of the method.

    Raises
    ------
    InputError
        When there is no such policy, an option is unknown, or a method needs a model that was not given.
    """
    card = find(slug)
    order = tuple(models) or by_cost(table)
    parameters = inspect.signature(card.make).parameters
    given = read_options("Method", slug, {k.replace("-", "_"): v for k, v in (options or {}).items()}, card.make)
    if "models" in parameters:
        given.setdefault("models", order)
    for name in _LIVE:
        if name in parameters and name not in given and live and order[0] in live:
            given[name] = live[order[0]]
    if (
        "embedder" in parameters
        and parameters["embedder"].default is inspect.Parameter.empty
        and "embedder" not in given
    ):
        from pilotfish.models.embedder import StaticEmbedder

        given["embedder"] = StaticEmbedder("wordllama")
    if lacking := missing(card.make, given):
        raise InputError(f"Method {slug!r} needs {', '.join(lacking)}: run it with '{card.command}'.")
    made = card.make(**given)
    if not hasattr(made, "settings"):
        raise InputError(f"Method {slug!r} is not a policy over a table: run it with '{card.command}'.")
    policy: Policy = made
    return policy


def policies_without_models(table: ReplyTable) -> list[Policy]:
    """Make every policy that needs nothing but the table.

    Those that read replies are made only where replies are recorded, trained heads where these are labels, and rankers
    where some query has a better and a worse answer.
    """
    found: list[Policy] = []
    table = table.complete()
    complete = not _unrecorded(table)
    for card in cards():
        if card.group not in ("cascades", "routing"):
            continue
        try:
            policy = make_policy(card.slug, table)
        except InputError:
            continue
        reads = card.group == "cascades" or card.slug in ("llm_blender", "smoothie")
        wants_more = card.slug == "smoothie" and table.n_models < 3
        if (reads and not complete) or wants_more or card.slug in ("stated_confidence", "verbalised_confidence"):
            continue
        if isinstance(policy, HeadPolicy) and not _answered_by_labels(table):
            continue
        if isinstance(policy, RankPolicy) and not _has_better_and_worse(table):
            continue
        found.append(policy)
    return found


def warned_of_replies(table: ReplyTable) -> list[str]:
    """What a reader should know of the policies that :func:`policies_without_models` leaves out of a table."""
    n = _unrecorded(table.complete())
    return [f"Policies that read replies are left out: {n:,} scored answers have no reply recorded."] if n else []


def _unrecorded(table: ReplyTable) -> int:
    if not table.replies:
        return table.scores.size
    return sum(text is None for row in table.replies for text in row)


def _answered_by_labels(table: ReplyTable) -> bool:
    try:
        return len(set(right_answers(table).values())) > 1
    except InputError:
        return False


def _has_better_and_worse(table: ReplyTable) -> bool:
    known = table.scores[np.isfinite(table.scores).all(axis=1)]
    return bool((known != known[:, :1]).any())


class Route:
    """A fitted policy that answers, and can be saved as what made it: its table, its settings and the choice made.

    A saved route is fitted anew when it is loaded; the same table and settings give the same decisions.

    Parameters
    ----------
    settings : mapping
        ``policy``, ``budget`` (dollars per query, or text such as ``2usd/1k``), and optionally ``models`` (from first
        to last), ``options`` of the method, ``seed``, ``level``, and ``chosen``: the setting, which is otherwise chosen
        on a quarter of the table that the policy is not fitted on: the best within the budget or, with ``level``, the
        cheapest that is certified at 95 % confidence to lose no more score than that against the dearest model; and
        ``added``: the rows of models that were added later, as :meth:`add_model` leaves them.
    table : ReplyTable
        Recorded replies.
    models : mapping of str to Model
        What answers, by the names in the table.
    candidates : sequence of Candidate
        Limits of the models.

    Attributes
    ----------
    model : Model
        The policy in service.
    settings : dict
        All of them, the choice made included.
    measured : tuple of float
        Mean score and dollars per query on the quarter of the table the choice was made on.
    n_calibrate : int
        Queries of that quarter.
    warnings : tuple of str
        What to know first: queries left out, a policy too good to be true. Said where the choice is made.
    shares : dict of str to float
        Share of them that each model answered; a trained head goes by the policy's name.

    Raises
    ------
    InputError
        When a field is missing or unknown, a model is missing, the budget cannot be kept, or the table leaves nothing
        to choose: one model only, fewer than 4 queries, every score the same, a budget below the cheapest model.

    Examples
    --------
    >>> from pilotfish.models.fake import FakeModel
    >>> table = ReplyTable.of(["a b", "c d", "e f", "g h"] , {"s": [0, 0, 1, 1], "l": [1, 1, 1, 1]}, {"s": 1, "l": 2})
    >>> route = Route({"policy": "orchestra_llm", "budget": 3.0}, table, {"s": FakeModel(), "l": FakeModel()})
    >>> sorted(route.settings)
    ['added', 'budget', 'chosen', 'level', 'models', 'options', 'policy', 'seed']
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        table: ReplyTable,
        models: Mapping[str, Model],
        candidates: Sequence[Candidate] = (),
    ) -> None:
        plan = _planned(settings, table, models)
        self.table, seed, options = plan.table, int(settings.get("seed", 0)), dict(settings.get("options", {}))
        names, budget = plan.names, plan.budget
        fit, calibrate = plan.complete.split((0.75, 0.25), seed=seed)
        self._policy = policy = in_service(plan.policy).fit(fit)
        level = settings.get("level")
        if "chosen" in settings:
            chosen = _given(policy, settings["chosen"], calibrate, models, candidates)
        elif level is not None:
            chosen = _certified(policy, fit, calibrate, (names or by_cost(self.table))[-1], float(level), budget)
        else:
            chosen = setting_within(policy, calibrate, budget)
        choice = policy.run(calibrate, chosen)
        self.measured = float(choice.qualities(calibrate).mean()), float(choice.costs(calibrate).mean())
        self.n_calibrate = calibrate.n_queries
        self.warnings = () if "chosen" in settings else tuple(_warnings(policy, self.table, fit, calibrate))
        answering = dict(enumerate(self.table.models))
        if isinstance(policy, HeadPolicy):
            answering[-1] = policy.name
        self.shares = {name: float((choice.answered == j).mean()) for j, name in answering.items()}
        self.model = serve(policy, chosen, models, candidates)
        self.settings: dict[str, Any] = {
            "policy": str(settings["policy"]),
            "budget": budget,
            "models": list(names),
            "options": options,
            "seed": seed,
            "level": level,
            "chosen": chosen,
            "added": [],
        }
        known = {candidate.name: candidate for candidate in candidates}
        for name in plan.added.models:
            self.add_model(name, models[name], plan.added, known.get(name))

    def add_model(self, name: str, model: Model, table: ReplyTable, candidate: Candidate | None = None) -> None:
        """Add a model from a few labelled queries, 10 to 50 say; see :meth:`pilotfish.route.router.Router.add_model`.

        Nothing is fitted anew, and what is predicted of the other models stays.

        Parameters
        ----------
        name : str
            The model's, in the table and from now on.
        model : Model
            What answers.
        table : ReplyTable
            Scores and costs of the model.
        candidate : Candidate, optional
            Its limits.

        Raises
        ------
        InputError
            When the policy is not one that predicts each model's score, the name is taken, fewer than 5 queries are
            scored, or one occurs twice.
        """
        refuse_addition(self._policy)
        assert isinstance(self.model, Router), "a policy that predicts scores is served by a router"
        rows = [*table.of_models([name]).rows()]
        ReplyTable.from_rows(rows)  # what could not be read back is refused now
        self.model.add_model(name, model, table, candidate)
        self.settings["added"] = [*self.settings["added"], *rows]

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer a batch: one reply per request, in order."""
        return self.model.generate(requests)

    def explain(self, request: Request) -> Explanation:
        """Say which model the policy chooses for a request, and why; see :func:`pilotfish.route.explain.explain`.

        Costs the policy does not predict are those expected by the length of the prompt.
        """
        costs = CostModel().fit(self.table.queries, self.table.costs).predict([request.prompt])[0]
        known = dict.fromkeys(self.shares, 0.0) | dict(zip(self.table.models, costs.tolist(), strict=True))
        return explain(self.model, request).with_known(known, self.shares)

    def save(self, folder: Path | str) -> None:
        """Write ``table.jsonl`` and ``route.json`` into a folder, which is made; the models are not saved.

        Raises
        ------
        InputError
            When an option is a part that plain data cannot hold.
        """
        try:
            text = json.dumps(self.settings, indent=1, default=float)
        except (TypeError, ValueError) as error:
            raise InputError(f"Route options cannot be saved ({error}): give options as plain values.") from error
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        self.table.to_jsonl(place / "table.jsonl")
        with replacing(place / "route.json", private=True) as half:
            half.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str, models: Mapping[str, Model], candidates: Sequence[Candidate] = ()) -> Route:
        """Bring a saved route back, to be asked of ``models``.

        Raises
        ------
        InputError
            When the folder holds no saved route.
        """
        return cls(*cls.read(folder), models, candidates)

    @staticmethod
    def read(folder: Path | str) -> tuple[dict[str, Any], ReplyTable]:
        """Read a saved route's settings and table; nothing is fitted.

        Raises
        ------
        InputError
            When the folder holds no saved route.
        """
        try:
            settings: dict[str, Any] = json.loads((Path(folder) / "route.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} holds no readable route.json: name the folder of a saved route.") from error
        _check_fields(settings)
        return settings, ReplyTable.from_jsonl(Path(folder) / "table.jsonl")


_NUMBER = (int, float, np.integer, np.floating)
_ROUTE_FIELDS: dict[str, tuple[tuple[type, ...], str]] = {
    "policy": ((str,), "the name of a method"),
    "budget": ((*_NUMBER, str), "dollars per query, or text such as 2usd/1k"),
    "models": ((list, tuple), "a list of names"),
    "options": ((Mapping,), "an object of names and values"),
    "seed": ((int, np.integer), "a whole number"),
    "level": ((*_NUMBER, type(None)), "a loss of score"),
    "chosen": ((object,), "a setting of the policy"),
    "added": ((list, tuple), "a list of rows"),
}


def models_of(settings: Mapping[str, Any], table: ReplyTable) -> tuple[str, ...]:
    """Names of the models that a route asks: from first to last, then those that were added later."""
    added = ReplyTable.from_rows(settings.get("added", ())).models
    return tuple(dict.fromkeys([*(settings.get("models") or by_cost(table)), *added]))


def _certified(policy: Policy, fit: ReplyTable, calibrate: ReplyTable, strong: str, level: float, budget: float) -> Any:
    proof = certify(policy, calibrate, strong=strong, level=level, settings=policy.settings(fit))
    if proof.setting is None:
        raise InputError(
            f"level is {level:g}, which no setting of {policy.name} is certified to keep to on {proof.n} queries: "
            "record more, or raise the level."
        )
    if proof.spend_upper > budget:
        raise InputError(
            f"budget is {budget:g} but the cheapest certified setting may spend {proof.spend_upper:.3g} per query: "
            "raise the budget or the level."
        )
    return proof.setting


def _warnings(policy: Policy, table: ReplyTable, fit: ReplyTable, calibrate: ReplyTable) -> Iterator[str]:
    yield from warned_of_table(fit, table.n_queries - fit.n_queries - calibrate.n_queries)
    if calibrate.n_queries < _FEW:
        yield (
            f"Only {fit.n_queries} queries were learned from, and the setting was chosen on {calibrate.n_queries}: "
            "in service it may cost more and be worse."
        )
    if not isinstance(policy, HeadPolicy):  # which may rightly know more than any model
        yield from warned_of_leaks(leaks({policy.name: curve_of(policy, calibrate)}, calibrate))


def _given(
    policy: Policy, value: Any, table: ReplyTable, models: Mapping[str, Model], candidates: Sequence[Candidate]
) -> Any:
    """The setting that was saved, once it has shown to be one of the policy."""
    chosen = _as_tuples(value)
    try:
        policy.run(table, chosen)
        serve(policy, chosen, models, candidates)
    except PilotfishError:
        raise
    except (TypeError, ValueError, LookupError) as error:
        raise InputError(
            f"Route field 'chosen' is {value!r}, which is no setting of {policy.name}: leave it out to choose anew."
        ) from error
    return chosen


def _check_fields(settings: Mapping[str, Any]) -> None:
    if not isinstance(settings, Mapping):
        raise InputError(f"The settings of a route are a {type(settings).__name__}: give an object of fields.")
    for name in sorted(set(settings) - set(_ROUTE_FIELDS)):
        raise InputError(f"Route field {name!r} is unknown: give {', '.join(sorted(_ROUTE_FIELDS))}.")
    for name in ("budget", "policy"):
        if name not in settings:
            raise InputError(f"Route field {name!r} is missing: give budget, policy.")
    for name, value in settings.items():
        kinds, wanted = _ROUTE_FIELDS[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and name != "chosen"):
            raise InputError(f"Route field {name!r} is {value!r}: give {wanted}.")


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def check_route(settings: Mapping[str, Any], table: ReplyTable, models: Mapping[str, Model]) -> None:
    """Refuse what is wrong about a route before anything is fitted; the arguments are those of :class:`Route`.

    Raises
    ------
    InputError
        As of :class:`Route`, but for what only fitting finds out.
    """
    _planned(settings, table, models)


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What settings ask for, checked; nothing is fitted."""

    policy: Policy
    table: ReplyTable
    complete: ReplyTable
    names: tuple[str, ...]
    budget: float
    added: ReplyTable


def _planned(settings: Mapping[str, Any], table: ReplyTable, models: Mapping[str, Model]) -> _Plan:
    _check_fields(settings)
    names = tuple(settings.get("models", ()))
    table = table.of_models(names) if names else table
    policy = make_policy(str(settings["policy"]), table, models=names, live=models, options=settings.get("options", {}))
    budget = parse_budget(settings["budget"])
    complete = table.complete()
    # A head is an answerer of its own, which costs nothing: it stands beside one model, and below any budget.
    if not isinstance(policy, HeadPolicy):
        refuse_no_choice(complete, budget)
    added = ReplyTable.from_rows(settings.get("added", ()))
    for name in added.models:
        refuse_addition(policy)
        if name not in models:
            raise InputError(f"models has no {name!r}, which was added to the route: give it.")
    return _Plan(policy, table, complete, names, budget, added)
