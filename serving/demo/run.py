"""The demo's steps: calibrate, check, serve, ask, show. Each runs the command that a person would type."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import openai
from rich.console import Console

from guard.decide import BoundPolicy
from guard.verdict import Action
from probes.artifact import Artifact
from probes.errors import ServingError
from serving.config import GuardConfig
from serving.demo.asking import KEY, MODEL, Answer, ask
from serving.demo.questions import questions
from serving.demo.show import answers_table, metrics_table, sum_up
from serving.process import free_port, guarded_command, running

_FOREGUARD = str(Path(sys.executable).with_name("foreguard"))
_SERVER_FLAGS = ["--served-model-name", MODEL, "--max-model-len", "1024"]


def run(lab: Path, policy: Path, work: Path, *, compiled: bool) -> bool:
    """Run the demo; return whether every verdict was what it should be. Raises `ServingError` when a step fails."""
    console = Console()
    began = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    model, artifact = lab / "aligned", work / "artifact"
    _step(console, 1, "Calibrate the lab model: prompts, activations, probes, thresholds")
    _calibrate(lab, model, artifact)
    _step(console, 2, "Check the policy against the artifact")
    served_policy = _with_caller(policy, work / "policy.yaml")
    _command("check", str(served_policy), "--artifact", str(artifact))
    _step(console, 3, f"Serve it: vLLM with the guard inside, {'compiled' if compiled else 'eager'}")
    answers = _serve_and_ask(console, model, artifact, served_policy, work / "server.log", compiled=compiled)
    sum_up(console, answers)
    console.print(
        f"\nThe whole demo took {time.monotonic() - began:.0f} s. The server has stopped; its log is {work / 'server.log'}."
    )
    return all(answer.as_expected for answer in answers)


def _step(console: Console, number: int, what: str) -> None:
    console.rule(f"[bold]{number}. {what}", align="left")


def _calibrate(lab: Path, model: Path, artifact: Path) -> None:
    splits = [
        word
        for split in ("train", "validation", "test")
        for word in (f"--{split}", str(lab / "prompts" / f"{split}.jsonl"))
    ]
    _command("calibrate", str(model), *splits, "--out", str(artifact))


def _command(*arguments: str) -> None:
    ended = subprocess.run([_FOREGUARD, *arguments], check=False)  # noqa: S603 - our own command line
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


def _serve_and_ask(
    console: Console, model: Path, artifact: Path, policy: Path, log: Path, *, compiled: bool
) -> list[Answer]:
    port = free_port()
    command = guarded_command(
        model, artifact, policy, port, [*_SERVER_FLAGS, *([] if compiled else ["--enforce-eager"])]
    )
    with console.status("starting") as status:
        starting = running(
            command, port, log, on_wait=lambda waited: status.update(f"vLLM is starting: {waited:.0f} s")
        )
        with starting as server:
            status.update("asking")
            before = server.metrics()
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
                answers = [ask(client, question) for question in questions(model.parent / "prompts" / "test.jsonl")]
            after = server.metrics()
            status.update("stopping")
    score, thresholds = _main_score(artifact, policy)
    console.print(answers_table(answers, score, thresholds))
    console.print(metrics_table(before, after))
    return answers


def _main_score(artifact: Path, policy: Path) -> tuple[str, dict[Action, float]]:
    """Return the score that most rules of the policy look at, and its threshold for each action."""
    loaded = Artifact.load(artifact)
    config = GuardConfig(artifact=artifact, artifact_digest=loaded.manifest.digest, policy=policy)
    bound: BoundPolicy = config.bind_policy(loaded)
    actions = {rule.name: rule.action for rule in bound.rules}
    names = [score for _, score in bound.thresholds]
    main = max(names, key=names.count)
    return main, {actions[rule]: value for (rule, score), value in bound.thresholds.items() if score == main}
