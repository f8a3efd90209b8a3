"""How well harm can be told apart: by a bag of words (it should struggle) and by a probe inside the model."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from examples.lab.dataset import Sample
from examples.lab.generation import last_token_states

LAYER = 3
Scores = NDArray[np.float64]
Scorer = Callable[[Sequence[Sample]], Scores]


def is_harmful(samples: Sequence[Sample]) -> NDArray[np.bool_]:
    """Labels [N]."""
    return np.array([sample.label == "harmful" for sample in samples])


def unwrapped(samples: Sequence[Sample]) -> list[Sample]:
    """Single-turn prompts without a jailbreak wrapper and without a long document."""
    return [sample for sample in samples if sample.source in ("plain_harmful", "plain_harmless", "hard_benign")]


def text_of(sample: Sample) -> str:
    """All turns as one text."""
    return "\n".join(content for _, content in sample.messages)


def bag_of_words(train: Sequence[Sample]) -> Scorer:
    """Logistic regression on word counts of the train split."""
    fitted = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=2000))
    fitted.fit([text_of(sample) for sample in train], is_harmful(train))
    return lambda samples: fitted.decision_function([text_of(sample) for sample in samples])


def probe(model: Any, tokenizer: Any, train: Sequence[Sample]) -> Scorer:
    """Logistic regression on the residual stream after block LAYER, at the last token of the prompt."""
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    fitted.fit(last_token_states(model, tokenizer, train, LAYER).numpy(), is_harmful(train))
    return lambda samples: fitted.decision_function(last_token_states(model, tokenizer, samples, LAYER).numpy())


def auroc(scorer: Scorer, samples: Sequence[Sample]) -> float:
    """Area under the ROC curve of harmful against harmless."""
    return float(roc_auc_score(is_harmful(samples), scorer(samples)))


def recall_at(scorer: Scorer, harmful: Sequence[Sample], harmless: Sequence[Sample], rate: float) -> float:
    """Share of the harmful prompts above the threshold that a share `rate` of the harmless prompts exceeds."""
    threshold = np.quantile(scorer(harmless), 1 - rate, method="higher")
    return float(np.mean(scorer(harmful) > threshold))
