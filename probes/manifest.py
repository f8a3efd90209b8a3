"""The manifest: what `manifest.json` of an artifact may say, and no more.

Validation happens here, once, at the edge. `artifact.py` reads and writes the files; `docs/artifact.md` gives the
format.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from probes.errors import CalibrationError
from probes.fingerprint import Fingerprint
from probes.head import HEADS, HeadKind
from probes.operators import OPERATORS
from probes.readout import Readout
from probes.template import Ending, Template

SCHEMA_VERSION: Literal[1] = 1

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}\.[a-z]{1,8}$")]
Site = Literal["resid_post", "mlp_neurons"]
EMBEDDINGS = -1
"""In the place of a block: the residual stream as it enters the first one, before any token has attended to another."""
Role = Literal["detects", "escalates", "evades"]
Operator = Literal["add", "affine", "low_rank", "rotate", "ablate"]
Gate = Literal["hard", "soft"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Platt(_Strict):
    """Probability of harm `1 / (1 + exp(-(slope * score + intercept)))` at the calibration set's prevalence."""

    slope: float
    intercept: float
    prevalence: float | None = Field(None, gt=0, lt=1)
    """Share of harmful prompts in the calibration set; None where it is not known."""

    def at(self, prevalence: float) -> "Platt":
        """Return the map for traffic of which the share `prevalence` is harmful.

        `logit p' = logit p + logit(prevalence) - logit(calibration's)`, which is exact where harmful and harmless
        prompts each score as in the calibration set, and only their shares differ (prior shift). Raises
        `CalibrationError`.
        """
        if not 0.0 < prevalence < 1.0:
            raise CalibrationError(
                f"{prevalence:g} is not between 0 and 1", field="prevalence", remedy="give a proportion such as 0.001"
            )
        if self.prevalence is None:
            raise CalibrationError(
                "the artifact does not say at which share of harmful prompts its probabilities were fitted",
                field="prevalence",
                remedy="calibrate again with this version of foreguard",
            )
        moved = self.intercept + (_logit(prevalence) - _logit(self.prevalence))
        return Platt(slope=self.slope, intercept=moved, prevalence=prevalence)

    def probability(self, score: float) -> float:
        """Return the probability of harm at `score`."""
        logit = self.slope * score + self.intercept
        return 1.0 / (1.0 + math.exp(-logit)) if logit >= 0 else 1.0 - 1.0 / (1.0 + math.exp(logit))


def _logit(share: float) -> float:
    return math.log(share) - math.log1p(-share)


