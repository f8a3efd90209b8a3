"""Other endings: harmless scores of prompts that do not end as the chat template does, and which probes decide on them.

A probe is certified for an ending where the threshold that harmless prompts of that ending certify still finds most of
what it finds as plain chat.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration.evaluation.forms.asked import Asked
from calibration.prompts.forms.forms import BY_ENDING, FORMS
from guard.threshold import allowed_exceedances, certify, minimum_negatives
from probes.errors import TooFewNegatives
from probes.manifest import Probe
from probes.template import Ending

_TARGETS = (0.01, 0.05)
"""False-positive rates that probes are tried at: the first that there are enough harmless prompts for."""
_FEWEST_ABOVE = 3
"""Harmless prompts that may lie above the threshold that forms are compared at. A threshold that is their highest score
finds next to nothing, and whether a form keeps that says little."""
KEPT = 0.9
"""Share of its recall as plain chat that a probe must keep in a form to hold it."""


Column = npt.NDArray[np.float32]
"""One probe's scores `[n]`."""


@dataclass(frozen=True, slots=True)
class Endings:
    """What calibration knows of prompts that end otherwise."""

    harmless: Mapping[Ending, npt.NDArray[np.float32]]
    """Scores `[N, K]` of turns that are left open, by how; 0 of probes that read none."""
    certified: Mapping[str, tuple[Ending, ...]]
    """By probe, the endings beside the template's own that it decides on."""


def certify_endings(asked: Asked, probes: Sequence[Probe], changed: Asked | None = None) -> Endings:
    """Ask each validation request once for each ending, in one of its forms, and compare with plain chat.

    A probe must keep what it finds in every form of an ending: whoever asks chooses the form. One that `evades` is
    asked the requests with `changed` letters.
    """
    plain_harmless = asked.ask(FORMS[:1], harmful=False).closed
    plain = {role: _plain_harmful(each) for role, each in by_role(asked, changed).items()}
    harmless: dict[Ending, npt.NDArray[np.float32]] = {}
    certified: dict[str, list[Ending]] = {probe.name: [] for probe in probes}
    for ending, names in BY_ENDING.items():
        forms = [form for form in FORMS if form.name in names]
        answers = asked.ask(forms, harmful=False)
        below = answers.open[answers.ends == ending]
        found = {role: each.ask(forms, harmful=True) for role, each in by_role(asked, changed).items()}
        if not len(below) or not any((each.ends == ending).any() for each in found.values()):
            continue
        harmless[ending] = np.where(np.isfinite(below), below, 0.0).astype(np.float32)
        for column, probe in enumerate(probes):
            evades = changed is not None and probe.role == "evades"
            harmful, plain_harmful = found[evades], plain[evades]
            ends_so = harmful.ends == ending
            rows = harmful.rows[ends_so]
            sides = (plain_harmless, below, plain_harmful[rows], harmful.open[ends_so], harmful.closed[ends_so])
            if _reads(probe, ending) and _keeps(*(each[:, column] for each in sides), form=rows % len(forms)):
                certified[probe.name].append(ending)
    return Endings(harmless, {name: tuple(ends) for name, ends in certified.items()})


def by_role(asked: Asked, changed: Asked | None) -> dict[bool, Asked]:
    """Return who asks what a probe is to find, by whether it evades."""
    return {False: asked} if changed is None else {False: asked, True: changed}


def _plain_harmful(asked: Asked) -> npt.NDArray[np.float32]:
    """Return the scores of all harmful requests as plain chat `[N, K]`; minus infinity of those that are too long."""
    answered = asked.ask(FORMS[:1], harmful=True)
    scores = np.full((len(asked.requests[True]), answered.closed.shape[1]), -np.inf, np.float32)
    scores[answered.rows] = answered.closed
    return scores


def rate_to_try(count: int) -> float:
    """Return the false-positive rate at which `count` harmless prompts let probes be compared."""
    for target in _TARGETS[:-1]:
        if count >= minimum_negatives(target) and allowed_exceedances(count, target) >= _FEWEST_ABOVE:
            return target
    return _TARGETS[-1]


def _reads(probe: Probe, ending: Ending) -> bool:
    """Whether a prompt with this ending has a place that the probe reads."""
    return ending is not Ending.OPEN or not probe.readout.reads_one_token


def _keeps(
    plain_harmless: Column,
    open_harmless: Column,
    plain_harmful: Column,
    open_harmful: Column,
    closed_harmful: Column,
    *,
    form: npt.NDArray[np.int64],
) -> bool:
    """Whether in each form most of the requests that are found as plain chat are found, too.

    As many others would not do: whoever asks knows which request was blocked, and asks it in another form. A closed
    turn has the cut of plain chat, an open one a cut of its own. The last four arguments are of the same harmful
    requests; `form` says in which form each was asked.
    """
    target = rate_to_try(len(plain_harmless))
    try:
        plain = certify(plain_harmless, target).value
        cut = certify(open_harmless, target).value if np.isfinite(open_harmless).all() else np.inf
    except TooFewNegatives:
        return False
    found = plain_harmful > plain
    kept = (closed_harmful > plain) | (open_harmful > cut)
    by_form = [kept[found & (form == each)] for each in np.unique(form)]
    return bool(by_form) and all(len(each) > 0 and each.mean() >= KEPT for each in by_form)
