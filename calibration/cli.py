"""The commands of the offline spoke. Heavy imports wait inside the functions, so that `foreguard --help` is instant."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guard.console import table_console

if TYPE_CHECKING:
    from calibration.evaluation.evaluate import Report
    from calibration.tuning.settle import Request, Tuning

_Dtype = Annotated[
    str,
    typer.Option(
        help="Precision to compute in: auto (the model's own), bfloat16, float16 or float32. Serve in the same one."
    ),
]
_Device = Annotated[str, typer.Option(help="Where to run the model: cpu, or a torch device such as cuda.")]
_SkipLong = Annotated[
    bool, typer.Option("--skip-long", help="Leave out prompts longer than the model's context, and count them.")
]

_EngineArgs = Annotated[
    str, typer.Option(help='The engine\'s own arguments, in quotes: "--quantization fp8 --enforce-eager".')
]


class Stratum(StrEnum):
    """What `tune --by` can divide traffic by."""

    LANGUAGE = "language"
    LENGTH = "length"
    TURNS = "turns"
    SOURCE = "source"
    TENANT = "tenant"
    ROUTE = "route"
    MODEL = "model"


_ModelOption = Annotated[
    str, typer.Option(help="The model that the artifact was calibrated on: folder or Hugging Face id.")
]
_Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="SPELLING=harmful",
        help="How a prompt file spells a label: --label toxic=harmful --label 0=harmless. Repeatable.",
    ),
]


def _list_methods(asked: bool) -> None:
    if asked:
        from calibration.registry import methods, studies
        from calibration.report.display import installed_table

        table_console().print(installed_table(methods().values(), studies().values()))
        raise typer.Exit


def calibrate(
    model: Annotated[str, typer.Argument(help="Folder or Hugging Face id of the chat model to guard.")],
    out: Annotated[
        Path, typer.Option(help="Folder to write the artifact to; one that stands there is replaced at the end.")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts (JSONL) in one file. It is divided by label, source and category: half to fit on, three "
            "tenths to certify thresholds, two tenths to report.",
            show_default="the starter set that Foreguard ships",
        ),
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(
            help="Three files instead: prompts (JSONL) that probes are fitted on and chosen by.", show_default=False
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            help="Prompts that certify thresholds: at least 299 harmless ones for 1 %, 2,995 for 0.1 %.",
            show_default=False,
        ),
    ] = None,
    test: Annotated[Path | None, typer.Option(help="Prompts that only report.", show_default=False)] = None,
    label: _Labels = None,
    dtype: _Dtype = "auto",
    device: _Device = "cpu",
    partner: Annotated[
        str | None,
        typer.Option(
            help="With --full: the same model before its alignment, or after losing it (folder or Hugging Face id). "
            "Its neurons are contrasted."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=16,
            help="Most training prompts per class; an 8B model leaves about 2 MB a prompt on disk.",
        ),
    ] = None,
    leave_one_source_out: Annotated[
        bool,
        typer.Option(
            "--leave-one-source-out",
            help="Also fit without each source in turn and measure on it: what to expect of traffic that is new. Slow.",
        ),
    ] = False,
    wrap: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of training prompts to add once more inside templates and jailbreak wrappers, harmful and "
            "harmless alike: for probes that shall meet wrapped requests. With --leave-one-source-out, copies are left "
            "out once, too.",
        ),
    ] = 0.0,
    forms: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Ask N test requests per class in each of some 15 forms (prefill, system turn, raw text, words around "
            "it), and the validation requests in those that do not end as the chat template does. With 0, no rule has "
            "a say on prompts that end so.",
        ),
    ] = 100,
    kl_budget: Annotated[
        float,
        typer.Option(
            min=0,
            help="Most that a steering vector may change harmless first tokens, in nats of KL, to go into the "
            "artifact.",
        ),
    ] = 0.1,
    keep_costly_steering: Annotated[
        bool, typer.Option("--keep-costly-steering", help="Put steering vectors over the budget into the artifact too.")
    ] = False,
    watch_answers: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="TOKENS",
            help="Also let the model answer, in at most this many tokens, and calibrate watches: scores of an answer "
            "while it is generated. As slow as answering every validation and test prompt and 1,000 training prompts.",
            show_default=False,
        ),
    ] = None,
    skip_long: _SkipLong = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Read and score prompts on this Ray cluster (host:port, auto or local): a model replica per GPU or "
            "machine.",
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="Who computes the training activations, and the scores that thresholds are certified by: hf "
            "(Transformers), or vllm as it will serve: quantised, compiled."
        ),
    ] = "hf",
    engine_args: _EngineArgs = "",
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Run every method and every study that --list names, and not only the methods that run by default. "
            "Several times as long.",
        ),
    ] = False,
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Run this method or study beside those of a plain calibration; --list names them all. Repeatable.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Run this method or study, and no other that is not named so; --list names them all. Repeatable.",
        ),
    ] = None,
    list_methods: Annotated[  # noqa: ARG001 - its callback does all
        bool,
        typer.Option(
            "--list", is_eager=True, callback=_list_methods, help="List every installed method and study, and stop."
        ),
    ] = False,
    keep_work: Annotated[
        bool, typer.Option("--keep-work", help="Keep the recorded activations and every stage's file.")
    ] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Also write the evaluation to this file.")] = None,
) -> None:
    """Calibrate probes and steering vectors on a model: prompts in, an artifact out.

    Without prompt files it uses the starter set that Foreguard ships. Thresholds that are certified on it promise
    nothing about your traffic: `foreguard tune` certifies them on that.

    Each line of a prompt file is {"prompt": "…", "label": "harmful"} or "harmless"; "messages" may stand for "prompt",
    and "category" and "source" group the report. CSV, Parquet and ShareGPT's files are read, too. Three files must
    share no request.

    An interrupted run goes on where it stopped when the same command is given again.

        foreguard calibrate ./my-model --out ./artifact

        foreguard calibrate ./my-model --prompts labelled.jsonl --out ./artifact

        foreguard calibrate ./my-model --train train.jsonl --validation validation.jsonl --test test.jsonl --out
        ./artifact
    """
    from calibration.model.chat_model import resolve_model
    from calibration.pipeline.calibrate import calibrate as run
    from calibration.pipeline.kept import WORK
    from calibration.pipeline.settings import Settings
    from calibration.prompts.chosen import chosen_prompts
    from calibration.report.display import evaluation_tables, not_asked_table

    settings = Settings(
        dtype=dtype,
        device=device,
        limit=limit,
        leave_one_source_out=leave_one_source_out,
        skip_long=skip_long,
        wrap=wrap,
        keep_work=keep_work,
        partner=resolve_model(partner) if partner else None,
        forms=forms,
        kl_budget=kl_budget,
        keep_costly_steering=keep_costly_steering,
        watch_answers=watch_answers,
        ray=ray,
        engine=engine,
        engine_args=tuple(shlex.split(engine_args)),
        full=full,
        also=tuple(also or ()),
        only=tuple(only) if only else None,
    )
    console = table_console()
    try:
        done = run(resolve_model(model), chosen_prompts(prompts, train, validation, test, label or ()), out, settings)
    except KeyboardInterrupt:
        console.print(
            f"stopped; what is finished is kept in {out.parent / WORK}: give the same command again to go on from there"
        )
        raise typer.Exit(130) from None
    _write_json(done.report, json)
    console.print(evaluation_tables(done.report))
    if done.not_asked:
        console.print(not_asked_table(done.not_asked))
    console.print(f"artifact {done.manifest.digest[:12]} written to {out}")


def prompts(
    out: Annotated[Path, typer.Option(help="Folder to write train.jsonl, validation.jsonl and test.jsonl to.")],
) -> None:
    """Write the starter set as prompt files: to read it, to extend it, or to leave out what you do not need.

    They are divided as `foreguard calibrate` divides them, and calibrate the same probes.

        foreguard prompts --out ./prompts
    """
    from calibration.prompts.chosen import chosen_prompts

    out.mkdir(parents=True, exist_ok=True)
    for split, file in chosen_prompts().items():
        (out / f"{split}.jsonl").write_text("".join(f"{prompt.to_json()}\n" for prompt in file.prompts))
        count = int(file.harmful.sum())
        table_console().print(f"{split:10} {count:5} harmful {len(file.prompts) - count:5} harmless", highlight=False)


def evaluate(
    model: _ModelOption,
    artifact: Annotated[Path, typer.Option(help="Artifact folder.")],
    prompts: Annotated[Path, typer.Option(help="Labelled prompts (JSONL) that calibration has not seen.")],
    train: Annotated[
        Path | None,
        typer.Option(help="Training prompts, for the controls that learn: words, and the model's own refusal."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write the whole report, by category and source, to this file.")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            help="Write each prompt's scores to this file, one JSON object a line: of its last turn, and of a "
            "conversation's every turn."
        ),
    ] = None,
    dtype: _Dtype = "auto",
    device: _Device = "cpu",
    skip_long: _SkipLong = False,
    label: _Labels = None,
) -> None:
    """Measure an artifact's probes on labelled prompts: AUROC, recall at low false-positive rates, and controls.

    Also says what the thresholds certified at calibration really let through here.

        foreguard evaluate --model ./my-model --artifact ./artifact --prompts new.jsonl --json report.json
    """
    from calibration.evaluation.evaluation_run import evaluate_artifact
    from calibration.model.chat_model import resolve_model
    from calibration.prompts.prompt_file import load_prompts, read_labels
    from calibration.report.display import evaluation_tables
    from probes.artifact import Artifact

    labels = read_labels(label or ())
    evaluated = evaluate_artifact(
        resolve_model(model),
        Artifact.load(artifact),
        load_prompts(prompts, labels),
        train=load_prompts(train, labels) if train else None,
        dtype=dtype,
        device=device,
        skip_long=skip_long,
        turns=scores is not None,
    )
    _write_json(evaluated.report, json)
    if scores is not None:
        scores.write_text("".join(f"{line}\n" for line in evaluated.lines()))
    table_console().print(evaluation_tables(evaluated.report))


def tune(
    artifact: Annotated[Path, typer.Option(help="Artifact folder.")],
    policy: Annotated[Path, typer.Option(help="Policy file whose thresholds to tune; it is read, never written.")],
    model: Annotated[
        str | None,
        typer.Option(help="The model that the artifact was calibrated on: folder or Hugging Face id. With --prompts."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Your own benign prompts (JSONL, label harmless); harmful ones in it measure recall."),
    ] = None,
    from_store: Annotated[
        bool,
        typer.Option(
            "--from-store",
            help="Instead of --prompts: tune on the decisions that people labelled. No model is loaded.",
        ),
    ] = False,
    store: Annotated[
        str | None,
        typer.Option(
            envvar="FOREGUARD_STORE",
            show_envvar=True,
            help="With --from-store: address of the decision store. One with a password belongs into the environment.",
        ),
    ] = None,
    last: Annotated[int, typer.Option(min=1, help="With --from-store: how many decisions to take, the newest.")] = (
        100_000
    ),
    even_labels: Annotated[
        bool,
        typer.Option(
            "--even-labels",
            help="With --from-store: your word that labels without a known chance, such as those of a CSV file, are of "
            "decisions that were picked evenly.",
        ),
    ] = False,
    target_fpr: Annotated[
        float,
        typer.Option(help="Share of benign requests that may be above a threshold; conditions that state one keep it."),
    ] = 0.01,
    block_fpr: Annotated[
        float | None,
        typer.Option(help="With --flag-fpr, a band: share of benign requests that rules which block may fire on."),
    ] = None,
    flag_fpr: Annotated[
        float | None, typer.Option(help="Share of benign requests that rules which flag or steer may fire on.")
    ] = None,
    at_most: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT=SHARE",
            help="Limits on the whole policy that hold together: block, flag and burden of benign requests, hard "
            "benign ones not allowed, miss (harmful allowed), unblocked. Repeatable: --at-most block=0.001 --at-most "
            "miss=0.2",
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Probability that all that is promised holds.")] = 0.95,
    harmful: Annotated[
        Path | None, typer.Option(help="Harmful prompts to expect recall on; else the artifact's own.")
    ] = None,
    hard_benign: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE|CATEGORY|FILE",
            help="Harmless prompts that sound harmful, to measure over-refusal on. Repeatable.",
        ),
    ] = None,
    by: Annotated[
        list[Stratum] | None,
        typer.Option(
            help="Keep the rate in every stratum and not only on average: by language, length, turns or source; with "
            "--from-store by tenant, route, model or length. Repeatable."
        ),
    ] = None,
    prevalence: Annotated[
        float | None,
        typer.Option(help="Share of your traffic that is harmful, to say what a score at a threshold means there."),
    ] = None,
    dtype: _Dtype = "auto",
    device: _Device = "cpu",
    skip_long: _SkipLong = False,
    engine: Annotated[
        str,
        typer.Option(help="Who scores the prompts: hf (Transformers), or vllm as it will serve: quantised, compiled."),
    ] = "hf",
    engine_args: _EngineArgs = "",
    label: _Labels = None,
) -> None:
    """Find thresholds on your own benign traffic, and print them as a diff of the policy.

    Above each changed threshold the diff says what it promises and what its rule fires on. At 1 % and 95 % confidence
    this takes at least 299 benign prompts; at 0.1 %, 2,995. Review the diff, then apply it:

        foreguard tune --model ./my-model --artifact ./artifact --policy policy.yaml --prompts benign.jsonl > tuned.diff
        patch policy.yaml tuned.diff

    On recorded traffic, with the labels that people gave: foreguard tune --from-store --artifact ./artifact --policy
    policy.yaml

    Two thresholds at once: --block-fpr 0.001 --flag-fpr 0.01. Limits on the policy as a whole, with reference attacks:
    --harmful attacks.jsonl --at-most block=0.001 --at-most flag=0.01 --at-most miss=0.2
    """
    from calibration.tuning.display import tuning_tables
    from calibration.tuning.settle import Request
    from probes.artifact import Artifact

    request = Request(
        target_fpr=target_fpr,
        block_fpr=block_fpr,
        flag_fpr=flag_fpr,
        at_most=tuple(at_most or ()),
        confidence=confidence,
        strata=tuple(kind.value for kind in by or ()),
        hard_benign=tuple(hard_benign or ()),
        prevalence=prevalence,
    )
    if from_store:
        if prompts is not None or harmful is not None or hard_benign:
            raise typer.BadParameter(
                "--from-store loads no model, and so takes no prompts: tune with --prompts for these"
            )
        if store is None:
            raise typer.BadParameter("--from-store needs --store, or FOREGUARD_STORE in the environment")
        found = _tuned_from_store(store, artifact, policy, request, last, even_labels=even_labels)
    else:
        if model is None or prompts is None:
            raise typer.BadParameter("give --model and --prompts, or --from-store")
        from calibration.model.chat_model import resolve_model
        from calibration.prompts.prompt_file import load_prompts, read_labels
        from calibration.tuning.run import tune_policy

        labels = read_labels(label or ())
        found = tune_policy(
            resolve_model(model),
            Artifact.load(artifact),
            policy,
            load_prompts(prompts, labels),
            harmful=load_prompts(harmful, labels) if harmful else None,
            request=request,
            dtype=dtype,
            device=device,
            skip_long=skip_long,
            engine=engine,
            engine_args=tuple(shlex.split(engine_args)),
        )
    # The diff alone goes to standard output, so that it can be redirected into `patch`.
    table_console(stderr=True).print(tuning_tables(found))
    typer.echo(found.diff, nl=False)


def _tuned_from_store(
    store: str, artifact: Path, policy: Path, request: "Request", last: int, *, even_labels: bool
) -> "Tuning":
    from guard.store.opening import current_store

    with current_store(store) as engine:
        from calibration.tuning.from_store import FromStore, tune_from_store
        from guard.store.cipher import cipher_from
        from probes.artifact import Artifact

        return tune_from_store(
            engine,
            Artifact.load(artifact),
            policy,
            request=request,
            asked=FromStore(last, even_labels),
            cipher=cipher_from(),
        )


def attack(
    model: _ModelOption,
    artifact: Annotated[Path, typer.Option(help="Artifact folder.")],
    prompts: Annotated[
        Path,
        typer.Option(
            help="Labelled prompts (JSONL): harmful ones are attacked, harmless ones show how others are answered."
        ),
    ],
    probe: Annotated[
        list[str] | None,
        typer.Option(help="Attack this probe beside refusal. Repeatable; without it, every probe in turn."),
    ] = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="How many harmful prompts to attack.")] = 16,
    length: Annotated[int, typer.Option(min=1, help="Tokens of the suffix.")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Most steps of the search.")] = 40,
    swaps: Annotated[int, typer.Option(min=1, help="Swaps tried per prompt and step.")] = 24,
    json: Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")] = None,
    dtype: _Dtype = "auto",
    device: _Device = "cpu",
) -> None:
    """Attack a model and its probes with the weights in hand, and say how far recall falls. Slow.

    A suffix of meaningless words is searched for each prompt that makes the model answer, and one that also takes a
    probe's score below its certified 1 % threshold. Suffixes are shown and kept nowhere.

        foreguard attack --model ./my-model --artifact ./artifact --prompts test.jsonl --num-prompts 16
    """
    from calibration.audits.attack.suffix_search import Effort
    from calibration.audits.attack.white_box import attack_artifact
    from calibration.model.chat_model import resolve_model
    from calibration.prompts.prompt_file import load_prompts
    from calibration.report.display import study_tables
    from probes.artifact import Artifact

    study = attack_artifact(
        resolve_model(model),
        Artifact.load(artifact),
        load_prompts(prompts),
        probes=probe or (),
        num_prompts=num_prompts,
        effort=Effort(length, steps, swaps),
        dtype=dtype,
        device=device,
    )
    if json is not None:
        json.write_text(study.model_dump_json(indent=2) + "\n")
    table_console().print(study_tables(study))


class _Stops(StrEnum):
    """What counts as stopping a request."""

    FLAG = "flag"
    STEER = "steer"
    BLOCK = "block"


def compare(
    old: Annotated[tuple[str, Path], typer.Option(metavar="MODEL ARTIFACT", help="What is served now.")],
    new: Annotated[tuple[str, Path], typer.Option(metavar="MODEL ARTIFACT", help="What would be served.")],
    policy: Annotated[Path, typer.Option(help="Policy file by which both decide.")],
    prompts: Annotated[Path, typer.Option(help="Labelled prompts (JSONL) that neither calibration has seen.")],
    new_policy: Annotated[
        Path | None, typer.Option(help="Policy file by which the new one decides, where it is another.")
    ] = None,
    stops: Annotated[_Stops, typer.Option(help="The mildest action that counts as stopping a request.")] = _Stops.BLOCK,
    alpha: Annotated[
        float, typer.Option(help="Chance of calling an update worse that is not.", min=0.0001, max=0.5)
    ] = 0.05,
    most_lost: Annotated[
        int | None, typer.Option(help="Harmful requests that may pass now and did not before, whatever the test says.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write all flips to this file.")] = None,
    dtype: _Dtype = "auto",
    device: _Device = "cpu",
    label: _Labels = None,
) -> None:
    r"""Compare what an update decides with what is decided now: another model, artifact or policy.

    Lists the requests that are decided otherwise, those for the worse first, and tests whether they are more than
    chance explains. The exit status is 0 if not, and 1 if so, so that a pipeline can stop there.

        foreguard compare --old ./model-1 ./artifact-1 --new ./model-2 ./artifact-2 --policy policy.yaml \
            --prompts test.jsonl
    """
    from calibration.audits.updates.run import Build, compare_updates
    from calibration.audits.updates.tables import update_tables
    from calibration.model.chat_model import resolve_model
    from calibration.prompts.prompt_file import load_prompts, read_labels
    from guard.policy_file import load_policy
    from guard.verdict import Action

    found = compare_updates(
        Build(resolve_model(old[0]), old[1], load_policy(policy)),
        Build(resolve_model(new[0]), new[1], load_policy(new_policy or policy)),
        load_prompts(prompts, read_labels(label or ())),
        stops=Action(stops.value),
        dtype=dtype,
        device=device,
    )
    if json is not None:
        json.write_text(found.to_json() + "\n")
    table_console().print(update_tables(found, alpha))
    too_many = most_lost is not None and found.harmful.num_negative > most_lost
    raise typer.Exit(1 if too_many or found.is_worse(alpha) else 0)


def inspect(
    artifact: Annotated[Path | None, typer.Argument(help="Artifact folder.", show_default=False)] = None,
    prevalence: Annotated[
        float | None,
        typer.Option(
            help="Share of your traffic that is harmful, to say what a score at a threshold means there.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="MODEL MODEL",
            help="Instead: two builds of one model (folders or Hugging Face ids), the trusted one first. Takes "
            "--prompts.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Labelled prompts (JSONL) to compare by, at least 16 of each label; 64 of each are used.",
            show_default=False,
        ),
    ] = None,
    dtype: _Dtype = "auto",
    device: _Device = "cpu",
    skip_long: _SkipLong = False,
) -> None:
    """Show what an artifact holds, or what moved between two builds of a model.

    An artifact: its model, probes with their numbers, steering vectors and data; digests, shapes and finiteness are
    checked.

        foreguard inspect ./artifact --prevalence 0.001

    Two builds: which heads, neurons and directions moved, and whether refusals did, against what rounding explains. The
    exit status is 0 when the two refuse alike and 1 when a part of the model's safety moved, so that a pipeline can
    stop there.

        foreguard inspect --compare ./released ./candidate --prompts validation.jsonl
    """
    if compare is None:
        if artifact is None or prompts is not None:
            raise typer.BadParameter("give an artifact folder, or --compare MODEL MODEL with --prompts")
        _inspect_artifact(artifact, prevalence)
        return
    if artifact is not None or prompts is None or prevalence is not None:
        raise typer.BadParameter("--compare takes two models and --prompts, and nothing of an artifact")
    from calibration.audits.builds.comparison import compare_builds
    from calibration.audits.builds.tables import comparison_tables
    from calibration.audits.builds.verdict import judge
    from calibration.model.chat_model import resolve_model
    from calibration.prompts.prompt_file import load_prompts

    file = load_prompts(prompts)
    first, second = map(resolve_model, compare)
    found = compare_builds(first, second, file, dtype=dtype, device=device, skip_long=skip_long)
    verdict = judge(found)
    table_console().print(comparison_tables(found, verdict))
    raise typer.Exit(1 if verdict.moved else 0)


def _inspect_artifact(artifact: Path, prevalence: float | None) -> None:
    from calibration.report.display import artifact_summary
    from probes.artifact import Artifact

    table_console().print(artifact_summary(Artifact.load(artifact), prevalence))


def report(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and its figures as PNG files.")] = Path("report"),
) -> None:
    """Render an artifact's evidence as one self-contained HTML page, with plots, for whoever must trust it.

    foreguard report ./artifact --out ./report
    """
    from calibration.report.page import write_report
    from probes.artifact import Artifact

    table_console().print(f"written to {write_report(Artifact.load(artifact), out)}")


def _write_json(report: "Report", path: Path | None) -> None:
    if path is not None:
        path.write_text(report.model_dump_json(indent=2) + "\n")
