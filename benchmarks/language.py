"""Language identification: speed and accuracy on the corpus, and on short texts of 75 languages."""

from __future__ import annotations

import csv
import time

import numpy as np

from benchmarks.curation.corpus import corpus
from benchmarks.figures import Run, bootstrap
from pilotfish.curation import LanguageIdentifier, ShortTexts
from pilotfish.errors import MissingExtraError

KINDS = ("sentences", "word_pairs", "single_words")
SAME = {"nb": "no"}  # the model has one label for both


def main(run: Run) -> None:
    identifier = LanguageIdentifier()
    known = [d for d in corpus(run).documents() if d["lang"]]
    texts, truth = [d["text"] for d in known], np.array([SAME.get(d["lang"], d["lang"]) for d in known])
    identifier.predict(texts[:10])
    started = time.process_time()
    found: list[str] = []
    for i in range(0, len(texts), 500):
        found += identifier.predict(texts[i : i + 500])[0]
    seconds = time.process_time() - started
    right = np.array(found) == truth
    english = truth == "en"
    n_bytes = sum(len(text.encode()) for text in texts)
    run.figure("mb_per_s_core", n_bytes / seconds / 1e6, unit="MB/s a core", better="higher", n=len(texts), target=20)
    for name, part, target in (("accuracy_english", english, 0.989), ("accuracy_other", ~english, 0.89)):
        low, high = bootstrap(right[part].astype(float))
        run.figure(
            name,
            right[part].mean(),
            unit="share",
            better="higher",
            n=int(part.sum()),
            low=low,
            high=high,
            target=target,
        )
    _lingua(run)


def _means(run: Run, identifier: LanguageIdentifier) -> dict[str, dict[str, float]]:
    """Share right of each language's sentences, pairs of words and single words."""
    kinds = {}
    for kind in KINDS:
        rows = list(run.rows(f"langid_lingua75/{kind}.jsonl.gz"))
        if run.quick:
            rows = rows[::5]
        found = identifier.predict([row["text"] for row in rows])[0]
        hits: dict[str, list[bool]] = {}
        for label, row in zip(found, rows, strict=True):
            hits.setdefault(row["lang"], []).append(label == SAME.get(row["lang"], row["lang"]))
        kinds[kind] = {lang: float(np.mean(h)) for lang, h in hits.items()}
    return kinds


def _lingua(run: Run) -> None:
    """Texts of 75 languages by the fast model alone, and with the one for short texts, beside five others."""
    ways = {"lid.176": LanguageIdentifier()}
    try:
        ways["short texts by lingua"] = LanguageIdentifier(short_texts=ShortTexts())
    except MissingExtraError as error:
        print(f"no model for short texts: {error}")
    kinds = {name: _means(run, identifier) for name, identifier in ways.items()}
    known = set(ways["lid.176"].labels)
    absent = [lang for lang in kinds["lid.176"]["sentences"] if SAME.get(lang, lang) not in known]
    with (run.data / "langid_lingua75" / "published_accuracy.csv").open(encoding="utf-8") as file:
        published = list(csv.DictReader(file))
    others = {}
    for detector in ("optimaize", "opennlp", "tika", "lingua-low", "lingua-high"):
        values = {k: [float(r[f"{k.replace('_', '-')}-{detector}"] or "nan") for r in published] for k in KINDS}
        # A language that a detector does not know is wrong, as it is for ours.
        each = {k: float(np.nan_to_num(v).mean()) / 100 for k, v in values.items()}
        others[detector] = float(np.mean(list(each.values())))
        unknown = int(np.isnan(values["sentences"]).sum())
        print(f"{detector:22s} " + ", ".join(f"{k} {v:.3f}" for k, v in each.items()) + f" ({unknown} unknown)")
    means = {name: {k: float(np.mean(list(by.values()))) for k, by in each.items()} for name, each in kinds.items()}
    print(f"low-resource languages that lid.176 does not know: {', '.join(absent)}")
    apart: dict[str, float] = {}
    for name, each in kinds.items():
        print(f"{name:22s} " + ", ".join(f"{k} {v:.3f}" for k, v in means[name].items()))
        apart[name] = float(np.mean([by[lang] for by in each.values() for lang in absent]))
        rest = float(np.mean([v for by in each.values() for lang, v in by.items() if lang not in absent]))
        print(f"{'':22s} those languages {apart[name]:.3f}, all others {rest:.3f}")
    best = list(ways)[-1]
    run.figure(
        "lingua75_mean",
        float(np.mean(list(means[best].values()))),
        unit="mean accuracy",
        better="higher",
        n=75,
        peer="lingua, high",
        peer_value=others["lingua-high"],
        peer_source="published (its accuracy report)",
        way=best,
        low_resource=apart[best],
        lid_176_alone=float(np.mean(list(means["lid.176"].values()))),
        published=others,
        **means[best],
    )
