"""The table of public sets as Markdown."""

from collections.abc import Sequence

from calibration.left_out import families
from calibration.template import EncodedPrompts
from calibration.unseen_sources import Unseen, UnseenSources
from probes.manifest import Rate


def document(found: UnseenSources, prompts: EncodedPrompts) -> str:
    """Return both tables: recall on harmful prompts, and the share of harmless ones flagged, set by set."""
    names = list(next(iter(found.sources.values())))
    weights = " + ".join(f"{weight:.2f} {name}" for name, weight in found.combination.items())
    num_harmless = int((~prompts.harmful).sum())
    sections = [
        f"{len(prompts.prompts)} prompts of {len(set(families(prompts)))} families, {num_harmless} of them harmless. Each "
        f"family is left out in turn; the cut lets {found.target_fpr:.0%} of the other families' harmless prompts through. "
        f"`combined` is for each family the combination that did best over the others; over all: {weights}.",
        "### Recall on harmful prompts of sets never seen",
        _rates(found, names, "recall"),
        "### Share flagged of harmless prompts of sets never seen",
        _rates(found, names, "flagged"),
        "### AUROC of the set's harmful prompts against all other sets' harmless ones",
        _areas(found, names),
    ]
    return "\n\n".join(sections) + "\n"


def _areas(found: UnseenSources, names: Sequence[str]) -> str:
    harmful = {source: row for source, row in found.sources.items() if _count(row, "recall")}
    return _table(
        names,
        [(source, _count(row, "recall"), [_area(row[name]) for name in names]) for source, row in harmful.items()],
    )


def _rates(found: UnseenSources, names: Sequence[str], key: str) -> str:
    rows = [
        (source, _count(row, key), [_percent(getattr(row[name], key)) for name in names])
        for source, row in found.sources.items()
        if _count(row, key)
    ]
    kept = [row for row in found.sources.values() if _count(row, key)]
    means = [sum(getattr(row[name], key).value for row in kept) / len(kept) for name in names]
    return _table(names, [*rows, ("mean of sets", len(kept), [f"**{mean:.1%}**" for mean in means])])


def _table(names: Sequence[str], rows: Sequence[tuple[str, int, Sequence[str]]]) -> str:
    head = ["set", "n", *names]
    lines = [head, ["---"] * len(head), *([source, str(count), *cells] for source, count, cells in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _count(row: dict[str, Unseen], key: str) -> int:
    rate: Rate | None = getattr(next(iter(row.values())), key)
    return rate.count if rate else 0


def _percent(rate: Rate | None) -> str:
    return f"{rate.value:.0%}" if rate else "–"


def _area(found: Unseen) -> str:
    return f"{found.auroc:.3f}" if found.auroc is not None else "–"
