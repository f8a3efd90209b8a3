"""Two models that differ in nothing but what they would answer, and an artifact for each that stops prompts by a word.

The lab model's weights under another architecture (`Qwen3ForCausalLM`, which vLLM offers more routes for); the twin's
last block has other weights. Both probes read the first block's stream, which is the same, bit for bit, in both. The
steering vector acts behind the last block, and is so long that nothing of the stream is left beside it: what is said
under steering is the same in both, too. So whatever differs between two answers to a stopped prompt came from the pass
that the guard keeps back.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from probes.artifact import Artifact
from probes.fingerprint import fingerprint
from probes.manifest import Manifest, Probe, SteeringVector
from probes.readout import Readout
from tests.serving.lab import MODEL

WORDS = {"block": " lamp", "steer": " river"}
"""What stops a prompt, wherever it stands in it; each is one token."""
STEERED_ANSWER = " cake"
_FIRST = "model.layers.0."
_WRITES = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
"""What of a block writes to the stream."""
FAR = 2.0**40
"""A length beside which a bfloat16, or even a float32, has no place for a stream of the model's."""


@dataclass(frozen=True)
class Twin:
    """One of the two."""

    model: Path
    artifact: Path


@dataclass(frozen=True)
class Twins:
    """Both, and how to ask them."""

    tokenizer: PreTrainedTokenizerBase
    pair: tuple[Twin, Twin]
    policy: str


def twins(folder: Path) -> Twins:
    """Write both models and their artifacts below `folder`."""
    first = _as_qwen(load_file(MODEL / "model.safetensors"))
    # So the first block's stream is the token's own row, whatever stands before it.
    first |= {f"{_FIRST}{name}": torch.zeros_like(first[f"{_FIRST}{name}"]) for name in _WRITES}
    last = f"model.layers.{_config()['num_hidden_layers'] - 1}."
    second = first | {f"{last}{name}": -2 * first[f"{last}{name}"].flip(0) for name in _WRITES}
    models = [_write(folder / name, weights) for name, weights in (("first", first), ("second", second))]
    tokenizer = AutoTokenizer.from_pretrained(models[0])
    probes, tensors, thresholds = _word_probes(first, tokenizer)
    vector, tensors["steering.elsewhere.vector"] = _steering(first, _token(tokenizer, STEERED_ANSWER))
    pair = [
        Twin(model, _artifact(folder / f"{model.name}-artifact", model, probes, vector, tensors)) for model in models
    ]
    return Twins(tokenizer, (pair[0], pair[1]), _policy(thresholds))


def _config() -> dict:
    return json.loads((MODEL / "config.json").read_text())


def _as_qwen(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a Llama's weights as a Qwen3's, which also norms each head's queries and keys."""
    config = _config()
    norms = {
        f"model.layers.{layer}.self_attn.{name}.weight": torch.ones(config["head_dim"], dtype=torch.bfloat16)
        for layer in range(config["num_hidden_layers"])
        for name in ("q_norm", "k_norm")
    }
    return weights | norms


def _write(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = _config() | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(json.dumps(_with_labels(json.loads(tokenizer.read_text()))))
    return folder


def _with_labels(tokenizer: dict) -> dict:
    """Return a tokenizer that has the answers of `/v1/systemone` as one token each, in the place of its last merges."""
    vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    for label in ("yes", "no"):
        token = vocabulary.pop("".join(merges.pop()))
        vocabulary[label] = token
        added = tokenizer["added_tokens"][0] | {"id": token, "content": label, "special": False}
        tokenizer["added_tokens"].append(added)
    return tokenizer


def _word_probes(
    weights: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Probe], dict[str, torch.Tensor], dict[str, float]]:
    """Return a probe for each word, which is above its threshold at the word's token and at no other."""
    streams = weights["model.embed_tokens.weight"].float()
    spread = torch.cov(streams.T) + 1e-4 * torch.eye(streams.shape[1])
    probes, tensors, thresholds = [], {}, {}
    for name, word in WORDS.items():
        token = _token(tokenizer, word)
        weight = torch.linalg.solve(spread, streams[token] - streams.mean(0))
        scores = streams @ weight
        own, other = float(scores[token]), float(torch.cat([scores[:token], scores[token + 1 :]]).max())
        tensors[f"probe.{name}.weight"] = (10 * weight / own)[None, None]
        thresholds[name] = 5 * (own + other) / own
        assert thresholds[name] < 9, f"the probe does not tell {word!r} from other tokens"
        probes.append(Probe(name=name, method="planted", layers=(0,), readout=Readout(kind="max")))
    return probes, tensors, thresholds


def _token(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    [token] = tokenizer(word, add_special_tokens=False)["input_ids"]
    return token


def with_word(text: str, word: str) -> str:
    """Return a prompt with the word in its middle, so that no form of a request cuts it off."""
    words = text.split(" ")
    half = len(words) // 2
    return " ".join(words[:half]) + f"{word} " + " ".join(words[half:])


def _steering(weights: dict[str, torch.Tensor], token: int) -> tuple[SteeringVector, torch.Tensor]:
    """Return a vector `[1, D]` after which the model says one token, and says it with the same numbers, always."""
    row = weights["model.embed_tokens.weight"][token].float() * weights["model.norm.weight"].float()
    vector = FAR * torch.where(row >= 0, 1.0, -1.0)
    layers = (_config()["num_hidden_layers"] - 1,)
    about = SteeringVector(name="elsewhere", method="planted", layers=layers, norm=float(vector.norm()), cos_refusal=0)
    return about, vector[None]


def _artifact(
    folder: Path, model: Path, probes: list[Probe], steering: SteeringVector, tensors: dict[str, torch.Tensor]
) -> Path:
    manifest = Manifest(
        name="twins",
        created="2026-01-01",
        fingerprint=fingerprint(model),
        probes=tuple(probes),
        steering=(steering,),
    )
    scores = torch.zeros(1, len(probes))
    Artifact(manifest, tensors | {"scores.harmless": scores, "scores.harmful": scores}).save(folder)
    return folder


def _policy(thresholds: dict[str, float]) -> str:
    rules = "\n".join(
        f"  - {{name: {name}, action: {name}, when: {{{name}: {{above: {threshold}}}}}}}"
        for name, threshold in thresholds.items()
    )
    return f'name: twins\nversion: "1"\noff_template: allow\nrules:\n{rules}\nsteering: {{vector: elsewhere, strength: 1}}\n'
