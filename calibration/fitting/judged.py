"""Which prompts say what a probe is worth."""

import numpy as np

from calibration.fitting.training_set import Rows
from calibration.prompts.template import EncodedPrompts
from probes.manifest import Probe


def judged_by(spec: Probe, prompts: EncodedPrompts) -> Rows:
    """Return the rows of harmless prompts, and of harmful ones; of the probe's category only, where it has one.

    Where no harmful prompt is of its category, all are taken.
    """
    of_category = np.array([spec.category in (None, prompt.category) for prompt in prompts.prompts], dtype=bool)
    own = prompts.harmful & of_category
    return np.flatnonzero(~prompts.harmful | (own if own.any() else prompts.harmful))
