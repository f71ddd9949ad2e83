"""What small models that filter a corpus can tell apart, and what duplicates in meaning and diversity are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.metrics import f1_score

from benchmarks.figures import Run
from pilotfish.curation.classifiers import EducationalQuality, NgramClassifier, ParetoSample
from pilotfish.curation.dedup import MinHashDedup
from pilotfish.curation.documents import Document
from pilotfish.curation.perplexity import ErrorLength, Perplexity
from pilotfish.curation.scan import Batch, Plan
from pilotfish.curation.semantic import SemanticDedup
from pilotfish.errors import DownloadError
from pilotfish.methods.pretraining_data import d4
from pilotfish.models.embedder import OnnxEmbedder, StaticEmbedder
from pilotfish.models.ngram import NGramModel
from pilotfish.protocols import Embedder
from pilotfish.statistics import auroc, auroc_interval
from pilotfish.vectors import unit_rows

__all__ = ["filters"]

CURATED = ("Wikipedia (en)", "PubMed Abstracts", "PubMed Central", "NIH ExPorter", "FreeLaw", "USPTO Backgrounds")
RAW = ("Pile-CC", "OpenWebText2", "HackerNews", "OpenSubtitles")
# What a text of each source teaches, in the place of a large model's rating: none can be asked where this runs.
TAUGHT = {"Wikipedia (en)": 5, "PubMed Abstracts": 4, "PubMed Central": 4, "NIH ExPorter": 4, "StackExchange": 3,
          "DM Mathematics": 3, "OpenWebText2": 2, "Pile-CC": 1, "HackerNews": 1, "OpenSubtitles": 0}  # fmt: skip


def filters(run: Run) -> None:
    """Each part's figure, on texts that its model did not learn from."""
    if run.wants("quality"):
        _quality(run)
    if run.wants("perplexity"):
        _perplexity(run)
    if run.wants("education"):
        _education(run)
    if run.wants("meaning"):
        _paraphrases(run)
        _diversity(run)


def _pile(run: Run) -> tuple[list[str], np.ndarray]:
    rows = list(run.rows("c4_sample/toy_pile.jsonl.gz"))
    sources = [str(row["metadata"]).split("'")[-2] for row in rows]
    return [row["contents"][:4000] for row in rows], np.array(sources)


def _folds(n: int, k: int = 5, seed: int = 0) -> list[np.ndarray]:
    return np.array_split(np.random.default_rng(seed).permutation(n), k)


def _quality(run: Run) -> None:
    """Curated text told from the raw web's, and what part of each a Pareto sample keeps."""
    texts, sources = _pile(run)
    rows = np.flatnonzero(np.isin(sources, CURATED + RAW))
    curated = np.isin(sources[rows], CURATED)
    scores = np.empty(rows.size)
    for test in _folds(rows.size):
        train = np.setdiff1d(np.arange(rows.size), test)
        given = [[texts[rows[i]] for i in train if curated[i] == kind] for kind in (True, False)]
        scores[test] = NgramClassifier().fit(*given).score([texts[rows[i]] for i in test])
    curve = {}
    for alpha in (1.0, 3.0, 9.0, 27.0):
        kept = np.zeros(rows.size, dtype=bool)
        kept[ParetoSample(alpha).decide(scores).indices] = True
        curve[f"alpha {alpha:g}"] = {"curated": round(float(kept[curated].mean()), 3),
                                     "raw": round(float(kept[~curated].mean()), 3)}  # fmt: skip
    print(f"kept by a Pareto sample: {curve}", flush=True)
    found = auroc_interval(scores, curated)
    run.figure("quality_auroc", found.value, unit="AUROC of curated over raw", better="higher", n=rows.size,
               low=found.low, high=found.high, kept=curve)  # fmt: skip


