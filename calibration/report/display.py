"""Tables: an artifact and an evaluation as a person reads them in a terminal."""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from calibration.evaluation.evaluate import ProbeReport, Report
from calibration.evaluation.forms.endings import rate_to_try
from calibration.fitting.contract import Method, Study
from calibration.fitting.metrics import certified_thresholds
from calibration.fitting.study import StudyResult
from probes.artifact import BENIGN_ANSWERS, BENIGN_SCORES, HARMFUL_ANSWERS, HARMFUL_SCORES, Artifact
from probes.manifest import EMBEDDINGS, Evaluation, FormRates, Probe, Rate
from probes.readout import Readout

_NOT_QUOTED = "–"


def evaluation_tables(report: Report) -> RenderableType:
    """Return the report's tables: probes, then controls, then what the sample was too small to say."""
    title = f"{report.split}: {report.num_harmful} harmful, {report.num_harmless} harmless prompts"
    probes = table_of(
        title, "probe", "AUROC (95 %)", "TPR at 1 % FPR", "TPR at 0.1 % FPR", "at the certified 1 %: FPR", "TPR"
    )
    for name, probe in report.probes.items():
        probes.add_row(name, *_numbers(probe.evaluation), *_frozen(probe))
    controls = table_of("controls: what cheaper explanations reach", "control", "AUROC", "TPR at 1 % FPR")
    for name, item in report.controls.items():
        controls.add_row(name, f"{item.auroc:.3f}", percent(item.tpr_at_fpr.get("0.01")))
    return Group(probes, controls, *_reliability(report), *(Text(note) for note in report.notes))


def _reliability(report: Report) -> list[Table]:
    table = table_of(
        "probabilities", "probe", "for a share of harm of", "Brier (95 %)", "ECE (95 %)", "a perfect map's ECE"
    )
    for name, probe in report.probes.items():
        # Where test prompts have the share of harm that the map was fitted at, both lines would say the same.
        for each in {round(each.prevalence, 2): each for each in probe.reliability}.values():
            brier = f"{each.brier.value:.4f} ({each.brier.low:.4f}–{each.brier.high:.4f})"
            ece = f"{each.ece.value:.3f} ({each.ece.low:.3f}–{each.ece.high:.3f})"
            table.add_row(name, f"{each.prevalence:.1%}", brier, ece, f"below {each.ece_by_chance:.3f}")
    return [table] if table.row_count else []


def artifact_summary(artifact: Artifact, prevalence: float | None = None) -> RenderableType:
    """Return what an artifact holds: the model it is for, its probes and vectors, and the data behind them.

    With a `prevalence`, also what a score at a certified threshold means where that share of traffic is harmful.
    """
    return Group(
        _identity(artifact),
        _probes(artifact),
        *([_forms(artifact)] if any(probe.forms for probe in artifact.manifest.probes) else []),
        *([] if prevalence is None else [_probabilities(artifact, prevalence)]),
        *([_watches(artifact)] if artifact.manifest.watches else []),
        *([_combinations(artifact)] if artifact.manifest.combinations else []),
        *([_steering(artifact)] if artifact.manifest.steering else []),
        _data(artifact),
    )


def study_tables(study: StudyResult) -> RenderableType:
    """Return a study's tables and its finding."""
    tables = []
    for each in study.tables:
        table = table_of(study.title, *each.columns)
        for row in each.rows:
            table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
        tables.append(table)
    return Group(*tables, Text(study.finding))


def not_asked_table(reasons: Mapping[str, str]) -> Table:
    """Return the studies that could not be asked, with the reasons."""
    table = table_of("not asked", "study", "reason")
    for name, reason in reasons.items():
        table.add_row(name, Text(reason))
    return table


def installed_table(methods: Iterable[Method], studies: Iterable[Study]) -> RenderableType:
    """Return what can be asked for with `--only` and `--also`, and what runs when nothing is."""
    fitted = table_of("methods", "name", "runs", "without a source", "what it is")
    for method in methods:
        runs = "by default" if method.plain else "when asked"
        fitted.add_row(method.name, runs, "yes" if method.refits else "no", _title(method.fit))
    measured = table_of("studies, which run when asked", "name", "what it is")
    for study in studies:
        measured.add_row(study.name, _title(study.measure))
    return Group(fitted, measured)


def _title(function: Callable[..., Any]) -> str:
    """Return the first paragraph of the docstring of the function's file."""
    text = sys.modules[function.__module__].__doc__ or function.__doc__ or ""
    return " ".join(text.strip().split("\n\n")[0].split())


def _combinations(artifact: Artifact) -> Table:
    table = table_of("combinations", "name", "weighted sum of scores")
    for name, weights in artifact.manifest.combinations.items():
        table.add_row(name, " + ".join(f"{weight:.2f} {probe}" for probe, weight in weights.items()))
    return table


def _identity(artifact: Artifact) -> Table:
    manifest, table = artifact.manifest, Table(show_header=False, box=None)
    shown = {"artifact": manifest.digest, "created": manifest.created}
    shown |= {name: str(value) for name, value in manifest.fingerprint.model_dump().items() if value is not None}
    for name, value in shown.items():
        table.add_row(name, value)
    return table


