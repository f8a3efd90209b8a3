"""A guarded server for each test file, and a process of each client that the file asks."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import pytest

from tests.clients.client import Client, Seen, running_client
from tests.serving.conftest import artifact, artifact_folder, cache_root, reference, start  # noqa: F401 - fixtures
from tests.serving.planted import naive_score
from tests.serving.server import Server
from tests.serving.world import BENIGN, HARMFUL, MESSAGE

LIMIT = 1.0
"""The score above which a prompt is blocked: the middle of the planted probe is 0."""
FLAGS = (
    *("--enforce-eager", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    # The lab model would go on with white space for ever.
    *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
)
POLICY = """
name: clients
version: "1"
off_template: allow
rules:
  - {{name: harmful, action: block, when: {{harm: {{above: {limit}}}}}}}
response: {{message: {message!r}, style: {style}, message_in: {place}}}
"""


@dataclass(frozen=True)
class Prompts:
    """One prompt that is far below the limit, and one that is far above."""

    benign: str
    harmful: str


@pytest.fixture(scope="session")
def score(reference, artifact):  # noqa: F811
    """Return a function that scores a conversation with a plain forward pass."""
    return lambda messages: naive_score(artifact, reference.read(reference.token_ids(messages)), "harm")


@pytest.fixture(scope="session")
def prompts(score) -> Prompts:
    benign, harmful = min(BENIGN, key=score), max(HARMFUL, key=score)
    # Clients add instructions of their own, which move a score.
    assert score(benign) < LIMIT - 3
    assert score(harmful) > LIMIT + 3
    return Prompts(benign[-1]["content"], harmful[-1]["content"])


@pytest.fixture(scope="module")
def server(request, start):  # noqa: F811
    """A guarded server that answers a block in the test file's `STYLE`, with the message where its `MESSAGE_IN`
    says.
    """
    place = getattr(request.module, "MESSAGE_IN", "both")
    policy = POLICY.format(limit=LIMIT, message=MESSAGE, style=request.module.STYLE, place=place)
    with start(policy, *FLAGS, VLLM_ENABLE_RESPONSES_API_STORE="1") as running:
        yield running


@pytest.fixture(scope="module")
def ask(server: Server, tmp_path_factory) -> Callable[[str, str, str], Seen]:
    """Return a function that has the client of a script do a case with a prompt; a client runs until the file is
    done.
    """
    logs = tmp_path_factory.mktemp("clients")
    with ExitStack() as stack:

        @cache
        def client(script: str) -> Client:
            return stack.enter_context(running_client(script, server, logs / script))

        yield lambda script, case, prompt: client(script).ask(case, prompt)
