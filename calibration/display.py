"""Tables: an artifact and an evaluation as a person reads them in a terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from calibration.evaluate import ProbeReport, Report
from calibration.study import Study
from calibration.tune import Tuned
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.manifest import Evaluation, Probe, Rate
from probes.readout import Readout

_NOT_QUOTED = "–"


def evaluation_tables(report: Report) -> RenderableType:
    """Return the report's tables: probes, then controls, then what the sample was too small to say."""
    title = f"{report.split}: {report.num_harmful} harmful, {report.num_harmless} harmless prompts"
    probes = _table(
        title, "probe", "AUROC (95 %)", "TPR at 1 % FPR", "TPR at 0.1 % FPR", "at the certified 1 %: FPR", "TPR"
    )
    for name, probe in report.probes.items():
        probes.add_row(name, *_numbers(probe.evaluation), *_frozen(probe))
    controls = _table("controls: what cheaper explanations reach", "control", "AUROC", "TPR at 1 % FPR")
    for name, item in report.controls.items():
        controls.add_row(name, f"{item.auroc:.3f}", _percent(item.tpr_at_fpr.get("0.01")))
    return Group(probes, controls, *(Text(note) for note in report.notes))


def tuned_table(tuned: Sequence[Tuned]) -> RenderableType:
    """Return thresholds with the promise behind each and the recall to expect."""
    table = _table(
        "thresholds on your prompts", "score", "flag above", "promise", "of benign above", "expected recall (95 %)"
    )
    for item in tuned:
        cut = item.threshold
        promise = f"at most {cut.target_fpr:.2%} of benign requests, {cut.confidence:.0%} sure"
        exceedances = f"at most {cut.allowed_exceedances} of {cut.num_negatives}"
        table.add_row(item.name, f"{cut.value:.4f}", promise, exceedances, _percent(item.recall))
    return table


def strata_table(tuned: Sequence[Tuned]) -> RenderableType:
    """Return each stratum's own cut on each score; the highest of a row is in force."""
    certified = [item.certified for item in tuned]
    names = list(certified[0].strata)
    table = _table("each stratum's own threshold; the highest is used", "score", *names)
    for item in tuned:
        cuts = item.certified.strata
        table.add_row(item.name, *(f"{cuts[name].value:.4f}" for name in names))
    sizes = (f"{name} ({size})" for name, size in certified[0].too_small.items())
    missing = f"too few benign prompts to promise anything ({certified[0].needed} are needed): {', '.join(sizes)}"
    return Group(table, *([Text(missing)] if certified[0].too_small else []))


def artifact_summary(artifact: Artifact) -> RenderableType:
    """Return what an artifact holds: the model it is for, its probes and vectors, and the data behind them."""
    return Group(
        _identity(artifact),
        _probes(artifact),
        *([_steering(artifact)] if artifact.manifest.steering else []),
        _data(artifact),
    )


def study_tables(study: Study) -> RenderableType:
    """Return a study's tables and its finding."""
    tables = []
    for each in study.tables:
        table = _table(study.title, *each.columns)
        for row in each.rows:
            table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
        tables.append(table)
    return Group(*tables, Text(study.finding))


def _identity(artifact: Artifact) -> Table:
    manifest, table = artifact.manifest, Table(show_header=False, box=None)
    shown = {"artifact": manifest.digest, "created": manifest.created}
    shown |= {name: str(value) for name, value in manifest.fingerprint.model_dump().items() if value is not None}
    for name, value in shown.items():
        table.add_row(name, value)
    return table


def _probes(artifact: Artifact) -> Table:
    table = _table(
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


def _steering(artifact: Artifact) -> Table:
    table = _table("steering vectors", "vector", "block", "norm", "evidence")
    for vector in artifact.manifest.steering:
        evidence = ", ".join(f"{name} {value:.3g}" for name, value in vector.evidence.items())
        table.add_row(vector.name, _blocks(vector.layers), f"{vector.norm:.3g}", evidence)
    return table


def _data(artifact: Artifact) -> Table:
    table = _table("data", "split", "file", "harmful", "harmless", "SHA-256")
    for item in artifact.manifest.data:
        table.add_row(item.split, item.source, str(item.num_harmful), str(item.num_harmless), item.sha256[:16])
    sizes = [str(artifact.tensors[name].shape[0]) for name in (HARMFUL_SCORES, BENIGN_SCORES)]
    table.add_row("stored scores", "", *sizes, "")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def _numbers(evaluation: Evaluation) -> list[str]:
    area = f"{evaluation.auroc:.3f} ({evaluation.auroc_low:.3f}–{evaluation.auroc_high:.3f})"
    return [area, _percent(evaluation.tpr_at_fpr.get("0.01")), _percent(evaluation.tpr_at_fpr.get("0.001"))]


def _frozen(probe: ProbeReport) -> list[str]:
    result = next((each for each in probe.frozen if each.target_fpr == 0.01), None)
    return [_percent(result.fpr), _percent(result.tpr)] if result else [_NOT_QUOTED] * 2


def _percent(rate: Rate | None) -> str:
    return f"{rate.value:.1%} ({rate.low:.1%}–{rate.high:.1%})" if rate else _NOT_QUOTED


def _reads(probe: Probe) -> str:
    site = "neurons of block" if probe.site == "mlp_neurons" else "block"
    channels = f", {probe.channels} channels" if probe.channels > 1 else ""
    return f"{site} {_blocks(probe.layers)}, {_readout(probe.readout)}{channels}"


def _readout(readout: Readout) -> str:
    if readout.kind != "last":
        return f"{readout.kind} over tokens"
    return "last token" if readout.offset == 0 else f"{readout.offset} tokens before the last"


def _blocks(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))
