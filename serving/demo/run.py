"""The demo's steps: calibrate, check, serve, ask, show. Each runs the command that a person would type."""

import hashlib
import json
import time
from pathlib import Path

import openai
from rich.console import Console

from guard.console import table_console
from guard.decide import BoundPolicy
from guard.verdict import Action
from probes.artifact import Artifact
from serving.config import GuardConfig
from serving.demo.asking import KEY, MODEL, Answer, ask
from serving.demo.offline import expected_actions
from serving.demo.questions import Question, questions
from serving.demo.show import answers_table, metrics_table, sum_up
from serving.demo.steps import calibrate, foreguard, step, subject_of
from serving.demo.subjects import Model
from serving.offline.process import free_port, guarded_command, running

_SERVER_FLAGS = ["--served-model-name", MODEL, "--max-model-len", "1024"]


def run(guarded: Model, lab_folder: Path, policy: Path | None, work: Path, *, compiled: bool) -> bool:
    """Run the demo; return whether every verdict was what it should be. Raises `ServingError` when a step fails."""
    console = table_console()
    began = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    subject = subject_of(console, guarded, lab_folder, work)
    model, artifact = subject.model, work / "artifact"
    step(console, 1, f"Calibrate {subject.title}: prompts, activations, probes, thresholds")
    calibrate(subject, artifact, work)
    step(console, 2, "Check the policy against the artifact")
    served_policy = _with_caller(policy or subject.policy, work / "policy.yaml")
    foreguard("check", str(served_policy), "--artifact", str(artifact))
    step(console, 3, "Score the demo's prompts offline: what each verdict should be")
    asked = list(questions(subject))
    bound = _bind(artifact, served_policy)
    expected = _score_offline(model, artifact, asked, bound, work)
    step(console, 4, f"Serve it: vLLM with the guard inside, {'compiled' if compiled else 'eager'}")
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
    foreguard("evaluate", *files, quiet=True)
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
