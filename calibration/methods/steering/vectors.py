"""Steering by every family at one block: each is fitted here, and measured and admitted afterwards, all by one rule.

`calibration.methods.steering.admission` then measures what each vector does to benign prompts, and leaves out
of the artifact those that cost too much.
"""

from calibration.fitting.contract import Method
from calibration.fitting.fitted import Fitted
from calibration.fitting.training_set import TrainingSet
from calibration.methods.steering.additive import StreamPairs, fit_additive
from calibration.methods.steering.angular import fit_angular
from calibration.methods.steering.conditional import fit_conditional
from calibration.methods.steering.contrast import find_contrast
from calibration.methods.steering.gaussian import fit_gaussian
from calibration.methods.steering.linear_act import fit_linear_act
from calibration.methods.steering.null_space import fit_null_space


def fit_steering(training: TrainingSet) -> Fitted:
    """Return steering vectors of all families, or a note that says why there is none."""
    contrast = find_contrast(training)
    if isinstance(contrast, str):
        return Fitted(notes=(contrast,))
    pairs = StreamPairs.of(contrast)
    return Fitted(
        steering=(
            *fit_additive(contrast, pairs),
            *fit_gaussian(contrast),
            *fit_linear_act(contrast),
            *fit_conditional(contrast, pairs),
            *fit_null_space(contrast),
            *fit_angular(contrast),
        )
    )


METHOD = Method("steering", fit_steering, rank=95)
