"""An artifact made by hand from the lab model: one real direction, a probe of every kind, a vector of every
operator.
"""

import math
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path

import torch

from probes.artifact import Artifact
from probes.canary import canary_prompt
from probes.fingerprint import fingerprint
from probes.manifest import EMBEDDINGS, Manifest, Probe, SteeringVector, Watch
from probes.readout import Readout
from tests.serving.lab import MODEL, Reference, of

HARM_LAYER = 3
WATCHES = (
    Watch(name="deep_swim", probe="r_ema", readout=Readout(kind="swim", window=4), max_tokens=8),
    Watch(name="mean_ema", probe="r_mean", readout=Readout(kind="ema", alpha=0.3), max_tokens=24),
)


def planted_artifact(reference: Reference, folder: Path, adapter: Path | None = None) -> Artifact:
    """Write an artifact with a difference-in-means probe `harm`, probes `r_*` of every readout, `n_*` on neurons and
    `h_*` of every head, and steering vectors.
    """
    harmful = _last_streams(reference, of("train", "plain_harmful", 60))
    harmless = _last_streams(reference, of("train", "plain_harmless", 60))
    direction = harmful.mean(0) - harmless.mean(0)
    weight = direction * 8 / (direction @ direction)
    bias = -float(weight @ (harmful.mean(0) + harmless.mean(0)) / 2)
    tensors = {"probe.harm.weight": weight[None, None]}
    probes = [Probe(name="harm", method="planted", layers=(HARM_LAYER,), bias=bias)]
    for probe, own in [
        *_readout_probes(reference),
        *_made(reference, _wide(reference), 1),
        *_made(reference, _over_content(reference), 2),
    ]:
        probes.append(probe)
        tensors |= {f"probe.{probe.name}.{key}": tensor for key, tensor in own.items()}
    scores = torch.zeros(len(harmless), len(probes))
    scores[:, 0] = harmless @ weight + bias
    tensors["scores.harmless"] = scores
    tensors["scores.harmful"] = torch.zeros(1, len(probes))
    for watch in WATCHES:
        tensors[f"watch.{watch.name}.centre"] = torch.linspace(0.5, -0.5, watch.max_tokens)
        tensors[f"watch.{watch.name}.spread"] = torch.linspace(2.0, 1.0, watch.max_tokens)
    tensors["answers.harmless"] = tensors["answers.harmful"] = torch.zeros(1, len(WATCHES))
    steering = []
    for vector, own in _steering(harmful.mean(0), harmless.mean(0)):
        steering.append(vector)
        tensors |= {f"steering.{vector.name}.{name}": tensor[None] for name, tensor in own.items()}
    manifest = Manifest(
        name="planted",
        created="2026-01-01",
        fingerprint=fingerprint(MODEL, adapter=adapter),
        probes=tuple(probes),
        steering=tuple(steering),
        watches=WATCHES,
    )
    read = reference.read(canary_prompt(reference.model.config.vocab_size, None))
    canary = naive_scores(Artifact(manifest, tensors), read)
    Artifact(manifest.model_copy(update={"canary": canary}), tensors).save(folder)
    return Artifact.load(folder)


def _steering(harmful: torch.Tensor, harmless: torch.Tensor) -> list[tuple[SteeringVector, dict[str, torch.Tensor]]]:
    """Return vectors that each take a harmless stream `[D]` to where harmful ones are, by another operator."""
    direction = harmful - harmless
    first = direction / direction.norm()
    rest = harmless - (harmless @ first) * first
    far, unit = torch.full_like(harmless, 1e4), harmless / harmless.norm()
    kinds = {
        "refusal": ({}, {"vector": direction}),
        "gated": (
            {"gate": "soft"},
            # Reads about 1 on a harmless prompt's stream.
            {"vector": direction, "gate_weight": unit / harmless.norm(), "gate_bias": torch.zeros(1)},
        ),
        "map": (
            {"operator": "affine"},
            {"scale": torch.full_like(harmless, 0.5), "shift": harmful - 0.5 * harmless, "low": -far, "high": far},
        ),
        "turn": (
            {"operator": "rotate"},
            {"first": first, "second": rest / rest.norm(), "angle": torch.zeros(1)},
        ),
        "swap": (
            {"operator": "low_rank", "rank": 1},
            {"down": unit[None] / harmless.norm(), "up": direction[None], "shift": torch.zeros_like(harmless)},
        ),
    }
    about = {"method": "planted", "layers": (HARM_LAYER,), "norm": float(direction.norm()), "cos_refusal": 1}
    return [(SteeringVector(name=name, **about, **keys), tensors) for name, (keys, tensors) in kinds.items()]


