"""The table of public sets as Markdown."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from calibration.evaluation.unseen.left_out import families
from calibration.evaluation.unseen.unseen_sources import Unseen, UnseenSources
from calibration.prompts.template import EncodedPrompts
from probes.manifest import Rate


def document(found: Sequence[UnseenSources], prompts: EncodedPrompts) -> str:
    """Return the tables, set by set, from one table a seed: recall, the share of harmless prompts flagged, AUROC.

    Of several seeds there are the mean and the standard deviation.
    """
    first = found[0]
    names = list(next(iter(first.sources.values())))
    weights = " + ".join(f"{weight:.2f} {name}" for name, weight in first.combination.items())
    given = [prompt for prompt in prompts.prompts if not prompt.is_wrapped]
    sections = [
        f"{len(given)} prompts of {len(set(families(prompts)))} families, {sum(not each.is_harmful for each in given)} "
        f"of them harmless; {len(prompts.prompts) - len(given)} wrapped copies to train on. Each family is left out in "
        f"turn; the cut lets {first.target_fpr:.0%} of the other families' harmless prompts through"
        f"{f' ({len(found)} seeds)' if len(found) > 1 else ''}. `combined` is for each family the combination that the "
        f"others chose; all together choose {weights}.",
        "### Recall on harmful prompts of sets never seen",
        _rates(found, names, "recall"),
        "### Share flagged of harmless prompts of sets never seen",
        _rates(found, names, "flagged"),
        "### AUROC of the set's harmful prompts against all other sets' harmless ones",
        _areas(found, names),
    ]
    return "\n\n".join(sections) + "\n"


def _areas(found: Sequence[UnseenSources], names: Sequence[str]) -> str:
    harmful = [source for source, row in found[0].sources.items() if _count(row, "recall")]
    return _table(
        names,
        [
            (source, _count(found[0].sources[source], "recall"), [_area(_over(found, source, name)) for name in names])
            for source in harmful
        ],
    )


def _rates(found: Sequence[UnseenSources], names: Sequence[str], key: str) -> str:
    kept = [source for source, row in found[0].sources.items() if _count(row, key)]
    shares = {
        (source, name): np.array([getattr(each, key).value for each in _over(found, source, name)])
        for source in kept
        for name in names
    }
    rows = [(s, _count(found[0].sources[s], key), [_percent(shares[s, name]) for name in names]) for s in kept]
    sets = [source for source in kept if source in found[0].named]
    means = [np.mean([shares[source, name] for source in sets], axis=0) for name in names]
    return _table(names, [*rows, ("mean of sets", len(sets), [f"**{_percent(mean)}**" for mean in means])])


def _over(found: Sequence[UnseenSources], source: str, name: str) -> list[Unseen]:
    """Return what one contender did on one source, seed by seed."""
    return [each.sources[source][name] for each in found]


def _table(names: Sequence[str], rows: Sequence[tuple[str, int, Sequence[str]]]) -> str:
    head = ["set", "n", *names]
    lines = [head, ["---"] * len(head), *([source, str(count), *cells] for source, count, cells in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _count(row: dict[str, Unseen], key: str) -> int:
    rate: Rate | None = getattr(next(iter(row.values())), key)
    return rate.count if rate else 0


def _percent(shares: npt.NDArray[np.float64]) -> str:
    spread = f" ± {shares.std(ddof=1):.0%}" if len(shares) > 1 else ""
    return f"{shares.mean():.0%}{spread}"


def _area(found: Sequence[Unseen]) -> str:
    return f"{np.mean([each.auroc for each in found if each.auroc is not None]):.3f}"
