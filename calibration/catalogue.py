"""What a calibration runs: the methods that fit, then the diagnostics that ask what was fitted."""

from calibration.alignment_tax import study_alignment_tax
from calibration.attention.safety_heads import safety_heads
from calibration.causal.answers import answer_study
from calibration.causal.attribution_study import attribution_study
from calibration.causal.illusion import illusion_study
from calibration.causal.sensitivity import sensitivity_study
from calibration.dynamic_composition import composition_study
from calibration.expert_bias import expert_study
from calibration.grafting_study import grafting
from calibration.methods.classifiers import fit_classifiers
from calibration.methods.fitted import Diagnostic, Method
from calibration.methods.harmfulness_direction import fit_harmfulness_direction
from calibration.methods.neuron_damping import damping_study
from calibration.methods.refusal_direction import fit_refusal_direction
from calibration.methods.safety_neurons import fit_safety_neurons
from calibration.methods.steering import fit_steering
from calibration.methods.token_level import fit_token_level
from calibration.methods.weak_classifiers import fit_weak_classifiers
from calibration.patching_study import study_patching
from calibration.refusal_by_category import category_study

METHODS: dict[str, Method] = {
    "refusal_direction": fit_refusal_direction,
    "harmfulness_direction": fit_harmfulness_direction,
    "classifiers": fit_classifiers,
    "weak_classifiers": fit_weak_classifiers,
    "token_level": fit_token_level,
    "safety_neurons": fit_safety_neurons,
    "steering": fit_steering,
}
DIAGNOSTICS: dict[str, Diagnostic] = {
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
}
QUICK = ("refusal_direction", "harmfulness_direction", "classifiers", "token_level")
"""The methods of a quick calibration, which asks no diagnostics: what a policy usually reads and steers with."""
