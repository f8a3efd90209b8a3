"""`python -m benchmarks.detection.levers --data SETS --model MODEL`: which lever moves what.

The scorer of `benchmarks.detection.starter` is fitted on the starter set and public sets, and then with one thing
changed at a time: what it is fitted on, where it reads, how much it has seen. Uses the recording of that benchmark.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from benchmarks.detection.standing import Scores, among_real_users
from benchmarks.detection.starter_table import letters_table, levers_table
from benchmarks.detection.traffic import Mask, Traffic, traffic
from calibration.fitting.linear import Linear
from calibration.fitting.training_set import Rows
from calibration.methods.classifiers.linear_classifiers import fit_logistic
from calibration.model.chat_model import ChatModel
from calibration.prompts.progress import track
from calibration.recording.places import Where

_CONTRASTS = "contrasts"
"""The starter set's source of harmless requests that share words with harmful ones."""
_LETTERS = "letters: "
_DEPTHS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
_SHARES = (0.1, 0.3)
_PENALTY = 0.01
"""Inverse, as folds of sources choose it for most fits of `benchmarks.detection.starter`."""
_LAST_AT, _MEAN_AT = 0.67, 0.53
"""Depths of the blocks that those folds choose, as shares of all blocks."""
_SEED = 20_260
Reading = tuple[int, Where]


@dataclass(frozen=True, slots=True)
class Lever:
    """What is changed: which prompts are fitted on, and where the scorer reads."""

    keeps: Callable[[Traffic, Rows], Rows]
    readings: tuple[Reading, ...]


def main(
    data: Annotated[Path, typer.Option(help="Folder of public sets, each with prompts.jsonl.")],
    model: Annotated[Path, typer.Option(help="Folder of the chat model.")],
    work: Annotated[Path, typer.Option(help="Folder of what is recorded.")] = Path(".bench/starter"),
    most: Annotated[int, typer.Option(min=20, help="Prompts of each label of a public set, real users' apart.")] = 120,
    most_real: Annotated[int, typer.Option(min=200, help="Prompts of real users of each label.")] = 3000,
    seeds: Annotated[int, typer.Option(min=2, help="Divisions of real users' prompts.")] = 3,
    write: Annotated[Path | None, typer.Option(help="Write the tables to this Markdown file.")] = None,
) -> None:
    """Change one thing at a time, and say what it does to recall and to false positives."""
    met = traffic(ChatModel.load(model), model, data, work, most, most_real)
    levers = _levers(met.training.chat.num_layers)
    divided = [met.divided(seed) for seed in range(seeds)]
    found = [among_real_users(each, dict(_scores(each, levers))) for each in divided]
    letters = among_real_users(divided[0], dict(_by_letters(divided[0], levers["all"].readings)))
    text = levers_table(found) + "\n" + letters_table(letters)
    if write is not None:
        write.write_text(text)
    typer.echo(text)


def _levers(num_layers: int) -> Mapping[str, Lever]:
    last: Reading = (round(_LAST_AT * (num_layers - 1)), 0)
    mean: Reading = (round(_MEAN_AT * (num_layers - 1)), "content")
    both = (last, mean)
    levers = {
        "all": Lever(_everything, both),
        "without the starter set": Lever(_without(lambda met: met.family == ""), both),
        "without its contrasts": Lever(_without(lambda met: met.training.sources == _CONTRASTS), both),
        "without real users' prompts": Lever(_without(lambda met: met.fitted_on), both),
        "the last token alone": Lever(_everything, (last,)),
        "the mean over the content alone": Lever(_everything, (mean,)),
    }
    levers |= {f"{share:.0%} of the prompts": Lever(_part(share), both) for share in _SHARES}
    blocks = dict.fromkeys(round(depth * (num_layers - 1)) for depth in _DEPTHS)
    return levers | {f"the mean, at block {block}": Lever(_everything, ((block, "content"),)) for block in blocks}


def _everything(_met: Traffic, rows: Rows) -> Rows:
    return rows


def _without(which: Callable[[Traffic], Mask]) -> Callable[[Traffic, Rows], Rows]:
    return lambda met, rows: rows[~which(met)[rows]]


def _part(share: float) -> Callable[[Traffic, Rows], Rows]:
    def keeps(_met: Traffic, rows: Rows) -> Rows:
        return np.sort(np.random.default_rng(_SEED).permutation(rows)[: int(share * len(rows))])

    return keeps


def _scores(met: Traffic, levers: Mapping[str, Lever]) -> Iterator[tuple[tuple[str, str], Scores]]:
    """Yield by family and lever the scores `[N]` of all prompts, from fits that left out the family."""
    for name in track(met.public, "leaving out one family at a time"):
        rows = np.concatenate([met.starter, met.without(name)])
        for what, lever in levers.items():
            yield (name, what), _fitted(met, lever.keeps(met, rows), lever.readings)


def _by_letters(met: Traffic, readings: tuple[Reading, ...]) -> Iterator[tuple[tuple[str, str], Scores]]:
    """Yield scores `[N]` by fits on requests with changed letters, too: on all kinds of change but the one that is met.

    Each prompt has the score of the fit that saw neither its family nor its kind of change.
    """
    kinds = [kind for kind in np.unique(met.variation).tolist() if kind.startswith(_LETTERS)]
    is_changed = np.isin(met.variation, kinds)
    for name in track(met.public, "changing letters"):
        plain = np.concatenate([met.starter, met.without(name)])
        changed = np.flatnonzero(is_changed & (met.family != name))
        scores = _fitted(met, plain, readings)
        yield (name, "as they are"), scores
        yield (name, "changed letters, too"), _fitted(met, np.concatenate([plain, changed]), readings)
        unseen = scores.copy()
        for kind in kinds:
            others = changed[met.variation[changed] != kind]
            fitted = _fitted(met, np.concatenate([plain, others]), readings)
            unseen[met.variation == kind] = _on_scale(fitted, scores, met)[met.variation == kind]
        yield (name, "other changes only"), unseen


def _on_scale(scores: Scores, of: Scores, met: Traffic) -> Scores:
    """Return scores of one fit where they would stand, among real users' harmless prompts, by those of another."""
    own, others = (np.sort(each[met.sets_the_cut]) for each in (scores, of))
    beyond = np.maximum(scores - own[-1], 0) / own.std() * others.std()
    return np.asarray(np.interp(scores, own, others) + beyond)


def _fitted(met: Traffic, rows: Rows, readings: tuple[Reading, ...]) -> npt.NDArray[np.float64]:
    total = np.zeros(len(met.training.harmful))
    for layer, where in readings:
        features = met.training.features(layer, where)
        fit: Linear = fit_logistic(features[rows], met.training.harmful[rows], _PENALTY)
        total += fit(features)
    return total


if __name__ == "__main__":
    typer.run(main)
