"""`python -m benchmarks.detection.starter --data SETS --model MODEL`: what the starter set is worth on public sets.

The same scorer is fitted three times: on the starter set, on public sets, and on both. Public sets are fitted on
without the family that is met, and with half of the real users' prompts. The cut is set so that 1 % of the other half's
harmless prompts pass. Goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from benchmarks.detection.public_sets import REAL, Line, assemble, real_traffic
from benchmarks.detection.starter_table import Met, table
from calibration.evaluation.sentence_embedding import SentenceEncoder
from calibration.evaluation.unseen.left_out import families
from calibration.fitting.bag_of_words import tfidf_scores
from calibration.fitting.training_set import Rows, TrainingSet, set_aside
from calibration.methods.classifiers.linear_classifiers import fit_classifiers, fit_logistic
from calibration.model.chat_model import ChatModel
from calibration.prompts.progress import track
from calibration.prompts.prompt_file import load_prompts
from calibration.prompts.starter_set import starter_set
from calibration.prompts.template import EncodedPrompts, encode_prompts, template_suffix
from calibration.recording.activations import record
from calibration.recording.places import every_place, place_of
from probes.fingerprint import fingerprint
from probes.manifest import Probe

_MOST_TOKENS = 512
_SHARE_TO_CHOOSE = 0.25

Scores = npt.NDArray[np.floating]


def main(
    data: Annotated[Path, typer.Option(help="Folder of public sets, each with prompts.jsonl.")],
    model: Annotated[Path, typer.Option(help="Folder of the chat model.")],
    work: Annotated[Path, typer.Option(help="Folder for what is recorded.")] = Path(".bench/starter"),
    most: Annotated[int, typer.Option(min=20, help="Prompts of each label of a public set, real users' apart.")] = 100,
    most_real: Annotated[int, typer.Option(min=200, help="Prompts of real users of each label.")] = 1200,
    write: Annotated[Path | None, typer.Option(help="Write the table to this Markdown file.")] = None,
) -> None:
    """Fit on the starter set, on public sets and on both, and meet each public set."""
    chat = ChatModel.load(model)
    lines = [*_sampled(assemble(data), most), *_sampled(real_traffic(data), most_real)]
    traffic = _recorded(chat, lines, work / _key(model, lines))
    names, scores = _scores(traffic)
    text = table(names, [met for name in traffic.public for met in _met(traffic, name, scores)])
    if write is not None:
        write.write_text(text)
    typer.echo(text)


@dataclass(frozen=True, slots=True)
class Traffic:
    """The starter set's prompts and those of public sets, recorded together."""

    training: TrainingSet
    family: npt.NDArray[np.str_]
    """Of each prompt `[N]`; empty for those of the starter set."""
    fitted_on: npt.NDArray[np.bool_]
    """Which of real users' prompts may be fitted on `[N]`."""

    @property
    def starter(self) -> Rows:
        """The starter set's prompts."""
        return np.flatnonzero(self.family == "")

    @property
    def public(self) -> list[str]:
        """The families of public sets."""
        return [name for name in np.unique(self.family).tolist() if name]

    @property
    def real(self) -> npt.NDArray[np.bool_]:
        """Which prompts are real users' and fitted on by nobody `[N]`."""
        return np.asarray((self.family == REAL) & ~self.fitted_on)

    def without(self, name: str) -> Rows:
        """Return the public prompts that may be fitted on where family `name` is met."""
        return np.flatnonzero(((self.family != "") & (self.family != name) & (self.family != REAL)) | self.fitted_on)


