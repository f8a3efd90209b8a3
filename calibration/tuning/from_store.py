"""Tuning on recorded traffic: labels in the decision store certify thresholds, and no model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sqlalchemy import Engine

from calibration.tuning.broken import broken_promises
from calibration.tuning.hard_benign import hard_benign_in
from calibration.tuning.labelled import Labelled, groups_of, labelled, more_labels, strata_of
from calibration.tuning.limits import Limit, parse_limits
from calibration.tuning.prompts import TunePrompts
from calibration.tuning.settle import AS_STATED, PolicyText, Request, Tuning, settle
from calibration.tuning.tune import conditions
from guard.decide import score_columns
from guard.store.cipher import Cipher
from guard.store.errors import StoreError
from guard.store.label import Label
from guard.store.scores import Scores, event_ids
from guard.store.text_vault import TextVault
from guard.threshold import minimum_negatives
from guard.tuning.judged import Rules
from guard.tuning.recent import Recent, recent
from guard.tuning.what_if import what_if
from probes.artifact import HARMFUL_SCORES, Artifact
from probes.errors import TooFewNegatives

_MOST_TEXTS = 2000


@dataclass(frozen=True, slots=True)
class FromStore:
    """Which of the recorded traffic a tuning takes, and how."""

    last: int = 100_000
    """How many decisions, the newest."""
    labels_are_even: bool = False
    """The operator's word that labels without a known chance are of decisions that were picked evenly."""


_ALL_KNOWN = FromStore()


def tune_from_store(
    engine: Engine,
    artifact: Artifact,
    policy: Path,
    *,
    request: Request = AS_STATED,
    asked: FromStore = _ALL_KNOWN,
    cipher: Cipher | None = None,
) -> Tuning:
    """Set the thresholds of `policy` on the labelled benign decisions of a store; nothing is written.

    `cipher` opens the prompts that are kept, if any are, to see whether hard benign ones are among them. Raises
    `StoreError`, `PolicyError` and `CalibrationError` (also `TooFewNegatives`), and `sqlalchemy.exc.DBAPIError` where
    the store is gone.
    """
    read = PolicyText.read(policy, artifact)
    limits = parse_limits(request.at_most)
    found = recent(engine, asked.last)
    probes = tuple(probe.name for probe in artifact.manifest.probes)
    own_harmful = score_columns(read.parsed, probes, artifact.tensors[HARMFUL_SCORES].numpy())
    list(conditions(read.parsed, own_harmful))  # a score that is not there is named before labels are asked for
    strata_of(found.rows(np.zeros(0, dtype=np.intp)), request.strata)
    usable = labelled(found, Rules(probes, (), read.parsed.combine), labels_are_even=asked.labels_are_even)
    _require_harmful(usable, limits)
    groups = groups_of(usable, request.strata, own_harmful, labels_are_even=asked.labels_are_even)
    tuned = _settled(artifact, read, groups, request, limits, usable)
    notes = [
        *tuned.notes,
        *broken_promises(usable, tuned.scores, request.strata, request.confidence),
        *_about_policies(usable),
        *_about_hard_benign(engine, usable, cipher),
        "the store does not say how many turns a prompt had: its scores are those of the turn that called for most when "
        "it was decided, and the promise is about these",
    ]
    now = what_if(found, Rules.of(tuned.current), Rules.of(tuned.tuned)) if tuned.current else None
    return replace(tuned, notes=tuple(notes), traffic=now)


def _settled(
    artifact: Artifact,
    read: PolicyText,
    groups: TunePrompts,
    request: Request,
    limits: Sequence[Limit],
    found: Labelled,
) -> Tuning:
    try:
        return settle(artifact, read, groups, request, limits)
    except TooFewNegatives as error:
        rates = [request.block_fpr, request.flag_fpr] if request.block_fpr else [request.target_fpr]
        needed = max(minimum_negatives(rate, request.confidence) for rate in rates if rate)
        unused = f"; of {found.even.unknown:,} more the chance is not known" if found.even.unknown else ""
        raise TooFewNegatives(
            error.problem.replace("benign prompts", "benign labels") + unused,
            field=error.field,
            remedy=more_labels(found, needed),
        ) from error


def _require_harmful(found: Labelled, limits: Sequence[Limit]) -> None:
    missing = [limit.kind for limit in limits if limit.kind in {"miss", "unblocked"}]
    if missing and not len(found.rows(Label.HARMFUL)):
        raise StoreError(
            f"a limit on {missing[0]} needs decisions that are labelled harmful",
            field="--at-most",
            remedy="label some harmful decisions, or tune with --prompts and --harmful",
        )


def _about_policies(found: Labelled) -> list[str]:
    """Say whether the labelled decisions were made by the policy that decides now."""
    traffic = found.traffic
    newest = traffic.policies[0], traffic.digests[0]
    rows = found.sample
    others = (traffic.policies[rows] != newest[0]) | (traffic.digests[rows] != newest[1])
    if not others.any():
        return []
    names = sorted({str(name) for name in traffic.policies[rows][others].tolist()})
    return [
        f"{int(others.sum()):,} of {len(rows):,} labelled decisions were made by another policy ({', '.join(names)}; the "
        f"newest traffic: {newest[0]}). Scores do not hang on a policy's thresholds, but they do on the artifact: the "
        "store does not say which it was, so label anew after a change of the artifact or the model"
    ]


def _about_hard_benign(engine: Engine, found: Labelled, cipher: Cipher | None) -> list[str]:
    """Say whether the promise is about easy prompts only, as far as anyone can know."""
    benign = found.rows(Label.BENIGN)
    texts = _texts(engine, found.traffic, benign, cipher) if cipher is not None else []
    promise = (
        "then the promise is about easy traffic only: keep a file of such prompts, and tune with --hard-benign on it"
    )
    if not texts:
        why = "no key is in FOREGUARD_STORE_KEY" if cipher is None else "no prompt of them is kept"
        return [
            "whether your benign traffic holds hard benign prompts (trigger words, tools, other languages) cannot be "
            f"known: {why}. If it does not, {promise}"
        ]
    hard = hard_benign_in(texts)
    if not hard.lacking:
        return []
    counted = ", ".join(f"{number:,} with {name}" for name, number in hard.kinds.items()).replace(
        "with other", "in other"
    )
    return [
        f"of {hard.count:,} labelled benign prompts whose text is kept there are {counted}. Of {' and '.join(hard.lacking)} "
        f"that is less than 1 %: {promise}"
    ]


def _texts(
    engine: Engine, traffic: Recent, rows: "np.ndarray[tuple[int], np.dtype[np.intp]]", cipher: Cipher
) -> list[str]:
    vault, keys = TextVault(engine, cipher), traffic.keys[rows[:_MOST_TEXTS]]
    found = (vault.text(each) for each in event_ids(engine, Scores(keys, np.zeros(len(keys)))))
    return [text for text in found if text]
