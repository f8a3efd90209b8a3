"""Every error that Foreguard raises on purpose.

    ForeguardError
    ├── ArtifactError          an artifact cannot be used
    │   ├── ArtifactCorrupt    truncated, tampered with, or malformed
    │   ├── ArtifactMismatch   made from another model, tokenizer or chat template
    │   └── SchemaTooNew       written by a newer Foreguard
    ├── PolicyError            a policy file cannot be used
    ├── PromptError            a prompt file cannot be used
    ├── CalibrationError       calibration cannot go on
    │   └── TooFewNegatives    the sample cannot certify the threshold asked for
    ├── ModelError             a model cannot be tapped or read
    └── ServingError           the guarded server cannot start

Catch at the level you mean. Each error names the field that is wrong and what to do about it.
"""


class ForeguardError(Exception):
    """Something that a person must mend: `field` says where, `problem` what, `remedy` how."""

    def __init__(self, problem: str, *, field: str, remedy: str) -> None:
        super().__init__(problem, field, remedy)
        self.problem = problem
        self.field = field
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}\n  remedy: {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword arguments do not survive vLLM's process boundaries without this.
        return _rebuild, (type(self), self.problem, self.field, self.remedy)


def _rebuild(kind: type[ForeguardError], problem: str, field: str, remedy: str) -> ForeguardError:
    return kind(problem, field=field, remedy=remedy)


class ArtifactError(ForeguardError):
    """An artifact cannot be used."""


class ArtifactCorrupt(ArtifactError):
    """The artifact is truncated, tampered with, or malformed."""


class ArtifactMismatch(ArtifactError):
    """The artifact was made from another model, tokenizer or chat template."""


class SchemaTooNew(ArtifactError):
    """The artifact was written by a newer Foreguard."""


class PolicyError(ForeguardError):
    """A policy file cannot be used."""


class PromptError(ForeguardError):
    """A prompt file cannot be used."""


class CalibrationError(ForeguardError):
    """Calibration cannot go on."""


class TooFewNegatives(CalibrationError):
    """The sample of benign prompts is too small to certify the threshold asked for."""


class ModelError(ForeguardError):
    """A model cannot be tapped or read."""


class ServingError(ForeguardError):
    """The guarded server cannot start."""