def _probes(artifact: Artifact) -> Table:
    table = table_of(
        "probes, on the last split evaluated",
        "probe",
        "reads",
        "AUROC (95 %)",
        "TPR at 1 % FPR",
        "TPR at 0.1 % FPR",
        "method",
    )
    for probe in artifact.manifest.probes:
        numbers = _numbers(probe.evaluation[-1]) if probe.evaluation else [_NOT_QUOTED] * 3
        table.add_row(probe.name, _reads(probe), *numbers, probe.method)
    return table


def _forms(artifact: Artifact) -> Table:
    """Return a row for each form of a request: what each probe finds there, and takes for harmful."""
    probes = [probe for probe in artifact.manifest.probes if probe.forms]
    target = rate_to_try(len(artifact.tensors[BENIGN_SCORES]))
    table = table_of(
        "requests by form: harmful ones found / harmless ones taken for harmful, "
        f"at the threshold for {target:.0%} of plain ones",
        "form",
        *(probe.name for probe in probes),
    )
    for form in probes[0].forms:
        table.add_row(form.replace("_", " "), *(_in_form(probe.forms[form]) for probe in probes))
    ends = (", ".join(probe.endings) for probe in probes)
    table.add_row("decides on prompts that end", *ends, end_section=True)
    table.caption = "(x): the probe does not hold the form."
    return table


def _in_form(rates: FormRates) -> str:
    return f"{rates.harmful.value:.0%} / {rates.harmless.value:.1%}{'' if rates.holds else ' (x)'}"


def _watches(artifact: Artifact) -> Table:
    """Return a row for each watch; a dash where the model answered no harmful prompt of the last split."""
    table = table_of(
        "watches over answers, on the last split evaluated",
        "watch",
        "probe",
        "tokens",
        "AUROC (95 %)",
        "TPR at 1 % FPR",
        "TPR at 0.1 % FPR",
    )
    for watch in artifact.manifest.watches:
        numbers = _numbers(watch.evaluation[-1]) if watch.evaluation else [_NOT_QUOTED] * 3
        table.add_row(watch.name, watch.probe, str(watch.max_tokens), *numbers)
    return table


def _probabilities(artifact: Artifact, prevalence: float) -> Table:
    benign = artifact.tensors[BENIGN_SCORES].numpy()
    certified = {
        probe.name: certified_thresholds(benign[:, column]) for column, probe in enumerate(artifact.manifest.probes)
    }
    table = table_of(
        f"where {prevalence:.4g} is harmful", "probe", "at its threshold for", "score", "probability of harm"
    )
    for probe in artifact.manifest.probes:
        for cut in certified[probe.name] if probe.platt else ():
            chance = probe.platt.at(prevalence).probability(cut.value) if probe.platt else 0.0
            table.add_row(probe.name, f"{cut.target_fpr:.1%} FPR", f"{cut.value:.4f}", f"{chance:.2%}")
    return table


def _steering(artifact: Artifact) -> Table:
    table = table_of("steering vectors", "vector", "block", "norm", "evidence")
    for vector in artifact.manifest.steering:
        evidence = ", ".join(f"{name} {value:.3g}" for name, value in vector.evidence.items())
        table.add_row(vector.name, _blocks(vector.layers), f"{vector.norm:.3g}", evidence)
    return table


def _data(artifact: Artifact) -> Table:
    table = table_of("data", "split", "file", "harmful", "harmless", "SHA-256")
    for item in artifact.manifest.data:
        table.add_row(item.split, item.source, str(item.num_harmful), str(item.num_harmless), item.sha256[:16])
    sizes = [str(artifact.tensors[name].shape[0]) for name in (HARMFUL_SCORES, BENIGN_SCORES)]
    table.add_row("stored scores", "", *sizes, "")
    if artifact.manifest.watches:
        sizes = [str(artifact.tensors[name].shape[0]) for name in (HARMFUL_ANSWERS, BENIGN_ANSWERS)]
        table.add_row("stored scores of answers", "", *sizes, "")
    return table


def table_of(title: str, *columns: str) -> Table:
    """Return an empty table."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _numbers(evaluation: Evaluation) -> list[str]:
    area = f"{evaluation.auroc:.3f} ({evaluation.auroc_low:.3f}–{evaluation.auroc_high:.3f})"
    return [area, percent(evaluation.tpr_at_fpr.get("0.01")), percent(evaluation.tpr_at_fpr.get("0.001"))]


def _frozen(probe: ProbeReport) -> list[str]:
    result = next((each for each in probe.frozen if each.target_fpr == 0.01), None)
    return [percent(result.fpr), percent(result.tpr)] if result else [_NOT_QUOTED] * 2


def percent(rate: Rate | None) -> str:
    """Return a share with its interval, or a dash where there is none."""
    return f"{rate.value:.1%} ({rate.low:.1%}–{rate.high:.1%})" if rate else _NOT_QUOTED


def _reads(probe: Probe) -> str:
    site = "neurons of block" if probe.site == "mlp_neurons" else "block"
    channels = f", {probe.channels} channels" if probe.channels > 1 else ""
    return f"{site} {_blocks(probe.layers)}, {_readout(probe.readout)}{channels}{_ROLES[probe.role]}"


_ROLES = {"detects": "", "escalates": ", never blocks alone", "evades": ", knows nothing of harm"}


def _readout(readout: Readout) -> str:
    if not readout.reads_one_token:
        return f"{readout.kind} over tokens"
    return "last token" if readout.offset == 0 else f"{readout.offset} tokens before the last"


def _blocks(layers: tuple[int, ...]) -> str:
    return ", ".join("embeddings" if layer == EMBEDDINGS else str(layer) for layer in layers)