def _sampled(lines: list[Line], most: int) -> Iterator[Line]:
    """Yield at most so many lines of each source and label, the same ones each time."""
    kept: dict[tuple[str, str], int] = {}
    for line in sorted(lines, key=lambda line: _digest(line["prompt"])):
        kind = line["source"], line["label"]
        kept[kind] = kept.get(kind, 0) + 1
        if kept[kind] <= most:
            yield line


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _key(model: Path, lines: list[Line]) -> str:
    about = json.dumps([fingerprint(model).model_dump(), starter_set().sha256, lines])
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def _recorded(chat: ChatModel, lines: list[Line], folder: Path) -> Traffic:
    folder.mkdir(parents=True, exist_ok=True)
    (file := folder / "public.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    starter, public = (
        encode_prompts(chat.tokenizer, prompts, min(chat.context, _MOST_TOKENS), skip_long=True)
        for prompts in (starter_set(), load_prompts(file))
    )
    everything, offset = starter + public, len(template_suffix(chat.tokenizer))
    recording = record(chat, everything, every_place(offset), folder / "activations")
    family = np.concatenate([np.full(len(starter.prompts), ""), families(public)])
    half = np.array([int(_digest(prompt.text)[-1], 16) % 2 == 0 for prompt in everything.prompts])
    training = TrainingSet(chat, everything, recording, offset, np.arange(0), np.arange(0))
    return Traffic(training, family, (family == REAL) & half)


def _scores(traffic: Traffic) -> tuple[list[str], dict[tuple[str, str], Scores]]:
    """Return the columns' names, and by family and column the scores `[N]` of all prompts.

    Blocks, positions and penalties are chosen on the starter set, for all.
    """
    prompts = traffic.training.prompts
    select = set_aside(prompts, traffic.starter, _SHARE_TO_CHOOSE)
    own = replace(traffic.training, fit=np.setdiff1d(traffic.starter, select), select=select)
    probes = [probe.spec for probe in fit_classifiers(own).probes if probe.spec.name in ("logistic", "pooled")]
    encoder = SentenceEncoder.load()
    embedded = encoder.encode([prompt.text for prompt in prompts.prompts]) if encoder else None

    def fitted(rows: Rows) -> dict[str, Scores]:
        found = {"probes": _probe_scores(traffic.training, probes, rows), "TF-IDF": _words(prompts, rows)}
        if embedded is not None:
            found["embedding"] = fit_logistic(embedded[rows], prompts.harmful[rows])(embedded)
        return found

    by_starter = fitted(traffic.starter)
    scores: dict[tuple[str, str], Scores] = {}
    for name in track(traffic.public, "leaving out one family at a time"):
        others = traffic.without(name)
        both = np.concatenate([traffic.starter, others])
        for on, found in (("starter", by_starter), ("public", fitted(others)), ("both", fitted(both))):
            scores |= {(name, f"{what}, {on}"): each for what, each in found.items()}
    return list(dict.fromkeys(column for _, column in scores)), scores


def _probe_scores(training: TrainingSet, probes: list[Probe], rows: Rows) -> Scores:
    """Return the sum of the log-odds by regressions at each probe's place, fitted on `rows`, of all prompts `[N]`."""
    total = np.zeros(len(training.prompts.prompts))
    for probe in probes:
        where = place_of(probe.readout)
        assert where is not None, probe.name  # noqa: S101 - both are fitted on a recording
        features = training.features(probe.layers[0], where)
        total += fit_logistic(features[rows], training.harmful[rows], probe.evidence["inverse_penalty"])(features)
    return total


def _words(prompts: EncodedPrompts, rows: Rows) -> Scores:
    return tfidf_scores(prompts.subset(rows), prompts)


def _met(traffic: Traffic, family: str, scores: dict[tuple[str, str], Scores]) -> Iterator[Met]:
    """Yield what each column makes of the sets of a family, harmful and harmless prompts apart."""
    harmful = traffic.training.harmful
    sources = np.array([prompt.source or "" for prompt in traffic.training.prompts.prompts])
    met = (traffic.family == family) & ~traffic.fitted_on
    columns = {column: each for (name, column), each in scores.items() if name == family}
    for source in np.unique(sources[met]).tolist():
        for label in (True, False):
            rows = met & (sources == source) & (harmful == label)
            if rows.any():
                real = {column: each[traffic.real & ~harmful] for column, each in columns.items()}
                yield Met(source, label, {column: each[rows] for column, each in columns.items()}, real)


if __name__ == "__main__":
    typer.run(main)
