"""`python -m benchmarks.detection.starter --data SETS --model MODEL`: what probes on a real chat model are worth.

The same scorer is fitted three times: on the starter set, on public sets, and on both. Public sets are fitted on
without the family that is met, and with a part of real users' prompts. Another part sets the cut. Goes on where it
stopped.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from benchmarks.detection.standing import Scores, among_real_users
from benchmarks.detection.starter_table import seeds_table, table
from benchmarks.detection.traffic import Traffic, traffic
from calibration.evaluation.sentence_embedding import SentenceEncoder
from calibration.fitting.bag_of_words import tfidf_scores
from calibration.fitting.training_set import Rows, TrainingSet, set_aside
from calibration.methods.classifiers.linear_classifiers import fit_classifiers, fit_logistic
from calibration.model.chat_model import ChatModel
from calibration.prompts.progress import track
from calibration.recording.places import place_of
from probes.manifest import Probe

_SHARE_TO_CHOOSE = 0.25


def main(
    data: Annotated[Path, typer.Option(help="Folder of public sets, each with prompts.jsonl.")],
    model: Annotated[Path, typer.Option(help="Folder of the chat model.")],
    work: Annotated[Path, typer.Option(help="Folder for what is recorded.")] = Path(".bench/starter"),
    most: Annotated[int, typer.Option(min=20, help="Prompts of each label of a public set, real users' apart.")] = 150,
    most_real: Annotated[int, typer.Option(min=200, help="Prompts of real users of each label.")] = 3000,
    seeds: Annotated[
        int,
        typer.Option(min=1, help="Divide real users' prompts so many times into what is fitted on and what is not."),
    ] = 1,
    write: Annotated[Path | None, typer.Option(help="Write the tables to this Markdown file.")] = None,
) -> None:
    """Fit on the starter set, on public sets and on both, and meet each public set."""
    met = traffic(ChatModel.load(model), model, data, work, most, most_real)
    scorers = _Scorers.of(met)
    divided = [met.divided(seed) for seed in range(seeds)]
    found = [among_real_users(each, dict(scorers.leaving_out(each))) for each in divided]
    text = table(found[0])
    if seeds > 1:
        text += "\n" + seeds_table(found)
    if write is not None:
        write.write_text(text)
    typer.echo(text)


@dataclass(frozen=True, slots=True)
class _Scorers:
    """What is fitted again and again: regressions at two places of the model, and the two controls."""

    training: TrainingSet
    probes: tuple[Probe, ...]
    """Where to read, and with which penalty; chosen on the starter set, for all fits."""
    embedded: npt.NDArray[np.float32] | None
    """Of every prompt, where a sentence embedding is installed `[N, E]`."""

    @classmethod
    def of(cls, met: Traffic) -> "_Scorers":
        """Choose on the starter set, and embed every prompt."""
        select = set_aside(met.training.prompts, met.starter, _SHARE_TO_CHOOSE)
        own = replace(met.training, fit=np.setdiff1d(met.starter, select), select=select)
        chosen = [probe.spec for probe in fit_classifiers(own).probes if probe.spec.name in ("logistic", "pooled")]
        encoder = SentenceEncoder.load()
        texts = [prompt.text for prompt in met.training.prompts.prompts]
        return cls(met.training, tuple(chosen), encoder.encode(texts) if encoder else None)

    def leaving_out(self, met: Traffic) -> Iterator[tuple[tuple[str, str], Scores]]:
        """Yield by family and column the scores `[N]` of all prompts, from fits that left out the family."""
        by_starter = self._fitted(met.starter)
        for name in track(met.public, "leaving out one family at a time"):
            others = met.without(name)
            both = np.concatenate([met.starter, others])
            for on, found in (("starter", by_starter), ("public", self._fitted(others)), ("both", self._fitted(both))):
                yield from (((name, f"{what}, {on}"), each) for what, each in found.items())

    def _fitted(self, rows: Rows) -> dict[str, Scores]:
        prompts, harmful = self.training.prompts, self.training.harmful
        found: dict[str, Scores] = {
            "probes": self._probe_scores(rows),
            "TF-IDF": tfidf_scores(prompts.subset(rows), prompts),
        }
        if self.embedded is not None:
            found["embedding"] = fit_logistic(self.embedded[rows], harmful[rows])(self.embedded)
        return found

    def _probe_scores(self, rows: Rows) -> npt.NDArray[np.float64]:
        """Return for all prompts `[N]` the sum of the log-odds by regressions at each probe's place, fitted on
        `rows`.
        """
        total, harmful = np.zeros(len(self.training.harmful)), self.training.harmful
        for probe in self.probes:
            where = place_of(probe.readout)
            assert where is not None, probe.name  # noqa: S101 - both are fitted on a recording
            features = self.training.features(probe.layers[0], where)
            total += fit_logistic(features[rows], harmful[rows], probe.evidence["inverse_penalty"])(features)
        return total


if __name__ == "__main__":
    typer.run(main)
