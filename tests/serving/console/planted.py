"""A console on planted data, in a process of its own: `python -m tests.serving.console.planted FOLDER PORT`.

The folder has the policy, the artifact and a store of decisions whose scores are known. Two processes of a server that
is not there say every moment that they go by the policy file.
"""

import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import torch
import uvicorn

from guard import process_states
from guard.policy_file import load_policy
from guard.process_states import ProcessState
from guard.store.batch import Batches
from guard.store.engine import engine_for, open_store
from guard.store.label import GivenLabel, Label, Labels
from guard.store.migration import upgrade
from guard.store.stored import StoredDecision
from guard.verdict import Action, Mode
from probes.artifact import BENIGN_SCORES, HARMFUL_SCORES, Artifact
from probes.fingerprint import Fingerprint
from probes.manifest import Manifest, Probe
from serving.admin.app import application
from serving.admin.drift_desk import DriftDesk
from serving.admin.operators import Operators
from serving.admin.policy_desk import PolicyDesk
from serving.admin.store_desk import StoreDesk
from serving.config import GuardConfig
from serving.console.mount import with_console
from serving.console.source import Source

TOKEN = "ada's-secret-token-for-tests"  # noqa: S105 - of a console with planted data
COUNT = 600
POLICY = """\
# The comments of this file stay.
name: planted
version: "1"
mode: shadow
rules:
  - name: harmful
    action: block
    when:
      harm: {above: 2.0}  # a number
  - name: doubtful
    action: flag
    when:
      harm: {above: 1.0}
variants:
  enforcing: {mode: enforce}
"""


def scores():
    """Return the scores [COUNT] of `harm`, the oldest first: normal, and one in twenty is harmful and 3 higher."""
    rng = np.random.default_rng(0)
    harmful = np.arange(COUNT) % 20 == 0
    return rng.normal(0, 1, COUNT).round(3) + 3.0 * harmful, harmful


def plant(folder):
    """Write the policy, an artifact and the decisions."""
    (folder / "policy.yaml").write_text(POLICY)
    rng = np.random.default_rng(1)
    probe = Probe(name="harm", method="planted", layers=(1,))
    print_ = Fingerprint(architecture="A", num_layers=2, hidden_size=4, config="0" * 64, weights="1" * 64,
                         tokenizer="2" * 64, chat_template="3" * 64, dtype="float32")  # fmt: skip
    tensors = {
        "probe.harm.weight": torch.ones(1, 1, 4),
        BENIGN_SCORES: torch.from_numpy(rng.normal(0, 1, (400, 1))).float(),
        HARMFUL_SCORES: torch.from_numpy(rng.normal(3, 1, (200, 1))).float(),
    }
    Artifact(Manifest(name="planted", created="", fingerprint=print_, probes=(probe,)), tensors).save(
        folder / "artifact"
    )
    engine = open_store(f"sqlite:///{folder}/decisions.db")
    upgrade(engine)
    Batches(engine).write([_decision(number, float(score)) for number, score in enumerate(scores()[0])])
    _, harmful = scores()
    labels = [Label.HARMFUL if each else Label.BENIGN for each in harmful.tolist()]
    Labels(engine).give(
        GivenLabel(f"fge_{number}", labels[number], "grace", "csv", 0.25) for number in range(0, COUNT, 4)
    )
    engine.dispose()


def _decision(number, score):
    decision = Action.BLOCK if score > 2 else Action.FLAG if score > 1 else Action.ALLOW
    return StoredDecision(
        f"fge_{number}",
        decision,
        Action.ALLOW,
        scores={"harm": score},
        policy="planted@1",
        mode=Mode.SHADOW,
        rule={Action.BLOCK: "harmful", Action.FLAG: "doubtful"}.get(decision),
        tenant=("shop", "school", None)[number % 3],
        route="/v1/chat/completions",
        replica="one",
        seconds=0.02,
        at=datetime.now(UTC) - timedelta(seconds=4 * (COUNT - number)),
    )


def serve(folder, port):
    """Serve until killed."""
    loaded = Artifact.load(folder / "artifact")
    config = GuardConfig(
        artifact=folder / "artifact", artifact_digest=loaded.manifest.digest, policy=folder / "policy.yaml"
    )
    state = folder / "state"
    threading.Thread(target=_go_by, args=(config.policy, state / "processes"), daemon=True).start()
    engine, desk, operators = engine_for(f"sqlite:///{folder}/decisions.db"), PolicyDesk(config, state), _operators()
    desk.history()
    source = Source(engine, None, config, loaded, desk, DriftDesk(state))
    app = with_console(application(desk, DriftDesk(state), operators, StoreDesk(None)), source, operators)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def _operators():
    return Operators.parse(f"ada={TOKEN}")


def _go_by(path, folder):
    while True:
        policy = load_policy(path)
        for pid in (11, 12):
            process_states.tell(
                folder, ProcessState(pid=pid, policy=policy.label, digest=policy.digest, since=time.time())
            )
        time.sleep(0.1)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    if not (where / "policy.yaml").exists():
        plant(where)
    serve(where, int(sys.argv[2]))
