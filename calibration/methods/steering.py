"""Steering by every family at one block: each is fitted here, and measured and admitted afterwards, all by one rule.

What is fitted is a wish. `calibration.steering.admission` finds what each vector does to benign prompts, and keeps out
of the artifact what costs them too much.
"""

from calibration.methods.fitted import Fitted
from calibration.methods.steering_additive import Pairs, fit_additive
from calibration.methods.steering_angular import fit_angular
from calibration.methods.steering_conditional import fit_conditional
from calibration.methods.steering_contrast import find_contrast
from calibration.methods.steering_gaussian import fit_gaussian
from calibration.methods.steering_linear_act import fit_linear_act
from calibration.methods.steering_null_space import fit_null_space
from calibration.methods.training import TrainingSet


def fit_steering(training: TrainingSet) -> Fitted:
    """Return steering vectors of all families, or a note that says why there is none."""
    contrast = find_contrast(training)
    if isinstance(contrast, str):
        return Fitted(notes=(contrast,))
    pairs = Pairs.of(contrast)
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
