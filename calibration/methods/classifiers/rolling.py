"""Probe `rolling`: the regression of `pooled`, read by the highest mean of a few tokens in a row.

A mean over a long turn drowns a short request in it: on long contexts a production probe that pools by a mean missed
99 % of what it should find (arXiv 2601.11516). The same weights on a stretch of eight tokens still see the request,
whatever stands before and behind it. Of a short request the mean over all of it knows more, so a policy asks both.
"""

from dataclasses import replace

from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted, FittedProbe
from calibration.fitting.training_set import TrainingSet
from calibration.methods.classifiers.linear_classifiers import fit_pooled
from probes.readout import Readout

_WINDOW = 8
"""Tokens. On SmolLM2, windows of 4 or 16 find less of requests within text, and longer ones hardly any
(docs/decisions.md)."""


def fit_rolling(training: TrainingSet) -> Fitted:
    """Return probe `rolling`."""
    return Fitted(probes=(rolling_of(fit_pooled(training)),))


def rolling_of(pooled: FittedProbe) -> FittedProbe:
    """Return the regression of `pooled`, read by stretches."""
    spec = pooled.spec.model_copy(
        update={
            "name": "rolling",
            "method": f"the regression of pooled on the highest mean of {_WINDOW} tokens",
            "readout": Readout(kind="swim", window=_WINDOW, over="content"),
            "evidence": {"inverse_penalty": pooled.spec.evidence["inverse_penalty"]},
        }
    )
    return replace(pooled, spec=spec)


METHOD = Method("rolling", fit_rolling, rank=35, plain=True)