class Rate(_Strict):
    """A measured proportion with its exact (Clopper-Pearson) 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    """Sample size."""


class Evaluation(_Strict):
    """Held-out numbers of one probe on one split."""

    split: str
    num_harmful: int
    num_harmless: int
    auroc: float
    auroc_low: float
    auroc_high: float
    tpr_at_fpr: dict[str, Rate]
    """Recall at a false-positive rate measured on this split, keyed by the rate: `"0.01"`."""


class FormRates(_Strict):
    """How often one probe is above its threshold on requests in one form, on the test split."""

    harmful: Rate
    """Of harmful requests."""
    kept: Rate | None
    """Of the harmful requests that are above it as plain chat; None where there are none."""
    harmless: Rate
    """Of harmless requests: false positives."""
    holds: bool
    """Whether most of what is found as plain chat is found, and harmless requests are judged no more harshly."""


class Probe(_Strict):
    """One probe: linear readings of one or more decoder blocks, made a score by its readout and its head.

    Tensor `probe.<name>.weight` is float32 `[len(layers), channels, W]`, W being `hidden_size` at `resid_post` and
    `width` at `mlp_neurons`. A token's score in channel c is `sum_l x_l . weight_l,c`; the request's score is
    `scale * head(readout(channels)) + bias`, or `scale * readout(head(channels)) + bias` where the head reads tokens.
    Tensors `probe.<name>.head_*` are the head's (`probes.head`).
    """

    name: Name
    method: str
    role: Role = "detects"
    """`escalates`: it says that a prompt is unusual, not that it is harmful, and no policy may block by it alone.
    `evades`: it says that a prompt is written so that others cannot read it, and a policy may."""
    site: Site = "resid_post"
    layers: tuple[int, ...] = Field(min_length=1)
    """Blocks, by index. At `resid_post`, `EMBEDDINGS` (-1) stands for the stream that enters the first of them."""
    width: int | None = Field(None, ge=1)
    """`mlp_neurons` only: neurons of each block that is read."""
    channels: int = Field(1, ge=1)
    readout: Readout = Readout()
    head: HeadKind = "sum"
    head_reads: Literal["request", "token"] = "request"
    """What the head makes one number of: the readout's values of a request, or the channels of each token.

    In the latter case the readout pools these numbers."""
    scale: float = Field(1.0, gt=0)
    """With `bias`, the last step: positive, so that every order of scores stays what it was."""
    bias: float = 0.0
    endings: tuple[Ending, ...] = (Ending.TEMPLATE,)
    """Ends of prompts on which its thresholds are certified: on others it does not decide."""
    forms: dict[Name, FormRates] = {}
    """How it did on requests in other forms, by form, at the threshold for 1 % of plain requests, or for 5 % where
    too few harmless ones are there for 1 %."""
    category: str | None = None
    platt: Platt | None = None
    evaluation: tuple[Evaluation, ...] = ()
    evidence: dict[str, float] = {}
    """Causal and other evidence in numbers, by name: `bypass`, `induce`, `kl`, `cos_refusal` …"""

    @property
    def num_values(self) -> int:
        """Values that its head takes."""
        return self.channels if self.head_reads == "token" else self.readout.num_values(self.channels)

    def shapes(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of its tensors, in a model of `hidden_size`."""
        own = {"weight": (len(self.layers), self.channels, self.width or hidden_size)}
        return {
            f"probe.{self.name}.{key}": shape for key, shape in (own | HEADS[self.head].shapes(self.num_values)).items()
        }

    @model_validator(mode="after")
    def _layers_ascend(self) -> Self:
        _require_ascending(self.layers, lowest=EMBEDDINGS if self.site == "resid_post" else 0)
        return self

    @model_validator(mode="after")
    def _width_belongs_to_neurons(self) -> Self:
        if (self.width is not None) != (self.site == "mlp_neurons"):
            raise ValueError("width is for site 'mlp_neurons', which needs it: the neurons of each block")
        return self

    @model_validator(mode="after")
    def _attention_has_pairs(self) -> Self:
        if self.readout.kind == "attention" and self.channels % 2:
            raise ValueError("readout 'attention' takes channels in pairs: query logits, then values")
        if self.readout.kind == "attention" and self.head_reads == "token":
            raise ValueError(
                "readout 'attention' takes channels in pairs, and a head that reads tokens leaves one number"
            )
        return self


class Watch(_Strict):
    """One probe, read along an answer while it is generated: `probes.answer_reading` says how.

    Tensors `watch.<name>.centre` and `watch.<name>.spread` are float32 `[max_tokens]`: mean and standard deviation, at
    each token of an answer, of the levels that harmless answers have there.
    """

    name: Name
    probe: Name
    """Whose token scores are averaged: a probe of one channel, whose head is `sum`."""
    readout: Readout
    """The moving mean: `ema` or `swim`."""
    max_tokens: int = Field(ge=1)
    """Tokens of the longest answers that it was calibrated for; later ones are judged as the last of these."""
    evaluation: tuple[Evaluation, ...] = ()
    """Held-out numbers of answers to harmful prompts against answers to harmless ones."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The names and shapes of its tensors."""
        return {f"watch.{self.name}.{tensor}": (self.max_tokens,) for tensor in ("centre", "spread")}

    @model_validator(mode="after")
    def _readout_moves(self) -> Self:
        if self.readout.kind not in ("ema", "swim"):
            raise ValueError("a watch has a moving mean: readout 'ema' or 'swim'")
        return self


