"""What calibration is made of: a method fits probes, a study measures what was fitted. Each is one value.

A package adds its own by an entry point, whose name is the value's:

    [project.entry-points."foreguard.methods"]
    my_probe = "my_package.my_probe:METHOD"

`calibration.registry` finds them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from calibration.fitting.fitted import Fitted
from calibration.fitting.study import StudyResult
from calibration.fitting.training_set import TrainingSet


@dataclass(frozen=True, slots=True)
class Method:
    """A way to fit probes, steering vectors, or both."""

    name: str
    """As users give it to `--only` and `--also`; its probes have names of their own."""
    fit: Callable[[TrainingSet], Fitted]
    """Raises `CalibrationError` where the prompts or the model do not allow it."""
    rank: int = 100
    """Its probes stand in the artifact after those of methods of lower rank; equal ranks go by name."""
    plain: bool = False
    """Whether a plain calibration runs it; `--full` runs all."""
    refits: bool = False
    """Whether `--leave-one-source-out` fits it anew without each source: it must not need a whole selection."""
    reads: Mapping[str, str] = field(default_factory=dict)
    """Its probes that the even combination averages, by what they read: those that read the same share a part."""
    uses_partner: bool = False
    """Whether it contrasts the model with a partner, where there is one."""


@dataclass(frozen=True, slots=True)
class Study:
    """A measurement of the model and of what was fitted. No artifact needs it."""

    name: str
    """As users give it to `--only` and `--also`."""
    measure: Callable[[TrainingSet, Fitted], tuple[StudyResult, ...]]
    """Raises `Skipped` where it cannot be measured, and `CalibrationError`."""
    rank: int = 100
    """Studies are measured in order of rank, then of name."""
    uses_partner: bool = False
    """Whether it contrasts the model with a partner, where there is one."""