def _last_streams(reference: Reference, conversations: list[list[dict]]) -> torch.Tensor:
    return torch.stack([reference.streams(reference.token_ids(c))[HARM_LAYER][-1] for c in conversations])


def _readout_probes(reference: Reference) -> list[tuple[Probe, dict[str, torch.Tensor]]]:
    last = reference.num_layers - 1
    readouts = {
        "r_offset": (Readout(kind="last", offset=3), (2,)),
        "r_mean": (Readout(kind="mean"), (0, last)),
        "r_max": (Readout(kind="max"), (1,)),
        "r_ema": (Readout(kind="ema", alpha=0.3), (2, 4)),
        "r_swim": (Readout(kind="swim", window=8), (last,)),
    }
    generator = torch.Generator().manual_seed(0)
    return [
        (
            Probe(name=name, method="planted", layers=layers, readout=readout, bias=0.25),
            {"weight": torch.randn(len(layers), 1, reference.hidden_size, generator=generator) * 0.05},
        )
        for name, (readout, layers) in readouts.items()
    ]


def _wide(reference: Reference) -> dict[str, dict]:
    """Return probes of several channels, on neurons, or with a head."""
    last, neurons = reference.num_layers - 1, reference.num_neurons
    on_neurons = {"site": "mlp_neurons", "width": neurons}
    return {
        "r_softmax": {"layers": (1, 3), "readout": Readout(kind="softmax", temperature=0.5), "scale": 2.0},
        "r_attention": {"layers": (3, last), "channels": 6, "readout": Readout(kind="attention"), "scale": 4.0},
        "r_multimax": {"layers": (2,), "channels": 5, "readout": Readout(kind="max"), "bias": -2.0},
        "n_last": {"layers": (0, 2, last), "scale": 5.0, **on_neurons},
        "n_attention": {
            "layers": (1,),
            "channels": 4,
            "readout": Readout(kind="attention"),
            "scale": 8.0,
            **on_neurons,
        },
        "h_mlp": {"layers": (3,), "channels": 12, "head": "mlp", "readout": Readout(kind="mean"), "scale": 3.0},
        "h_mahalanobis": {
            "layers": (4,),
            "channels": 4,
            "head": "mahalanobis",
            "readout": Readout(offset=1),
            "scale": 0.5,
        },
    }


def _over_content(_: Reference) -> dict[str, dict]:
    """Return perceptrons on the content of two blocks: on its mean, and on each token of it and its embedding."""
    mean, window = Readout(kind="mean", over="content"), Readout(kind="swim", window=8, over="content")
    each = {"layers": (1, 3), "channels": 12, "head": "mlp", "scale": 3.0}
    tokens = {"layers": (EMBEDDINGS, 1, 3), "readout": window, "head_reads": "token"}
    return {"h_content": {**each, "readout": mean}, "h_tokens": {**each, **tokens}}


def _made(reference: Reference, fields: dict[str, dict], seed: int) -> list[tuple[Probe, dict[str, torch.Tensor]]]:
    """Return random probes of these kinds; each channel's numbers are about one in size."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    sample = [reference.read(reference.token_ids(messages)) for messages in of("train", "plain_harmless", 40)]
    for name, options in fields.items():
        probe = Probe(name=name, method="planted", **options)
        own = {}
        for key, shape in probe.shapes(reference.hidden_size).items():
            own[key.rpartition(".")[2]] = torch.randn(*shape, generator=generator)
        sizes = [torch.cat([_at(read, probe.site, layer) for read in sample]).std() for layer in probe.layers]
        own["weight"] /= torch.stack(sizes)[:, None, None] * math.sqrt(own["weight"].shape[-1] * len(probe.layers))
        made.append((probe, own | _precisions(own)))
    return made


def _precisions(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor @ tensor.T / len(tensor) for key, tensor in own.items() if key.endswith("precision")}


Read = dict[str, list[torch.Tensor]]
"""What a prompt's pass left at each site, block by block: `Reference.read`."""


def _at(read: Read, site: str, layer: int) -> torch.Tensor:
    return read["embeddings"][0] if layer == EMBEDDINGS else read[site][layer]


def naive_scores(artifact: Artifact, read: Read, frame: Collection[int] = ()) -> dict[str, float]:
    """Return every probe's score of one prompt, computed the slow and obvious way.

    `frame` are the positions of the chat template's tokens, where the artifact knows the template.
    """
    return {probe.name: naive_score(artifact, read, probe.name, frame) for probe in artifact.manifest.probes}