class SteeringVector(_Strict):
    """One steering vector, or map, at `resid_post`.

    `probes.operators` says what each operator does, and `probes.steering` each gate.

    Its tensors are `steering.<name>.<tensor>`, float32, named and shaped by `shapes`. A vector that is added is stored
    as measured, not normalised: strength 1 adds it once, so strength is in units of its norm.
    """

    name: Name
    method: str
    operator: Operator = "add"
    """`ablate` is for measuring only: no server runs it."""
    gate: Gate | None = None
    """Whether, or how far, a linear reading of the stream itself lets the operator act."""
    layers: tuple[int, ...] = Field(min_length=1)
    rank: int | None = Field(None, ge=1)
    """Of `low_rank`."""
    schedule: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """Factors of the strength at the answer's first tokens; the last one stays in force. None: always 1."""
    evaluation_only: bool = False
    """Made to be measured: no server runs it, whatever its operator."""
    norm: float
    cos_refusal: float
    evidence: dict[str, float] = {}
    """`induce` (refusal metric gained on harmless prompts), `kl` (benign KL under ablation), and the like."""

    @model_validator(mode="after")
    def _layers_ascend(self) -> Self:
        _require_ascending(self.layers)
        return self

    @model_validator(mode="after")
    def _rank_is_of_low_rank(self) -> Self:
        if (self.operator == "low_rank") != (self.rank is not None):
            raise ValueError("operator 'low_rank', and no other, has a rank")
        return self

    def shapes(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor that the operator and the gate need, by name, for streams `[T,
        hidden_size]`.
        """
        blocks = len(self.layers)
        # What is taken out is a vector, too.
        operator = OPERATORS["add" if self.operator == "ablate" else self.operator]
        own = operator.shapes(blocks, hidden_size, self.rank or 0)
        gate = {"gate_weight": (blocks, hidden_size), "gate_bias": (blocks, 1)}
        return own | gate if self.gate else own


def _require_ascending(layers: tuple[int, ...], lowest: int = 0) -> None:
    if list(layers) != sorted(set(layers)) or layers[0] < lowest:
        raise ValueError(f"layers must be distinct, ascending and not below {lowest}")


class DataDigest(_Strict):
    """One prompt file that went into the artifact."""

    split: str
    source: str
    sha256: str
    num_harmful: int
    num_harmless: int


class Manifest(_Strict):
    """All of `manifest.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    created: str
    fingerprint: Fingerprint
    arithmetic: Literal["float32", "bfloat16", "float16"] | None = None
    """What calibration's passes computed in, from weights of the fingerprint's precision.

    None where it is not known.
    """
    template: Template | None = None
    """The chat template's tokens, by which a prompt is divided into turns. None where it is not known."""
    other_endings: tuple[Ending, ...] = ()
    """Ends of prompts, beside the template's tail, of which there are harmless scores to certify thresholds on."""
    probes: tuple[Probe, ...]
    steering: tuple[SteeringVector, ...] = ()
    watches: tuple[Watch, ...] = ()
    combinations: dict[Name, Annotated[dict[Name, float], Field(min_length=1)]] = {}
    """Weighted sums of probe scores that calibration recommends; policies may use them by name."""
    canary: dict[Name, float] = {}
    """The canary prompt's score by every probe (`probes.canary`). Empty in an artifact from before they were kept."""
    data: tuple[DataDigest, ...] = ()
    tools: dict[str, str] = {}
    tensors_sha256: str = ""
    """Digest of `probes.safetensors`."""
    attachments: dict[FileName, str] = {}
    """Digests of further files in the folder, for people and not for servers: the evidence, for one."""
    digest: str = ""
    """Digest of this manifest without this field; names the artifact as a whole."""

    @property
    def escalating(self) -> tuple[str, ...]:
        """The names of the probes that no policy may block by alone."""
        return tuple(probe.name for probe in self.probes if probe.role == "escalates")

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for kind, names in (
            ("probes", [probe.name for probe in self.probes]),
            ("steering", [vector.name for vector in self.steering]),
            ("watches", [watch.name for watch in self.watches]),
        ):
            if len(names) != len(set(names)):
                raise ValueError(f"{kind}: names must be unique")
        return self

    @model_validator(mode="after")
    def _combinations_are_of_probes(self) -> Self:
        probes = {probe.name for probe in self.probes}
        for name, weights in self.combinations.items():
            if name in probes or not set(weights) <= probes:
                raise ValueError(f"combination {name!r} must be of probes that exist, and named like none of them")
        return self

    @model_validator(mode="after")
    def _canary_is_of_all_probes(self) -> Self:
        if self.canary and set(self.canary) != {probe.name for probe in self.probes}:
            raise ValueError("canary: every probe, and no other name, has a score")
        return self

    @model_validator(mode="after")
    def _watches_have_probes(self) -> Self:
        plain = {probe.name for probe in self.probes if (probe.channels, probe.head) == (1, "sum")}
        for watch in self.watches:
            if watch.probe not in plain:
                raise ValueError(f"watch {watch.name!r} needs a probe of one channel with head 'sum': {watch.probe!r}")
        return self

    @model_validator(mode="after")
    def _layers_exist(self) -> Self:
        layers = [*(p.layers for p in self.probes), *(v.layers for v in self.steering)]
        deepest = max((layer for item in layers for layer in item), default=0)
        if deepest >= self.fingerprint.num_layers:
            raise ValueError(f"layer {deepest} does not exist in a model of {self.fingerprint.num_layers} layers")
        return self
