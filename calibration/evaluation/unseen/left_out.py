"""One family of sources left out: the others to fit on, some of theirs to set the cut by, and the family's own.

A family is what stands before the first colon of a source's name: `jailbreak:fiction` and `jailbreak:persona` are left
out together, since whoever has seen the one has half seen the other. Wrapped copies (`calibration.prompts.wrapping`)
can be left out, too: the one kind of attack that can be made of any prompts.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from calibration.fitting.training_set import Rows, TrainingSet, set_aside
from calibration.prompts.prompt_file import MINIMUM_PER_CLASS
from calibration.prompts.template import EncodedPrompts
from probes.errors import CalibrationError

_JUDGED_SHARE = 0.25
SEED = 20_260
WRAPPED = "wrapped copies"
"""Left out like a family: nothing is fitted on a wrapper, and what is met are copies of prompts that took no part."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One family left out."""

    training: TrainingSet
    """The other families, to fit on and choose by."""
    judged: Rows
    """Prompts of the other families that take no part in that: they set the cut.

    As they were given, no wrapped copies.
    """
    left_out: Rows
    """The family's own prompts, as they were given; of wrapped copies, those of the judged."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The source of each prompt that was left out; copies have one of their own."""
        prompts = self.training.prompts.prompts
        return tuple(WRAPPED if prompts[row].is_wrapped else prompts[row].source or "" for row in self.left_out)


def families(prompts: EncodedPrompts) -> npt.NDArray[np.str_]:
    """Return each prompt's family `[N]`, empty where it names no source."""
    return np.array([(prompt.source or "").split(":")[0] for prompt in prompts.prompts])


def require_families(prompts: EncodedPrompts) -> None:
    """Raise `CalibrationError` unless each family can be left out: checked before any work is done.

    What is left must be enough for both classes to be fitted on; the exact count is known when prompts are divided.
    """
    labels = families(prompts)
    names = np.unique(labels).tolist()
    if len(names) < 2:
        raise CalibrationError(
            f"the training prompts have {len(names)} family of sources",
            field="source",
            remedy='name at least two in the prompt file: {"prompt": …, "label": …, "source": "…"}; '
            "what stands before a colon is the family",
        )
    for name in names:
        for label in (True, False):
            _require_enough(int((prompts.harmful[labels != name] == label).sum()), name, harmful=label)


def kinds_to_leave_out(prompts: EncodedPrompts) -> list[str]:
    """Return the families in their order, and wrapped copies after them where there are any."""
    wrapped = [WRAPPED] if any(prompt.is_wrapped for prompt in prompts.prompts) else []
    return [*np.unique(families(prompts)).tolist(), *wrapped]


def leave_out(training: TrainingSet, name: str, seed: int = SEED) -> LeftOut:
    """Leave family `name` out, or `WRAPPED` copies; `seed` says which of the others set the cut.

    Raises `CalibrationError` where too little is left to fit on.
    """
    wrapped = np.array([prompt.is_wrapped for prompt in training.prompts.prompts])
    out = wrapped if name == WRAPPED else families(training.prompts) == name
    fit, select = training.fit[~out[training.fit]], training.select[~out[training.select]]
    # Copies are set aside with their originals, so those of the judged are what no fit has seen in any form.
    judged = set_aside(training.prompts, training.fit if name == WRAPPED else fit, _JUDGED_SHARE, seed)
    kept = np.setdiff1d(fit, judged)
    for label in (True, False):
        sizes = [int((training.harmful[rows] == label).sum()) for rows in (kept, select)]
        _require_enough(sizes[0] if sizes[1] else 0, name, harmful=label)
    met = judged[wrapped[judged]] if name == WRAPPED else np.flatnonzero(out & ~wrapped)
    return LeftOut(replace(training, fit=kept, select=select), judged[~wrapped[judged]], met)


def _require_enough(count: int, name: str, *, harmful: bool) -> None:
    if count < MINIMUM_PER_CLASS:
        kind = "harmful" if harmful else "harmless"
        raise CalibrationError(
            f"without source {name!r} {count} {kind} prompts are left to fit on",
            field="source",
            remedy=f"add {kind} prompts of other sources: {MINIMUM_PER_CLASS} to fit on are the least",
        )
