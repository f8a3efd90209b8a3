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
import torch
import typer

from benchmarks.detection.standing import Scores, among_real_users
from benchmarks.detection.starter_table import seeds_table, table
from benchmarks.detection.traffic import Traffic, traffic
from calibration.evaluation.sentence_embedding import SentenceEncoder
from calibration.fitting.bag_of_words import tfidf_scores
from calibration.fitting.fitted import FittedProbe
from calibration.fitting.linear import Linear
from calibration.fitting.training_set import Rows, TrainingSet, set_aside
from calibration.methods.classifiers.linear_classifiers import fit_classifiers, fit_logistic
from calibration.methods.classifiers.rolling import rolling_of
from calibration.methods.tokens.token_level import score_rows
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
    left_out = [dict(scorers.leaving_out(each)) for each in divided]
    found = [among_real_users(each, scores) for each, scores in zip(divided, left_out, strict=True)]
    text = table(among_real_users(divided[0], left_out[0] | scorers.rolling(divided[0])))
    if seeds > 1:
        text += "\n" + seeds_table(found)
    if write is not None:
        write.write_text(text)
    typer.echo(text)


@dataclass(frozen=True, slots=True)
class _Scorers:
    """What is fitted again and again: regressions at two places of the model, and the two controls."""

    training: TrainingSet
    probes: tuple[FittedProbe, ...]
    """Where to read, and with which penalty; chosen on the starter set, for all fits."""
    embedded: npt.NDArray[np.float32] | None
    """Of every prompt, where a sentence embedding is installed `[N, E]`."""

    @classmethod
    def of(cls, met: Traffic) -> "_Scorers":
        """Choose on the starter set, and embed every prompt."""
        select = set_aside(met.training.prompts, met.starter, _SHARE_TO_CHOOSE)
        own = replace(met.training, fit=np.setdiff1d(met.starter, select), select=select)
        chosen = [probe for probe in fit_classifiers(own).probes if probe.spec.name in ("logistic", "pooled")]
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

    def rolling(self, met: Traffic) -> dict[tuple[str, str], Scores]:
        """Return by family the scores `[N]` of all prompts by the worst stretch, from fits on all that is left.

        One pass of the model reads all of these fits.
        """
        [pooled] = [probe for probe in self.probes if probe.spec.name == "pooled"]
        rows = {name: np.concatenate([met.starter, met.without(name)]) for name in met.public}
        fits = [self._refitted(pooled, each, f"pooled_{place}") for place, each in enumerate(rows.values())]
        scores = score_rows(self.training, fits, np.arange(len(self.training.harmful)))
        return {(name, "worst stretch, both"): scores[:, place] for place, name in enumerate(rows)}

    def _refitted(self, probe: FittedProbe, rows: Rows, name: str) -> FittedProbe:
        linear = self._linear(probe.spec, rows)
        rolling = rolling_of(probe)
        weight = torch.from_numpy(linear.weight.astype(np.float32))[None, None]
        return replace(rolling, spec=rolling.spec.model_copy(update={"name": name, "bias": linear.bias}), weight=weight)

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
        total = np.zeros(len(self.training.harmful))
        for probe in self.probes:
            total += self._linear(probe.spec, rows)(self._features(probe.spec))
        return total

    def _linear(self, probe: Probe, rows: Rows) -> Linear:
        """Return a regression at the probe's place, with its penalty, fitted on `rows`."""
        features = self._features(probe)[rows]
        return fit_logistic(features, self.training.harmful[rows], probe.evidence["inverse_penalty"])

    def _features(self, probe: Probe) -> npt.NDArray[np.float32]:
        where = place_of(probe.readout)
        assert where is not None, probe.name  # noqa: S101 - both are fitted on a recording
        return self.training.features(probe.layers[0], where)


if __name__ == "__main__":
    typer.run(main)
