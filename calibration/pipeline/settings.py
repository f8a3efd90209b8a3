"""What a calibration can be told beyond its model and its prompts."""

from dataclasses import dataclass
from pathlib import Path

from calibration.methods.steering.admission import KL_BUDGET
from calibration.methods.watches.watches import require_tokens
from calibration.recording.engine_source import IN_PROCESS, require_engine
from calibration.registry import methods, plain, refitted, require_known, require_method, users_of_a_partner
from probes.errors import CalibrationError


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of `foreguard calibrate`."""

    dtype: str = "auto"
    """`auto` computes in the model's own precision."""
    device: str = "cpu"
    limit: int | None = None
    """Most training prompts per class; validation and test are always used whole."""
    leave_one_source_out: bool = False
    """Also fit without each source in turn, and measure on it."""
    skip_long: bool = False
    """Leave out prompts longer than the model's context instead of refusing them."""
    keep_work: bool = False
    partner: Path | None = None
    """The same model before or after its alignment, for contrasts."""
    kl_budget: float = KL_BUDGET
    """Most that a steering vector may change harmless first tokens, in nats, to be put into the artifact."""
    forms: int = 100
    """Test requests per class that are asked in each form; none: no form is asked but plain chat."""
    keep_costly_steering: bool = False
    """Put vectors over the budget into the artifact all the same."""
    ray: str | None = None
    """Address of a Ray cluster whose workers read the training prompts' activations."""
    engine: str = IN_PROCESS
    """Who computes the training prompts' activations: `hf`, or an engine of entry point group `foreguard.engines`."""
    engine_args: tuple[str, ...] = ()
    """The engine's own arguments."""
    wrap: float = 0.0
    """Share of single-turn training prompts that are added once more inside templates and jailbreak wrappers."""
    watch_answers: int | None = None
    """Most tokens of the answers that watches are calibrated for; no watches where there is none."""
    full: bool = False
    """Fit every method, ask every study, and measure every control, however long it takes."""
    also: tuple[str, ...] = ()
    """Names of methods and studies to run beside the methods of a plain calibration."""
    only: tuple[str, ...] | None = None
    """Names of the methods and studies to run, and no others; it goes with neither `full` nor `also`."""

    def runs(self, name: str) -> bool:
        """Whether a method or a study is asked for."""
        if self.only is not None:
            return name in self.only
        return self.full or name in plain() or name in self.also

    @property
    def asked_methods(self) -> tuple[str, ...]:
        """The names of the methods that are asked for, in their order."""
        return tuple(filter(self.runs, methods()))

    def require(self) -> None:
        """Raise `CalibrationError` for a setting that means nothing, before any work is done."""
        require_engine(self.engine, self.engine_args)
        if self.engine != IN_PROCESS and self.ray is not None:
            raise CalibrationError(
                "an engine is not spread over Ray", field="--ray", remedy="leave out --ray, or --engine"
            )
        if not 0 <= self.wrap <= 1:
            raise CalibrationError(
                f"{self.wrap} is no share of the training prompts", field="--wrap", remedy="give a number from 0 to 1"
            )
        require_tokens(self.watch_answers)
        self.require_one_choice()
        if self.leave_one_source_out:
            refitted(self.asked_methods)

    def require_one_choice(self) -> None:
        """Raise `CalibrationError` unless what is to run exists, is said once, and has a use for what was given."""
        require_known(self.also, "--also")
        if self.only is not None:
            self._require_only(self.only)
        if self.partner and not any(map(self.runs, users_of_a_partner())):
            raise CalibrationError(
                "nothing that is to run compares the model with a partner",
                field="--partner",
                remedy=f"add --full, or --also with one of {', '.join(users_of_a_partner())}",
            )

    def _require_only(self, names: tuple[str, ...]) -> None:
        if self.full or self.also:
            other = "--full" if self.full else "--also"
            raise CalibrationError(
                f"{other} asks for more than the names given", field="--only", remedy=f"leave out --only, or {other}"
            )
        require_known(names, "--only")
        require_method(names)


PLAIN = Settings()
"""A calibration that is told nothing."""
