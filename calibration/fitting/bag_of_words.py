"""Logistic regression on words and word pairs: what a probe has to beat."""

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from calibration.prompts.template import EncodedPrompts


def tfidf_scores(train: EncodedPrompts, prompts: EncodedPrompts) -> npt.NDArray[np.float64]:
    """Return scores `[N]` of `prompts` by their words and word pairs alone, as learned from `train`."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = vectorizer.fit_transform([prompt.text for prompt in train.prompts])
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000).fit(features, train.harmful)
    return np.asarray(model.decision_function(vectorizer.transform([prompt.text for prompt in prompts.prompts])))