def _perplexity(run: Run) -> None:
    """Clean web text ranked above the same words in another order, and above text that is no prose."""
    prose = [row["text"] for row in run.rows("text_corpora/brown.jsonl.gz")]
    model = NGramModel(3, min_count=2).fit([_plain(text) for text in prose])
    rng = np.random.default_rng(0)
    n = 40 if run.quick else 200
    clean = [_plain(row["input"] + row["output"])[:1000] for row in run.rows("c4_sample/c4.jsonl.gz")][:n]
    shuffled = [" ".join(rng.permutation(text.split())) for text in clean]
    texts, sources = _pile(run)
    no_prose = [_plain(text)[:1000] for text, source in zip(texts, sources, strict=True)
                if source in ("Github", "DM Mathematics")][:n]  # fmt: skip
    measures: dict[str, Callable[[Sequence[str]], np.ndarray]] = {
        "perplexity": Perplexity(model).score,
        "el2n": lambda texts: -ErrorLength([model], 400).score(texts),
    }
    for name, score in measures.items():
        good, other, worst = (score(part) for part in (clean, shuffled, no_prose))
        labels = np.repeat([True, False], [good.size, other.size])
        found = auroc_interval(np.concatenate([good, other]), labels)
        labels = np.repeat([True, False], [good.size, worst.size])
        over = auroc(np.concatenate([good, worst]), labels)
        run.figure(f"{name}_auroc", found.value, unit="AUROC of web text over its words shuffled", better="higher",
                   n=2 * n, low=found.low, high=found.high, over_code_and_sums=over,
                   of_pairs=float(np.mean(good > other)))  # fmt: skip


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _education(run: Run) -> None:
    """Texts that teach, by ratings of a sample; the ratings are their sources'."""
    texts, sources = _pile(run)
    rows = np.flatnonzero(np.isin(sources, list(TAUGHT)))
    ratings = np.array([TAUGHT[source] for source in sources[rows]], dtype=float)
    said = np.empty(rows.size)
    for test in _folds(rows.size):
        train = np.setdiff1d(np.arange(rows.size), test)
        model = EducationalQuality().fit([texts[rows[i]] for i in train], ratings[train])
        said[test] = model.score([texts[rows[i]] for i in test])
    f1 = float(f1_score(ratings >= 3, said >= 3))
    run.figure("educational_f1", f1, unit="F1 at a rating of 3", better="higher", n=rows.size,
               every_text=float(f1_score(ratings >= 3, np.ones(rows.size))),
               auroc=auroc(said, ratings >= 3), note="rated by source, not by a large model")  # fmt: skip


def _embedders() -> dict[str, Embedder]:
    made: dict[str, Embedder] = {"static": StaticEmbedder()}
    try:
        made["minilm"] = OnnxEmbedder(n_threads=1)
        made["minilm"].embed(["warm"])
    except DownloadError as error:
        print(f"no encoder: {error}")
        made.pop("minilm", None)
    return made


def _paraphrases(run: Run) -> None:
    """Pairs that people call equal joined by meaning, beside joined by words; and how alike what is joined is."""
    rows = [row for row in run.rows("sts_2012_2016/pairs.jsonl.gz") if row["score"]]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[: 1000 if run.quick else 4000]]
    scores = np.array([float(row["score"]) for row in rows])
    same = scores >= 4.75
    pairs = [(row["s1"], row["s2"]) for row in rows]
    by_words = _joined(pairs, MinHashDedup(n_gram=1))
    found = {"words": {"recall": float(by_words[same].mean()), "joined": float(by_words.mean())}}
    for name, embedder in _embedders().items():
        for least in (0.8, 0.9, 0.95):
            joined = _joined(pairs, SemanticDedup(least, embedder))
            found[f"{name} {least}"] = {
                "recall": float(joined[same].mean()),
                "joined": float(joined.mean()),
                "alike among joined": float(np.mean(scores[joined] >= 4)) if joined.any() else 1.0,
            }
    for name, values in found.items():
        print(f"{name:12s} { {key: round(value, 3) for key, value in values.items()} }", flush=True)
    best = "minilm 0.9" if "minilm 0.9" in found else "static 0.9"
    run.figure("paraphrase_recall", found[best]["recall"], unit=f"of pairs rated equal, {best}", better="higher",
               n=int(same.sum()), by_words=found["words"]["recall"], settings=found)  # fmt: skip


def _joined(pairs: Sequence[tuple[str, str]], step: SemanticDedup | MinHashDedup) -> np.ndarray:
    """Whether the two texts of each pair meet in a band and are alike enough: what a run joins."""
    documents = [Document(text) for pair in pairs for text in pair]
    plan = Plan()
    step.plan(plan)
    batch = Batch([document.text for document in documents]).scan(plan)
    bands, checks = step.keys(batch, np.arange(len(documents)), documents)
    met = ((bands[::2] == bands[1::2]) & (bands[::2] != 0)).any(axis=1)
    return np.asarray(met & ((checks[::2] == checks[1::2]).mean(axis=1) >= step.least))


def _diversity(run: Run) -> None:
    """A quarter of web, papers, code and talk chosen by D4, beside random quarters: how near the nearest other is."""
    texts = _pile(run)[0]
    texts += [(row["input"] + row["output"])[:4000] for row in run.rows("c4_sample/c4.jsonl.gz")]
    texts = [text for text in dict.fromkeys(texts) if text.strip()]
    vectors = unit_rows(StaticEmbedder().embed(texts).astype(float))
    k = len(texts) // 4

    def nearest(rows: np.ndarray) -> float:
        closeness = vectors[rows] @ vectors[rows].T
        np.fill_diagonal(closeness, -1)
        return float(closeness.max(axis=1).mean())

    rng = np.random.default_rng(0)
    draws = np.array([nearest(rng.permutation(len(texts))[:k]) for _ in range(20)])
    chosen = np.array([nearest(d4(vectors, k, n_clusters=40, seed=seed)) for seed in range(5)])
    run.figure("d4_nearest_cosine", float(chosen.mean()), unit="mean cosine to the nearest other", better="lower",
               n=k, seeds=chosen.size, low=float(chosen.min()), high=float(chosen.max()),
               at_random=float(draws.mean()), least_of_random=float(draws.min()))  # fmt: skip
