"""Evaluation without references: from samples, token probabilities, proxies and judges."""

from __future__ import annotations

from pilotfish.methods import method
from pilotfish.models.reading import Reader
from pilotfish.protocols import Embedder, Model
from pilotfish.scorers.answers import MeanLogProb
from pilotfish.scorers.entailment import Entailment
from pilotfish.scorers.forecasting import ProxyLM
from pilotfish.scorers.judges import GradeJudge, JudgePanel
from pilotfish.scorers.likelihood import NegativePerplexity, TokenEntropy
from pilotfish.scorers.selfcheck import SelfCheck, SemanticEntropy

_COMMAND = "pilotfish evaluate outputs.jsonl --metrics "


@method(
    "selfcheck",
    paper="Manakul 2023, arXiv:2303.08896",
    group="reference_free",
    needs="black box",
    command=_COMMAND + "selfcheck",
)
def selfcheck(embedder: Embedder | None = None, entailment: Entailment | None = None) -> SelfCheck:
    """Check an answer's sentences against other samples: n-grams, or an embedder or entailment model where given."""
    return SelfCheck(embedder, entailment)


@method(
    "semantic_entropy",
    paper="Kuhn 2023, arXiv:2302.09664",
    group="reference_free",
    needs="black box",
    command=_COMMAND + "semantic_entropy",
)
def semantic_entropy(
    entailment: Entailment | None = None, embedder: Embedder | None = None, weights: str = "discrete"
) -> SemanticEntropy:
    """Entropy over the meanings of several samples: final answers, or clusters by entailment or embedding."""
    return SemanticEntropy(entailment, embedder, weights=weights)


@method(
    "mean_log_prob",
    paper="Guerreiro 2023, arXiv:2208.05309; the baseline of the others",
    group="reference_free",
    needs="token probabilities",
    command=_COMMAND + "mean_log_prob",
)
def mean_log_prob() -> MeanLogProb:
    """Mean log-probability of the written tokens, as the endpoint returned them."""
    return MeanLogProb()


@method(
    "token_entropy",
    paper="Malinin and Gales 2021, arXiv:2002.07650",
    group="reference_free",
    needs="token probabilities",
    command=_COMMAND + "token_entropy",
)
def token_entropy() -> TokenEntropy:
    """Mean entropy of the model's distribution at each written token, from the alternatives it returned."""
    return TokenEntropy()


@method(
    "perplexity",
    paper="Jelinek 1977; the baseline of the others",
    group="reference_free",
    needs="token probabilities",
    command=_COMMAND + "perplexity",
)
def perplexity(reader: Reader | None = None) -> NegativePerplexity:
    """Perplexity of an answer, by its stored token probabilities or to a small model that reads it."""
    return NegativePerplexity(reader)


@method(
    "proxy_lm",
    paper="Anugraha 2024, arXiv:2406.09334",
    group="reference_free",
    needs="black box",
    command="pilotfish forecast --model-card large.toml --proxies small1,small2 --task t.jsonl",
)
def proxy_lm() -> ProxyLM:
    """Predict a large model's score on a task from small proxies, the data and what its card states."""
    return ProxyLM()


@method(
    "llm_judge",
    paper="Gu 2024a, arXiv:2411.15594",
    group="reference_free",
    needs="black box",
    command=_COMMAND + "llm_judge --judge small",
)
def llm_judge(judge: Model, rubric: str = "", n_grades: int = 5) -> GradeJudge:
    """Let a model grade answers by a rubric, held to a grade by a grammar, weighted by its token probabilities."""
    return GradeJudge(judge, rubric, n_grades=n_grades) if rubric else GradeJudge(judge, n_grades=n_grades)


@method(
    "small_judges",
    paper="Thakur 2024, arXiv:2406.12624; Dawid and Skene 1979",
    group="reference_free",
    needs="black box",
    command="pilotfish compare a.jsonl b.jsonl --judge small,qwen2.5-coder-0.5b-instruct",
)
def small_judges(penalty: float = 2.0) -> JudgePanel:
    """Join cheap judges' verdicts, in both orders, weighed by reliabilities that a few gold labels teach."""
    return JudgePanel(penalty)
