"""The canary: a fixed prompt whose scores an artifact keeps, and how far a server's may be from them.

Calibration scores it by the arithmetic that certifies the thresholds; a server's self-test compares what each of its
engines reads with that. The prompt says nothing. It stands for every prompt whose numbers change where something
between the model's files and the taps is not as it was: other weights, another precision, other rotations of positions.
"""

from probes.artifact import BENIGN_SCORES, Artifact
from probes.template import Template

LENGTH = 24
_SHARES = {"float32": 0.01, "bfloat16": 0.15, "float16": 0.15}
"""By what the model is served in: how far a score may be away, as a share of its size (docs/decisions.md has what was
measured)."""
_QUANTISED, _ADAPTED = 3.0, 2.0
"""How much more it may be where weights and activations are rounded further, and where an adapter was calibrated
merged."""


def canary_prompt(vocabulary: int, template: Template | None) -> list[int]:
    """Return the prompt's token ids, in a model of so many. It ends as the chat template does, where that is known."""
    return [*((7 * place + 3) % vocabulary for place in range(LENGTH)), *(template.tail if template else ())]


def tolerances(artifact: Artifact) -> dict[str, float]:
    """Return by probe how far a served score of the canary may be from the one that the artifact keeps.

    A share of the score's size: of the score itself, of the standard deviation of harmless prompts' scores, or of 1,
    whichever is largest. Scores are log-odds, of which 1 is not much.
    """
    about = artifact.manifest.fingerprint
    share = _SHARES.get(about.dtype, _SHARES["bfloat16"])
    share *= (_QUANTISED if about.quantization else 1.0) * (_ADAPTED if about.lora else 1.0)
    spreads = artifact.tensors[BENIGN_SCORES].std(0, correction=0).tolist()
    names = [probe.name for probe in artifact.manifest.probes]
    kept = artifact.manifest.canary
    return {name: share * max(1.0, spread, abs(kept[name])) for name, spread in zip(names, spreads, strict=True)}
