"""Context-aware decoding: contexts that contradict what the model knows, and contexts that do not."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.figures import Run, bootstrap
from benchmarks.kept import Kept
from pilotfish.decoding.decoder import Decoder, fuse
from pilotfish.decoding.fusion import ContextAware
from pilotfish.methods.build_decoder import without_context
from pilotfish.models.transformers import TransformersModel
from pilotfish.types import Request

__all__ = ["context"]

# By relation: what holds it, and the answer, one pair a country; how it is asked for follows.
FACTS = {
    "capital": """France Paris;Germany Berlin;Italy Rome;Spain Madrid;Portugal Lisbon;Greece Athens;Austria Vienna
Hungary Budapest;Poland Warsaw;Russia Moscow;Japan Tokyo;China Beijing;Egypt Cairo;Norway Oslo;Sweden Stockholm
Denmark Copenhagen;Finland Helsinki;Ireland Dublin;Cuba Havana;Peru Lima;Kenya Nairobi;Thailand Bangkok;Iraq Baghdad
Iran Tehran;Turkey Ankara;Belgium Brussels;Canada Ottawa;Australia Canberra;Chile Santiago;Ukraine Kyiv
Nepal Kathmandu;Vietnam Hanoi;Bulgaria Sofia;Romania Bucharest;Croatia Zagreb;Serbia Belgrade;Iceland Reykjavik
Colombia Bogota;Venezuela Caracas;Uruguay Montevideo;Ecuador Quito;Jamaica Kingston;Ghana Accra;Senegal Dakar
Ethiopia Addis Ababa;Morocco Rabat;Tunisia Tunis;Lebanon Beirut;Syria Damascus;Jordan Amman;Indonesia Jakarta
Malaysia Kuala Lumpur""",
    "continent": """France Europe;Germany Europe;Poland Europe;Norway Europe;Romania Europe;Portugal Europe
Ireland Europe;Finland Europe;Hungary Europe;Greece Europe;Japan Asia;China Asia;India Asia;Thailand Asia
Vietnam Asia;Nepal Asia;Mongolia Asia;Pakistan Asia;Indonesia Asia;Malaysia Asia;Kenya Africa;Nigeria Africa
Ghana Africa;Egypt Africa;Ethiopia Africa;Morocco Africa;Senegal Africa;Zambia Africa;Uganda Africa;Angola Africa
Brazil South America;Peru South America;Chile South America;Argentina South America;Colombia South America
Bolivia South America;Ecuador South America;Uruguay South America;Canada North America;Mexico North America
Cuba North America""",
    "main language": """France French;Germany German;Italy Italian;Spain Spanish;Portugal Portuguese;Greece Greek
