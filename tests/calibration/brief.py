"""A calibration that is short and has every stage."""

from calibration.pipeline.settings import Settings

BRIEF = Settings(only=("refusal_direction", "harmfulness_direction", "classifiers", "refusal_by_category"))
"""A few seconds' calibration with every stage: what holds for stages is tested on it."""