def naive_score(artifact: Artifact, read: Read, name: str, frame: Collection[int] = ()) -> float:
    """Return one probe's score of one prompt."""
    probe = next(probe for probe in artifact.manifest.probes if probe.name == name)
    prefix = f"probe.{name}."
    own = {key.removeprefix(prefix): t.double() for key, t in artifact.tensors.items() if key.startswith(prefix)}
    activations = [_at(read, probe.site, layer).double() for layer in probe.layers]
    channels = sum(x @ weight.T for x, weight in zip(activations, own["weight"], strict=True)).T.tolist()
    if probe.readout.over == "content":
        content = [place for place in range(1, len(channels[0])) if place not in frame] or [-1]
        channels = [[tokens[place] for place in content] for tokens in channels]
    if probe.head_reads == "token":
        tokens = torch.tensor(channels, dtype=torch.float64).T
        each = [_naive_head(probe.head, token, own) for token in tokens]
        return probe.scale * _naive_readout(probe.readout, each) + probe.bias
    if probe.readout.kind == "attention":
        values = [_weighted(q, v, 1.0) for q, v in zip(channels[::2], channels[1::2], strict=True)]
    else:
        values = [_naive_readout(probe.readout, tokens) for tokens in channels]
    return probe.scale * _naive_head(probe.head, torch.tensor(values, dtype=torch.float64), own) + probe.bias


def naive_answer(artifact: Artifact, read: Read, begin: int, watch: Watch) -> list[float]:
    """Return a watch's score of the answer that begins at token `begin`, after each of its tokens."""
    probe = next(probe for probe in artifact.manifest.probes if probe.name == watch.probe)
    weight = artifact.tensors[f"probe.{probe.name}.weight"].double()
    activations = [_at(read, probe.site, layer).double() for layer in probe.layers]
    tokens = sum(x @ own[0] for x, own in zip(activations, weight, strict=True)).tolist()[begin:]
    centre, spread = (artifact.tensors[f"watch.{watch.name}.{name}"].tolist() for name in ("centre", "spread"))
    found, best, level = [], -math.inf, 0.0
    for t, token in enumerate(tokens):
        if watch.readout.kind == "ema":
            level = token if t == 0 else (1 - watch.readout.alpha) * level + watch.readout.alpha * token
        else:
            window = tokens[max(0, t + 1 - watch.readout.window) : t + 1]
            level = sum(window) / len(window)
        at = min(t, watch.max_tokens - 1)
        best = max(best, (level - centre[at]) / spread[at])
        found.append(best)
    return found


def _weighted(logits: list[float], values: list[float], temperature: float) -> float:
    weights = [math.exp(logit / temperature) for logit in logits]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def _naive_head(head: str, values: torch.Tensor, own: dict[str, torch.Tensor]) -> float:
    if head == "sum":
        return float(values.sum())
    if head == "mlp":
        return float((values + own["head_bias"]).clamp(min=0) @ own["head_weight"])
    near, far = values - own["head_mean"], values - own["head_background_mean"]
    return float(near @ own["head_precision"] @ near - far @ own["head_background_precision"] @ far)


def _naive_readout(readout: Readout, tokens: list[float]) -> float:
    if readout.kind == "last":
        return tokens[-1 - readout.offset]
    if readout.kind == "mean":
        return sum(tokens) / len(tokens)
    if readout.kind == "max":
        return max(tokens)
    if readout.kind == "softmax":
        return _weighted(tokens, tokens, readout.temperature)
    if readout.kind == "ema":
        level, levels = tokens[0], [tokens[0]]
        for token in tokens[1:]:
            level = readout.alpha * token + (1 - readout.alpha) * level
            levels.append(level)
        return max(levels)
    width = min(readout.window, len(tokens))
    return max(sum(tokens[i : i + width]) / width for i in range(len(tokens) - width + 1))


def dividing_limit(reference: Reference, artifact: Artifact, asked: list[list[dict]], num_tokens: int) -> float:
    """Return a limit for the first watch that some of the answers to what is `asked` come over and others do not."""
    ends = []
    for messages in asked:
        prompt = reference.token_ids(messages)
        answer = reference.tokenizer(reference.greedy(prompt, num_tokens), add_special_tokens=False)["input_ids"]
        ends.append(naive_answer(artifact, reference.read([*prompt, *answer]), len(prompt), WATCHES[0])[-1])
    high, low = max(pairwise(sorted(ends, reverse=True)), key=lambda pair: pair[0] - pair[1])
    return (high + low) / 2
