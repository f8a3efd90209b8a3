"""What asking in other forms found, as a file of a calibration."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.numpy import save_file

from calibration.evaluation.forms.asked import Asked
from calibration.evaluation.forms.endings import Endings, certify_endings
from calibration.evaluation.forms.rates import RESULT, measure_forms
from calibration.fitting.study import StudyResult
from calibration.model.chat_model import ChatModel
from calibration.prompts.template import EncodedPrompts
from calibration.recording.stage_file import written_whole
from probes.manifest import FormRates, Probe
from probes.scoring import ProbeBank
from probes.template import Ending

_MOST_CERTIFYING = 4000
"""Validation requests per class that certify other endings: more promise no lower rates than thresholds are asked
for."""
_MOST_CHANGED, _LONGEST_CHANGED = 200, 120
"""Requests with changed letters, and the letters of the longest: each letter is a token or several."""
_RATES: TypeAdapter[dict[str, dict[str, FormRates]]] = TypeAdapter(dict[str, dict[str, FormRates]])
_STUDIES: TypeAdapter[tuple[StudyResult, ...]] = TypeAdapter(tuple[StudyResult, ...])


@dataclass(frozen=True, slots=True)
class FormResults:
    """What the probes make of requests in other forms."""

    harmless: Mapping[Ending, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Harmless scores `[N, K]` by ending."""
    certified: Mapping[str, tuple[Ending, ...]] = field(default_factory=dict)
    rates: Mapping[str, dict[str, FormRates]] = field(default_factory=dict)
    studies: tuple[StudyResult, ...] = ()
    not_asked: Mapping[str, str] = field(default_factory=dict)

    def noted(self, spec: Probe) -> Probe:
        """Return the probe with the endings that it decides on and its rates by form."""
        endings = (Ending.TEMPLATE, *self.certified.get(spec.name, ()))
        return spec.model_copy(update={"endings": endings, "forms": self.rates.get(spec.name, {})})

    def save(self, path: Path) -> None:
        """Write them to one safetensors file; its header holds all but the scores."""
        header = {
            "certified": json.dumps(dict(self.certified)),
            "rates": _RATES.dump_json(dict(self.rates)).decode(),
            "studies": _STUDIES.dump_json(self.studies).decode(),
            "not_asked": json.dumps(dict(self.not_asked)),
        }
        with written_whole(path) as staging:
            # safetensors refuses an empty file.
            scores = {str(end): each for end, each in self.harmless.items()} or {"nothing": np.zeros(1, np.float32)}
            save_file(scores, staging, header)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        with safe_open(path, framework="np") as file:
            header = file.metadata()
            names = [name for name in file.keys() if name != "nothing"]  # noqa: SIM118 - no mapping
            harmless = {Ending(name): file.get_tensor(name) for name in names}
        certified = {name: tuple(map(Ending, ends)) for name, ends in json.loads(header["certified"]).items()}
        rates, studies = _RATES.validate_json(header["rates"]), _STUDIES.validate_json(header["studies"])
        return cls(harmless, certified, rates, studies, json.loads(header["not_asked"]))


def ask_in_forms(
    chat: ChatModel,
    bank: ProbeBank,
    validation: EncodedPrompts,
    test: EncodedPrompts,
    plain: npt.NDArray[np.float32],
    most: int,
) -> FormResults:
    """Certify other endings on `validation`, and measure every form on at most `most` requests per class of `test`.

    `plain` `[N, K]` are the harmless scores that thresholds for plain chat are certified on.
    """
    asked = Asked.of(chat, bank, validation, _MOST_CERTIFYING if most else 0)
    if not asked.can_ask:
        return FormResults(
            not_asked={RESULT: "there are no single-turn requests of both classes to ask in other forms"}
        )
    endings = certify_endings(asked, bank.probes, _changed(asked, bank))
    return _measured(Asked.of(chat, bank, test, most), bank, plain, endings)


def _measured(asked: Asked, bank: ProbeBank, plain: npt.NDArray[np.float32], endings: Endings) -> FormResults:
    if not asked.can_ask:
        reason = "the test prompts have no single-turn requests of both classes"
        return FormResults(endings.harmless, endings.certified, not_asked={RESULT: reason})
    rates, study = measure_forms(asked, bank.probes, plain, endings, _changed(asked, bank))
    return FormResults(endings.harmless, endings.certified, rates, (study,))


def _changed(asked: Asked, bank: ProbeBank) -> Asked | None:
    """Return who asks requests with changed letters, where a probe is to find those."""
    changed = asked.with_changed_letters(_MOST_CHANGED, _LONGEST_CHANGED)
    return changed if changed.can_ask and any(probe.role == "evades" for probe in bank.probes) else None