Poland Polish;Russia Russian;Japan Japanese;China Mandarin;Egypt Arabic;Norway Norwegian;Sweden Swedish
Denmark Danish;Finland Finnish;Hungary Hungarian;Turkey Turkish;Thailand Thai;Vietnam Vietnamese;Ukraine Ukrainian
Romania Romanian;Bulgaria Bulgarian;Iceland Icelandic;Brazil Portuguese;Mexico Spanish;Argentina Spanish
Austria German;Iraq Arabic;Iran Persian;Israel Hebrew;Pakistan Urdu;Bangladesh Bengali;Nepal Nepali
Mongolia Mongolian;Peru Spanish;Jordan Arabic;Croatia Croatian;Serbia Serbian;Albania Albanian;Lithuania Lithuanian""",
}
_KINDS = {"capital": "city", "continent": "continent", "main language": "language"}
_N_CHOOSE = 16
# What is told, what is asked, and the answer that the context gives.
Item = tuple[str, str, str]
# Weight, whether it adapts, gate and plausible share: the gentlest first, since the first of equals is chosen.
Way = tuple[float, bool, float, float]
WAYS: tuple[Way, ...] = (
    (0.5, False, 0.0, 0.1),
    (1.0, False, 0.0, 0.1),
    (1.0, False, 0.0, 0.03),
    (0.5, False, 0.0, 0.0),
)


def context(run: Run, model: TransformersModel) -> None:
    """Answers as the context has it, plainly and with the contrast, whose settings a third of the facts choose.

    Agreement is chosen by as well: on the same facts, told as they are, and on passages that are not tested. Facts that
    the model does not know are left out: there nothing is in conflict, and nothing agrees.
    """
    plain = Decoder(model)
    answers = Answers(run)
    rng = np.random.default_rng(0)
    against: list[Item] = []
    agreeing: list[Item] = []
    for relation, listed in FACTS.items():
        facts = [line.split(" ", 1) for line in listed.replace("\n", ";").split(";")][: 12 if run.quick else None]
        untold = [("", _asked(relation, country), answer) for country, answer in facts]
        known = [facts[i] for i in np.flatnonzero(answers.right("plain", plain, untold))]
        others = sorted({answer for _, answer in known})
        for country, answer in known:
            wrong = [other for other in others if other != answer]
            against.append(_told(relation, country, wrong[rng.integers(len(wrong))]))
            agreeing.append(_told(relation, country, answer))
        print(f"{relation}: {len(known)} of {len(facts)} known", flush=True)
    order = rng.permutation(len(against))
    against, agreeing = [against[i] for i in order], [agreeing[i] for i in order]
    n_choose = len(order) // 3
    found: dict[Way, float] = {}
    passages = _open(run)
    agreed = [*agreeing[:n_choose], *passages[:_N_CHOOSE]]
    for way in WAYS:
        aware = _aware(model, *way)
        parts = [answers.right(str(way), aware, items).mean() for items in (against[:n_choose], agreed)]
        found[way] = float(sum(parts))
        told = f"conflict {parts[0]:.3f}, agreement {parts[1]:.3f}"
        print(f"alpha, adaptive, gate, plausible {way}: {told}", flush=True)
    alpha, adaptive, gate, plausible = best = max(WAYS, key=lambda way: found[way])
    aware = _aware(model, *best)
    print(f"chosen: {best}", flush=True)
    tested = {
        "conflict": against[n_choose:], "agreement": agreeing[n_choose:], "open": passages[_N_CHOOSE:],
    }  # fmt: skip
    shares = {
        name: (answers.right("plain", plain, items), answers.right(str(best), aware, items))
        for name, items in tested.items()
    }
    for name, (before, after) in shares.items():
        print(f"{name:10s} plain {before.mean():.3f}, context-aware {after.mean():.3f}", flush=True)
    common: dict[str, Any] = {"alpha": alpha, "adaptive": adaptive, "gate": gate, "plausible": plausible}
    before, after = shares["conflict"]
    low, high = bootstrap(100 * (after - before))
    run.figure(
        "cad_conflict_gain", float(100 * (after - before).mean()), unit="points", better="higher", n=len(before),
        low=low, high=high, plain=float(before.mean()), **common,
    )  # fmt: skip
    for name, figure in (("agreement", "cad_agreement_loss"), ("open", "cad_passage_loss")):
        before, after = shares[name]
        low, high = bootstrap(100 * (before - after))
        run.figure(
            figure, float(100 * (before - after).mean()), unit="points", better="lower", n=len(before), low=low,
            high=high, floor=0.5, plain=float(before.mean()), **common,
        )  # fmt: skip


def _asked(relation: str, country: str) -> str:
    return f"What is the {relation} of {country}? Answer with the name of the {_KINDS[relation]}."


def _told(relation: str, country: str, answer: str) -> Item:
    more = f"The king of {country} lives in {answer}." if relation == "capital" else f"That is {answer}, as all know."
    return f"In this story, the {relation} of {country} is {answer}. {more}", _asked(relation, country), answer


def _open(run: Run) -> list[Item]:
    """Questions on real passages that hold the answer."""
    items = []
    for row in run.rows("beerqa_sample/train_subsample.jsonl.gz"):
        told, answer = " ".join(text for _, text in row["context"])[:800], row["answers"][0]
        if answer in told and 2 < len(answer) < 30 and answer.lower() not in ("yes", "no"):
            items.append((told, f"{row['question']} Answer with a few words from the context.", answer))
    order = np.random.default_rng(0).permutation(len(items))
    return [items[i] for i in order[: _N_CHOOSE + (4 if run.quick else 300)]]


def _aware(model: TransformersModel, alpha: float, adaptive: bool, gate: float, plausible: float) -> Decoder:
    views = {"without_context": without_context}
    fusion = ContextAware(alpha, adaptive=adaptive, gate=gate, plausible=plausible)
    return fuse(fusion=fusion, views=views, with_context=model, without_context=model)


class Answers:
    """Whether each way answers as the context has it; what earlier runs found is not asked again."""

    def __init__(self, run: Run) -> None:
        self.kept = Kept(run, "fusion", "context")
        self.found = {(row["way"], row["item"]): row["right"] for row in self.kept.rows}

    def right(self, way: str, decoder: Decoder, items: Sequence[Item]) -> np.ndarray:
        """1 where the answer is in the reply, else 0, (n,)."""
        hits = []
        for item in items:
            key = way, zlib.crc32("\n".join(item).encode())
            if key not in self.found:
                told, asked, wanted = item
                self.found[key] = wanted.lower() in _answer(decoder, asked, told).lower()
                self.kept.add(way=way, item=key[1], right=self.found[key])
            hits.append(self.found[key])
        return np.array(hits, dtype=float)


def _answer(decoder: Decoder, asked: str, told: str) -> str:
    said = [f"Context: {told}"] if told else []
    return decoder.generate([Request.of(asked, *said, temperature=0, max_tokens=12)])[0].text
