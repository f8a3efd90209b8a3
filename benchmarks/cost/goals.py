"""What the guard may cost, and where it is read."""

from dataclasses import dataclass

from benchmarks.cost.results import FLAT

_ALL = "*"


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on the median ratio of an arm's figure to the unguarded one; on `level` `*`, at every level of the
    part.
    """

    subject: str
    part: str
    level: str
    figure: str
    arm: str
    bound: float
    at_least: bool = False

    @property
    def words(self) -> str:
        """The bound, for people."""
        return f"at {'least' if self.at_least else 'most'} {self.bound:.2f}"

    def holds(self, median: float) -> bool:
        """Whether a median keeps within the bound."""
        return median >= self.bound if self.at_least else median <= self.bound


GOALS = (
    Goal("half_billion", "http", _ALL, "first_token", "guarded", 1.01),
    Goal("half_billion", "http", _ALL, "per_token", "guarded", 1.01),
    Goal("half_billion", "http", _ALL, "requests_per_s", "guarded", 0.99, at_least=True),
    # The same in the engine, where a hundredth can be told: luck between servers is larger.
    Goal("half_billion", "concurrency", _ALL, "whole", "guarded", 1.01),
    Goal("lab", "http", "saturation", "requests_per_s", "guarded", 0.95, at_least=True),
    Goal("half_billion", "probes", "base", "whole", FLAT, 1.01),
    Goal("lab", "probes", "base", "whole", FLAT, 1.01),
    Goal("half_billion", "blocked", "100 %", "whole", "guarded", 1.02),
    Goal("lab", "blocked", "100 %", "whole", "guarded", 1.02),
)


def goal_of(subject: str, part: str, level: str, figure: str, arm: str) -> Goal | None:
    """Return the goal for a ratio, if there is one."""
    wanted = (subject, part, figure, arm)
    meant = ((g, (g.subject, g.part, g.figure, g.arm)) for g in GOALS if g.level in (_ALL, level))
    return next((goal for goal, key in meant if key == wanted), None)
