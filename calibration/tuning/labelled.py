"""An operator's labelled decisions as a tuning takes them: an even sample of the traffic, with what is said of it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from calibration.tuning.prompts import TunePrompts
from calibration.tuning.strata import length_of
from calibration.tuning.tune import Sample
from guard.bound_rule import Columns
from guard.store.errors import StoreError
from guard.store.label import Label
from guard.tuning.even import Even, even
from guard.tuning.judged import WHY, Rules, columns_for, judge
from guard.tuning.recent import Objects, Recent


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """The recorded decisions of which there are labels that can certify."""

    traffic: Recent
    """All decisions with a score of every probe, `[N]`."""
    sample: npt.NDArray[np.intp]
    """The rows of it that are an even sample of labelled decisions."""
    even: Even
    columns: Columns
    """Scores `[N]` by probe and combination."""
    notes: tuple[str, ...]

    def rows(self, label: Label) -> npt.NDArray[np.intp]:
        """Return the rows of the even sample that have this label."""
        return np.asarray(self.sample[self.traffic.labels[self.sample] == label])


KINDS: dict[str, Callable[[Recent], Objects]] = {
    "tenant": lambda found: _named(found.tenants, "no tenant"),
    "route": lambda found: _named(found.routes, "no route"),
    "model": lambda found: _named(found.models, "no model"),
    "length": lambda found: np.array([length_of(each) for each in found.prompt_tokens.tolist()], dtype=object),
}
"""What recorded traffic can be divided by."""


def labelled(found: Recent, rules: Rules, *, labels_are_even: bool = False) -> Labelled:
    """Return the labelled decisions that can certify: an even sample of those with all scores that `rules` knows.

    With `labels_are_even`, labels whose chance is not known count as picked evenly, on the operator's word. Raises
    `StoreError` where there is nothing to certify on.
    """
    if not len(found):
        raise StoreError(
            "holds no decisions", field="--store", remedy="serve with `foreguard serve --store`, and let traffic come"
        )
    judged = judge(found, rules)
    traffic = found.rows(judged.counted)
    if not len(traffic):
        missing = [name for name in rules.probes if name not in found.columns]
        raise StoreError(
            f"none of its last {len(found):,} decisions has a score of every probe of the artifact"
            + (f"; no decision has one of {', '.join(missing)}" if missing else ""),
            field="--store",
            remedy="name the artifact that these decisions were made with",
        )
    rows = np.flatnonzero(traffic.labels != None)  # noqa: E711 - of each element
    if not len(rows):
        raise StoreError(
            f"none of its last {len(traffic):,} decisions with scores has a label",
            field="labels",
            remedy="label some in the console, or with `foreguard store label`",
        )
    sample = even(traffic.keys[rows], traffic.chances[rows], traffic.sources[rows])
    stays = sample.stays | ~np.isfinite(traffic.chances[rows]) if labels_are_even else sample.stays
    left_out = [f"{number:,} decisions have no part: {WHY[why]}" for why, number in judged.left_out.items()]
    return Labelled(traffic, rows[stays], sample, columns_for(traffic, rules), tuple(left_out))


def groups_of(
    found: Labelled, strata: Sequence[str], harmful: Columns, *, labels_are_even: bool = False
) -> TunePrompts:
    """Return the even sample's scores by label. Recall is measured on its harmful ones, or else on `harmful`.

    Raises `StoreError` where no benign label can certify.
    """
    benign, labelled_harmful = found.rows(Label.BENIGN), found.rows(Label.HARMFUL)
    if not len(benign):
        raise StoreError(_no_benign(found), field="labels", remedy=_more(found))
    stratum = strata_of(found.traffic.rows(benign), strata)
    sample = Sample({name: column[benign] for name, column in found.columns.items()}, stratum)
    own = {name: column[labelled_harmful] for name, column in found.columns.items()}
    notes = [*_about_sample(found, labels_are_even=labels_are_even), *found.notes]
    if not len(labelled_harmful):
        notes.append("no decision of the even sample is labelled harmful: recall is that of the artifact's own prompts")
    return TunePrompts(sample, own if len(labelled_harmful) else harmful, None, tuple(notes))


def strata_of(found: Recent, kinds: Sequence[str]) -> npt.NDArray[np.str_]:
    """Return the stratum of each decision `[N]`: its value in each of `kinds`, joined. All alike without any.

    Raises `StoreError` for a kind that the store does not know.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise StoreError(
            f"the store does not know a decision's {unknown[0]}",
            field="--by",
            remedy=f"use {', '.join(KINDS)}; by {unknown[0]} tune with --prompts",
        )
    if not kinds:
        return np.full(len(found), "all")
    named = [KINDS[kind](found).tolist() for kind in kinds]
    return np.array([", ".join(values) for values in zip(*named, strict=True)])


def more_labels(found: Labelled, needed: int) -> str:
    """Return in words what makes the even sample have `needed` benign labels: the remedy where it is too small."""
    have = len(found.rows(Label.BENIGN))
    return f"label about {max(needed - have, 1):,} more benign decisions, {_EVENLY}; or ask for a higher rate"


_EVENLY = "picked evenly (in the console's review: all alike)"


def _about_sample(found: Labelled, *, labels_are_even: bool) -> list[str]:
    """Say what became of the labels, so that nobody takes an uneven sample for the traffic."""
    labels = Counter(label for label in found.traffic.labels.tolist() if label is not None)
    notes = [
        f"labels: {labels[Label.BENIGN]:,} benign, {labels[Label.HARMFUL]:,} harmful, {labels[Label.UNSURE]:,} unsure; "
        f"certified on {len(found.rows(Label.BENIGN)):,} benign ones"
    ]
    if found.even.thinned:
        notes.append(
            f"decisions were picked for labelling unevenly, such as borderline ones first. {found.even.thinned:,} labels "
            "were left out by chance, so that each decision was as likely as any other to be among the rest: a threshold "
            "certified on all of them would be no promise on traffic"
        )
    if found.even.unknown and labels_are_even:
        notes.append(
            f"of {found.even.unknown:,} labels nobody knows with which chance their decisions were picked: that they "
            "were picked evenly is your word (--even-labels), and the promise is as good as that"
        )
    elif found.even.unknown:
        notes.append(
            f"{found.even.unknown:,} labels have no part: with which chance their decisions were picked is not known. "
            "If they were picked evenly, say so with --even-labels"
        )
    if labels[Label.UNSURE]:
        notes.append(
            f"{labels[Label.UNSURE]:,} decisions are labelled unsure, and count as neither benign nor harmful: if they "
            "are mostly borderline and benign, more benign traffic is above a threshold than is promised"
        )
    models = Counter(_named(found.traffic.models[found.sample], "no model").tolist())
    if len(models) > 1:
        listed = ", ".join(f"{name} ({number:,})" for name, number in models.most_common())
        notes.append(f"labelled decisions are of several models: {listed}. Use --by model to keep the promise in each")
    return notes


def _no_benign(found: Labelled) -> str:
    labels = found.traffic.labels
    benign = int(np.count_nonzero(labels == Label.BENIGN))
    if not benign:
        return f"of {int(np.count_nonzero(labels != None)):,} labels none says benign"  # noqa: E711
    return f"none of {benign:,} benign labels can certify: with which chance their decisions were picked is not known"


def _more(found: Labelled) -> str:
    word = ", or give --even-labels if they were picked evenly" if found.even.unknown else ""
    return f"label benign decisions, {_EVENLY}{word}"


def _named(words: Objects, none: str) -> Objects:
    return np.array([word or none for word in words.tolist()], dtype=object)
