"""The page: one HTML file that needs nothing else, and the same figures as PNG files beside it."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from calibration.evaluation.evaluate import ControlReport, Report
from calibration.fitting.study import StudyResult
from calibration.report import figures
from calibration.report.evidence import Evidence, SplitScores
from calibration.report.style import styled
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.errors import CalibrationError
from probes.manifest import Rate

PAGE = "report.html"
_DPI = 160
_MOST_LINES = 8


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with what it shows, in words."""

    name: str
    title: str
    caption: str
    figure: Figure

    @property
    def svg(self) -> Markup:
        """The figure as an SVG element, to stand in the page."""
        buffer = io.StringIO()
        self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        return Markup(buffer.getvalue()[buffer.getvalue().index("<svg") :])  # noqa: S704 - matplotlib escapes its texts


def write_report(artifact: Artifact, folder: Path) -> Path:
    """Write `report.html` and its figures to `folder`; return the page. Raises `ArtifactError` without evidence.

    A `folder` that cannot be made, because a file stands there for one, raises `CalibrationError`.
    """
    evidence = Evidence.of(artifact)
    _make(folder)
    with styled():
        pictures = list(_pictures(artifact, evidence))
        charts = {study.name: list(_charts(study)) for study in evidence.studies}
        for picture in [*pictures, *chain.from_iterable(charts.values())]:
            picture.figure.savefig(folder / f"{picture.name}.png", dpi=_DPI)
        page = _render(artifact, evidence, pictures, charts)
    (folder / PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CalibrationError(
            f"{folder} cannot be made a folder: {error.strerror}",
            field="--out",
            remedy="name a folder, new or existing, that may be written to",
        ) from error


def _pictures(artifact: Artifact, evidence: Evidence) -> Iterator[Picture]:
    report, split = evidence.report, f"{evidence.report.split.capitalize()} split"
    yield Picture(
        "separation",
        "Where the model tells the two apart",
        "AUROC of the difference in means on selection prompts, by decoder block and token position; 0.5 is chance.",
        figures.separation(evidence.separation),
    )
    thresholds = {
        name: frozen.threshold
        for name, each in report.probes.items()
        for frozen in each.frozen
        if frozen.target_fpr == 0.01
    }
    yield Picture(
        "scores",
        "Scores and thresholds",
        "Calibration split, density by class. Flagged is what lies right of the dashed line.",
        figures.histograms(_calibration_scores(artifact), thresholds),
    )
    shown = _best(report)
    which = f" The {len(shown)} probes with the best recall at 1 %." if len(shown) < len(report.probes) else ""
    yield Picture(
        "roc",
        "Recall at low false-positive rates",
        f"{split}. The axis begins at one false positive in all; the dotted line is 1 %.{which}",
        figures.roc({name: evidence.test_scores[name] for name in shown}),
    )
    platt = {probe.name: probe.platt for probe in artifact.manifest.probes if probe.platt is not None}
    yield Picture(
        "reliability",
        "What a probability means",
        f"{split}, eight bins of equal size with exact 95 % intervals. Probabilities are for the calibration "
        "set's share of harmful prompts: where this split has more of them, points lie above the diagonal. The table "
        f"tells that from what is wrong with the map itself.{which}",
        figures.reliability({name: evidence.test_scores[name] for name in shown if name in platt}, platt),
    )
    operators = {vector.name: vector.operator for vector in artifact.manifest.steering}
    for name, curve in evidence.doses.items():
        yield Picture(
            f"dose_{name}",
            f"Steering: dose and response of “{name}”",
            "From the prompt's last position on, as served. Above 0 the answer more likely begins as a refusal.",
            figures.dose(
                curve, "strength, in norms of the vector" if operators[name] == "add" else "strength, share of the way"
            ),
        )


def _best(report: Report) -> list[str]:
    """Return the names of the probes to draw beside each other, in the report's order: more lines cannot be told
    apart.
    """

    def merit(name: str) -> tuple[float, float]:
        found = report.probes[name].evaluation
        at_one = found.tpr_at_fpr.get("0.01")
        return at_one.value if at_one else 0.0, found.auroc

    chosen = set(sorted(report.probes, key=merit, reverse=True)[:_MOST_LINES])
    return [name for name in report.probes if name in chosen]


def _charts(study: StudyResult) -> Iterator[Picture]:
    for chart in study.charts:
        yield Picture(f"{study.name}_{chart.name}", study.title, chart.caption, figures.lines(chart))


def _calibration_scores(artifact: Artifact) -> dict[str, SplitScores]:
    harmless, harmful = (artifact.tensors[name].numpy() for name in (BENIGN_SCORES, HARMFUL_SCORES))
    return {
        probe.name: SplitScores(
            harmful=tuple(harmful[:, column].tolist()), harmless=tuple(harmless[:, column].tolist())
        )
        for column, probe in enumerate(artifact.manifest.probes)
    }


def _render(
    artifact: Artifact, evidence: Evidence, pictures: list[Picture], charts: Mapping[str, list[Picture]]
) -> str:
    environment = Environment(
        loader=PackageLoader("calibration.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["percent"] = _percent
    template = environment.get_template("page.html.jinja")
    return template.render(
        manifest=artifact.manifest,
        report=evidence.report,
        unseen=evidence.unseen,
        pictures=pictures,
        studies=evidence.studies,
        not_asked=evidence.not_asked,
        charts=charts,
        verdict=_verdict(evidence.report),
    )


def _percent(rate: Rate | None) -> str:
    return f"{rate.value:.1%} ({rate.low:.1%}–{rate.high:.1%})" if rate else "–"


def _verdict(report: Report) -> str:
    """Say in a sentence whether the best probe beats the best of the cheaper explanations."""
    name, best = max(report.probes.items(), key=lambda item: item[1].evaluation.auroc)
    ours = best.evaluation
    if not report.controls:
        return f"The best probe by AUROC is {name} ({ours.auroc:.3f}); no control was measured."
    other, cheap = max(report.controls.items(), key=lambda item: item[1].auroc)
    relation = _relation(ours.auroc_low, ours.auroc_high, cheap)
    return (
        f"The best probe by AUROC is {name} ({ours.auroc:.3f}, {ours.auroc_low:.3f} to {ours.auroc_high:.3f}). "
        f"It {relation} the best control, {other} ({cheap.auroc:.3f}: {cheap.what})."
    )


def _relation(low: float, high: float, control: ControlReport) -> str:
    if low > control.auroc:
        return "beats"
    return "loses to" if high < control.auroc else "cannot be told from"
