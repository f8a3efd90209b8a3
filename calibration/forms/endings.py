"""Other endings: harmless scores of prompts that do not end as the chat template does, and which probes decide on them.

A probe is certified for an ending where the threshold that harmless prompts of that ending certify still finds most of what
it finds as plain chat.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration.forms.asked import Asked
from calibration.forms.forms import BY_ENDING, FORMS
from guard.threshold import certify
from probes.errors import TooFewNegatives
from probes.manifest import Probe
from probes.template import Ending

TARGETS = (0.01, 0.05)
"""False-positive rates that a probe is tried at: the first that there are enough harmless prompts for."""
KEPT = 0.9
"""Share of its recall as plain chat that a probe must keep in a form to hold it."""


@dataclass(frozen=True, slots=True)
class Endings:
    """What calibration knows of prompts that end otherwise."""

    harmless: Mapping[Ending, npt.NDArray[np.float32]]
    """Scores `[N, K]` by how the prompts end."""
    certified: Mapping[str, tuple[Ending, ...]]
    """By probe, the endings beside the template's own that it decides on."""


def certify_endings(asked: Asked, probes: Sequence[Probe]) -> Endings:
    """Ask each validation request once for each ending, in one of its forms, and compare with plain chat."""
    plain = [asked.ask(FORMS[:1], harmful=harmful).worst for harmful in (False, True)]
    harmless: dict[Ending, npt.NDArray[np.float32]] = {}
    certified: dict[str, list[Ending]] = {probe.name: [] for probe in probes}
    for ending, names in BY_ENDING.items():
        forms = [form for form in FORMS if form.name in names]
        answers = [asked.ask(forms, harmful=harmful) for harmful in (False, True)]
        below, above = (each.worst[each.ends == ending] for each in answers)
        if not len(below) or not len(above):
            continue
        harmless[ending] = below
        for column, probe in enumerate(probes):
            if _reads(probe, ending) and _keeps(*(each[:, column] for each in (*plain, below, above))):
                certified[probe.name].append(ending)
    return Endings(harmless, {name: tuple(found) for name, found in certified.items()})


def _reads(probe: Probe, ending: Ending) -> bool:
    """Whether a prompt with this ending has a place that the probe reads."""
    return ending is not Ending.OPEN or probe.readout.kind != "last"


def _keeps(
    plain_harmless: npt.NDArray[np.float32],
    plain_harmful: npt.NDArray[np.float32],
    harmless: npt.NDArray[np.float32],
    harmful: npt.NDArray[np.float32],
) -> bool:
    for target in TARGETS:
        try:
            plain, other = (certify(each, target).value for each in (plain_harmless, harmless))
        except TooFewNegatives:
            continue
        found = float((plain_harmful > plain).mean())
        return found > 0 and float((harmful > other).mean()) >= KEPT * found
    return False
