"""The demo's steps: calibrate, check, serve, ask, show. Each runs the command that a person would type."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import openai
from rich.console import Console
from rich.markup import escape

from guard.console import table_console
from guard.decide import BoundPolicy
from guard.verdict import Action
from probes.artifact import Artifact
from probes.errors import ModelError, ServingError
from serving.config import GuardConfig
from serving.demo.asking import KEY, MODEL, Answer, ask
from serving.demo.offline import expected_actions
from serving.demo.questions import Question, questions
from serving.demo.real_model import real_model
from serving.demo.show import answers_table, metrics_table, sum_up
from serving.demo.subjects import Model, Subject, lab, smollm2
from serving.offline.process import free_port, guarded_command, running

_FOREGUARD = str(Path(sys.executable).with_name("foreguard"))
_SERVER_FLAGS = ["--served-model-name", MODEL, "--max-model-len", "1024"]


def run(guarded: Model, lab_folder: Path, policy: Path | None, work: Path, *, compiled: bool) -> bool:
    """Run the demo; return whether every verdict was what it should be. Raises `ServingError` when a step fails."""
    console = table_console()
    began = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    subject = _subject(console, guarded, lab_folder, work)
    model, artifact = subject.model, work / "artifact"
    _step(console, 1, f"Calibrate {subject.title}: prompts, activations, probes, thresholds")
    _calibrate(subject, artifact, work)
    _step(console, 2, "Check the policy against the artifact")
    served_policy = _with_caller(policy or subject.policy, work / "policy.yaml")
    _command("check", str(served_policy), "--artifact", str(artifact))
    _step(console, 3, "Score the demo's prompts offline: what each verdict should be")
    asked = list(questions(subject))
    bound = _bind(artifact, served_policy)
    expected = _score_offline(model, artifact, asked, bound, work)
    _step(console, 4, f"Serve it: vLLM with the guard inside, {'compiled' if compiled else 'eager'}")
    command = _server_command(model, artifact, served_policy, compiled=compiled)
    answers = _serve_and_ask(console, *command, work / "server.log", asked)
    right = [answer.action in expected[answer.question.row["id"]] and answer.says_what_was_done for answer in answers]
    console.print(answers_table(answers, right, *_main_score(bound)))
    sum_up(console, answers, right)
    console.print(
        f"\nThe demo took {time.monotonic() - began:.0f} s; the server has stopped, and its log is "
        f"{work / 'server.log'}."
    )
    return all(right)


def _step(console: Console, number: int, what: str) -> None:
    console.rule(f"[bold]{number}. {what}", align="left")


def _subject(console: Console, guarded: Model, lab_folder: Path, work: Path) -> Subject:
    """Return what is guarded: the lab model where the real one cannot be had."""
    if guarded is Model.LAB:
        return lab(lab_folder)
    try:
        model = real_model(console)
    except ModelError as error:
        console.print(f"[bold red]{escape(error.problem)}[/]: the demo goes on with the lab model", soft_wrap=True)
        return lab(lab_folder)
    _command("prompts", "--out", str(work / "starter"))
    return smollm2(model, work / "starter", lab_folder.parent)


def _calibrate(subject: Subject, artifact: Path, work: Path) -> None:
    splits: list[str] = []
    for split, every in subject.every.items():
        lines = (subject.prompts / f"{split}.jsonl").read_text().split("\n")
        kept = [line for line in lines if 0 < len(line) <= subject.most_letters][::every]
        (file := work / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in kept))
        splits += [f"--{split}", str(file)]
    only = [word for name in subject.methods for word in ("--only", name)]
    forms = ["--forms", str(subject.forms)]
    _command("calibrate", str(subject.model), *splits, "--out", str(artifact), *only, *forms)
    _command("report", str(artifact), "--out", str(artifact.with_name("report")))


def _command(*arguments: str, quiet: bool = False) -> None:
    output = subprocess.DEVNULL if quiet else None
    ended = subprocess.run([_FOREGUARD, *arguments], check=False, stdout=output)  # noqa: S603 - our own command line
    if ended.returncode:
        raise ServingError(
            f"`foreguard {arguments[0]}` ended with status {ended.returncode}",
            field="demo",
            remedy="see its message above",
        )


def _with_caller(policy: Path, copy: Path) -> Path:
    """Write a copy of the policy that lets the demo, and nobody else, see scores."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    callers = f"\ncallers:\n  - name: demo\n    key_sha256: {digest}\n    sees_scores: true\n"
    copy.write_text(policy.read_text() + callers)
    return copy


def _bind(artifact: Path, policy: Path) -> BoundPolicy:
    loaded = Artifact.load(artifact)
    config = GuardConfig(artifact=artifact, artifact_digest=loaded.manifest.digest, policy=policy)
    return config.bind_policy(loaded)


def _score_offline(
    model: Path, artifact: Path, asked: list[Question], policy: BoundPolicy, work: Path
) -> dict[str, set[Action]]:
    prompts, scores = work / "questions.jsonl", work / "offline-scores.jsonl"
    prompts.write_text("".join(json.dumps(question.row) + "\n" for question in asked))
    files = ["--model", str(model), "--artifact", str(artifact), "--prompts", str(prompts), "--scores", str(scores)]
    _command("evaluate", *files, quiet=True)
    return expected_actions(policy, scores)


def _server_command(model: Path, artifact: Path, policy: Path, *, compiled: bool) -> tuple[list[str], int]:
    port = free_port()
    flags = [*_SERVER_FLAGS, *([] if compiled else ["--enforce-eager"])]
    return guarded_command(model, artifact, policy, port, flags), port


def _serve_and_ask(console: Console, command: list[str], port: int, log: Path, asked: list[Question]) -> list[Answer]:
    with console.status("starting") as status:
        began = time.monotonic()
        starting = running(
            command, port, log, on_wait=lambda waited: status.update(f"vLLM is starting: {waited:.0f} s")
        )
        with starting as server:
            console.print(f"vLLM has started: {time.monotonic() - began:.1f} s", highlight=False)
            before = server.metrics()
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
                answers = []
                for number, question in enumerate(asked, 1):
                    status.update(f"asking {number} of {len(asked)}")
                    answers.append(ask(client, question))
            after = server.metrics()
            status.update("stopping")
    console.print(metrics_table(before, after))
    return answers


def _main_score(policy: BoundPolicy) -> tuple[str, dict[Action, float]]:
    """Return the score that most rules of the policy look at, and its threshold for each action."""
    actions = {rule.name: rule.action for rule in policy.rules}
    names = [score for _, score in policy.thresholds]
    main = max(names, key=names.count)
    return main, {actions[rule]: value for (rule, score), value in policy.thresholds.items() if score == main}
