"""A prompt with an image in it is unscored, by every route that takes one, on a real server with a model that sees.

Probes are calibrated on text. What an image says reaches the hidden states all the same, so no probe is certified
there.
"""

import httpx
import pytest

from serving.offline.process import free_port, guarded_command
from tests.serving.server import FLAGS, SERVED_NAME, served
from tests.serving.vision import image_url, save_artifact_for, save_seeing_model
from tests.serving.world import BENIGN, MESSAGE, World, clearly_harmful, policy_text, steered_prompt

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

RED, BLUE = image_url("red"), image_url("blue")
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def seeing_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeing") / "model"
    save_seeing_model(folder)
    return folder


@pytest.fixture(
    scope="module",
    params=["block", pytest.param("flag", marks=pytest.mark.long), pytest.param("allow", marks=pytest.mark.long)],
)
def seeing(request, seeing_model, artifact, reference, cache_root, tmp_path_factory):
    """A server of a model that takes images, and what its policy does with them."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    save_artifact_for(seeing_model, artifact, folder / "artifact")
    policy = policy_text(reference, artifact)
    if request.param != "block":  # which is the default
        policy += f"on_media: {request.param}\n"
    (folder / "policy.yaml").write_text(policy)
    command = guarded_command(
        seeing_model, folder / "artifact", folder / "policy.yaml", port, [*FLAGS, "--enforce-eager"]
    )
    with served(command, port, folder / "log", {"VLLM_CACHE_ROOT": str(cache_root)}) as server:
        harmful = clearly_harmful(reference, artifact, 3)
        yield World(server, reference, harmful, steered_prompt(reference, artifact)), request.param


def text_of(messages):
    return messages[0]["content"]


def seen(text, url=RED):
    """Return a chat message with a text and an image."""
    return {
        "role": "user",
        "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}],
    }


ROUTES = {
    "chat": lambda text, url: (CHAT, {"messages": [seen(text, url)]}),
    "chat, streamed": lambda text, url: (CHAT, {"messages": [seen(text, url)], "stream": True}),
    "chat, the image in an earlier turn": lambda text, url: (
        CHAT,
        {"messages": [seen("Look.", url), {"role": "assistant", "content": "Yes."}, {"role": "user", "content": text}]},
    ),
    "invocations": lambda text, url: ("/invocations", {"messages": [seen(text, url)]}),
    "responses": lambda text, url: (
        "/v1/responses",
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": text},
                        {"type": "input_image", "image_url": url, "detail": "auto"},
                    ],
                }
            ]
        },
    ),
    "messages": lambda text, url: (
        "/v1/messages",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": text},
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": url.split(",")[1]},
                        },
                    ],
                }
            ]
        },
    ),
}
"""How an image is sent beside a text, by route."""


def ask(world, route, text, url=RED):
    path, body = ROUTES[route](text, url)
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    reply = httpx.post(
        f"{world.server.url}{path}", json={"model": SERVED_NAME, limit: 16, "temperature": 0, **body}, timeout=60
    )
    assert reply.status_code == 200, reply.text
    return reply


def test_text_alone_is_judged_by_what_was_planted_in_the_lab_model(seeing):
    """The model's language model is the lab's: harmless text passes, and harmful text is blocked."""
    world, _ = seeing
    for messages, decision in [(BENIGN[0], "allow"), (world.harmful[0], "block")]:
        reply = httpx.post(
            f"{world.server.url}{CHAT}", json={"model": SERVED_NAME, "messages": messages, "max_tokens": 4}
        )
        assert reply.headers["x-guardrail-decision"] == decision


@pytest.mark.parametrize("route", ROUTES)
def test_a_harmless_text_beside_an_image_is_unscored(seeing, route):
    """The policy's `on_media` says what happens, whatever route it comes by.

    Blocked, it has no token of the model's.
    """
    world, action = seeing
    unscored = world.server.metric("foreguard_unscored_total", reason="media")
    reply = ask(world, route, text_of(BENIGN[1]))
    assert reply.headers["x-guardrail-decision"] == ("block" if action == "block" else "unscored")
    assert (MESSAGE in reply.text) == (action == "block")
    assert world.server.metric("foreguard_unscored_total", reason="media") == unscored + 1


@pytest.mark.parametrize("route", ROUTES)
def test_a_harmful_text_beside_an_image_is_blocked_by_its_rule(seeing, route):
    """It is judged as ever, though a policy may let images pass."""
    world, _ = seeing
    unscored = world.server.metric("foreguard_unscored_total", reason="media")
    reply = ask(world, route, text_of(world.harmful[1]))
    assert reply.headers["x-guardrail-decision"] == "block"
    assert MESSAGE in reply.text
    assert world.server.metric("foreguard_unscored_total", reason="media") == unscored


def test_a_blocked_answer_tells_nothing_of_the_image(seeing):
    """Two images make the same blocked answer, but for ids and times; one that passes is the model's own."""
    world, action = seeing
    replies = [ask(world, "chat", text_of(BENIGN[2]), url).json() for url in (RED, BLUE)]
    for reply in replies:
        del reply["id"], reply["created"]
        reply.get("guardrail", {}).pop("event_id", None)
        assert (reply["choices"][0]["finish_reason"] == "content_filter") == (action == "block")
    if action == "block":
        assert replies[0] == replies[1]
