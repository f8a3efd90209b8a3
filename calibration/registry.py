"""What a calibration runs: the methods that fit, then the diagnostics that ask what was fitted.

The order counts: methods' probes stand in the artifact in this order, so the catalogue cannot be changed.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType

from calibration.fitting.fitted import Diagnostic, Method
from calibration.methods.classifiers.linear_classifiers import fit_classifiers
from calibration.methods.classifiers.refusal_readout import fit_refusal_readout
from calibration.methods.classifiers.weak_classifiers import fit_weak_classifiers
from calibration.methods.directions.harmfulness_direction import fit_harmfulness_direction
from calibration.methods.directions.refusal_direction import fit_refusal_direction
from calibration.methods.neurons.safety_neurons import fit_safety_neurons
from calibration.methods.novelty.out_of_distribution import fit_novelty
from calibration.methods.steering.neuron_damping import damping_study
from calibration.methods.steering.vectors import fit_steering
from calibration.methods.tokens.content import fit_content
from calibration.methods.tokens.token_level import fit_token_level
from calibration.studies.causal.answers import answer_study
from calibration.studies.causal.attribution_study import attribution_study
from calibration.studies.causal.illusion import illusion_study
from calibration.studies.causal.sensitivity import sensitivity_study
from calibration.studies.grafting.grafting_study import grafting
from calibration.studies.heads.safety_heads import safety_heads
from calibration.studies.neurons.alignment_tax import study_alignment_tax
from calibration.studies.neurons.patching_study import study_patching
from calibration.studies.novelty.comparison import compare_novelty
from calibration.studies.steering.dynamic_composition import composition_study
from calibration.studies.steering.expert_bias import expert_study
from calibration.studies.steering.refusal_by_category import category_study
from calibration.studies.steering.toxification_reversal import reversal_study
from probes.errors import CalibrationError

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "refusal_direction": fit_refusal_direction,
        "harmfulness_direction": fit_harmfulness_direction,
        "classifiers": fit_classifiers,
        "weak_classifiers": fit_weak_classifiers,
        "token_level": fit_token_level,
        "content": fit_content,
        "refusal_readout": fit_refusal_readout,
        "safety_neurons": fit_safety_neurons,
        "novelty": fit_novelty,
        "steering": fit_steering,
    }
)
DIAGNOSTICS: Mapping[str, Diagnostic] = MappingProxyType(
    {
        "neuron_patching": study_patching,
        "alignment_tax": study_alignment_tax,
        "safety_heads": safety_heads,
        "grafting": grafting,
        "refusal_answers": answer_study,
        "attribution": attribution_study,
        "concept_sensitivity": sensitivity_study,
        "subspace_illusion": illusion_study,
        "refusal_by_category": category_study,
        "composition": composition_study,
        "damping": damping_study,
        "experts": expert_study,
        "toxification_reversal": reversal_study,
        "novelty_scores": compare_novelty,
    }
)
DEFAULT = ("refusal_direction", "harmfulness_direction", "classifiers", "token_level", "content")
"""The methods of a calibration that is not told otherwise, and asks no diagnostics: what a policy usually reads and steers
with."""

WITH_PARTNER = ("safety_neurons", "neuron_patching", "alignment_tax", "novelty_scores")
"""What a partner has a part in."""


def require_known(names: Collection[str], option: str) -> None:
    """Raise `CalibrationError` unless each name, given by an option, is a method's or a diagnostic's."""
    for name in names:
        if name not in METHODS and name not in DIAGNOSTICS:
            raise CalibrationError(
                f"there is no method or diagnostic {name!r}",
                field=option,
                remedy=f"methods are {', '.join(METHODS)}; diagnostics are {', '.join(DIAGNOSTICS)}",
            )


def require_method(names: Collection[str]) -> None:
    """Raise `CalibrationError` unless one of the names asked for with `--only` is a method's."""
    if not METHODS.keys() & set(names):
        raise CalibrationError(
            "no method was asked for, so nothing would be fitted",
            field="--only",
            remedy=f"add one of {', '.join(METHODS)}",
        )
