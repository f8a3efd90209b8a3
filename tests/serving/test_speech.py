"""A prompt with sound in it is unscored, by every route that takes one, on a real server with a model that hears."""

import base64
import json

import httpx
import pytest
from websockets.sync.client import connect

from serving.offline.process import free_port, guarded_command
from tests.serving.faults.plugins import with_plugin
from tests.serving.hearing import pcm, save_hearing_model, tone, wav
from tests.serving.server import FLAGS, SERVED_NAME, served
from tests.serving.vision import save_artifact_for
from tests.serving.world import BENIGN, MESSAGE, World, clearly_harmful, policy_text, steered_prompt

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]

CHAT = "/v1/chat/completions"
HIGH, LOW = tone(880), tone(220)


@pytest.fixture(scope="module", params=["block", pytest.param("allow", marks=pytest.mark.long)])
def hearing(request, artifact, reference, cache_root, tmp_path_factory):
    """A server of a model that takes sound, and what its policy does with it."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    save_hearing_model(folder / "model")
    save_artifact_for(folder / "model", artifact, folder / "artifact")
    policy = policy_text(reference, artifact) + f"on_media: {request.param}\n"
    (folder / "policy.yaml").write_text(policy)
    command = guarded_command(
        folder / "model", folder / "artifact", folder / "policy.yaml", port, [*FLAGS, "--enforce-eager"]
    )
    environment = {"VLLM_CACHE_ROOT": str(cache_root), **with_plugin("hear_live", folder)}
    with served(command, port, folder / "log", environment) as server:
        harmful = clearly_harmful(reference, artifact, 3)
        yield World(server, reference, harmful, steered_prompt(reference, artifact)), request.param


def speech(path, **fields):
    """Return a request with a sound as a file, and other fields of a form."""
    return lambda world, sound: httpx.post(
        f"{world.server.url}{path}",
        files={"file": ("sound.wav", wav(sound))},
        data={"model": SERVED_NAME, "temperature": "0", "max_completion_tokens": "16", **fields},
        timeout=60,
    )


def chat(world, sound, text="What is said here?"):
    data = {"data": base64.b64encode(wav(sound)).decode(), "format": "wav"}
    content = [{"type": "text", "text": text}, {"type": "input_audio", "input_audio": data}]
    messages = [{"role": "user", "content": content}]
    body = {"model": SERVED_NAME, "messages": messages, "max_tokens": 16, "temperature": 0}
    return httpx.post(f"{world.server.url}{CHAT}", json=body, timeout=60)


ROUTES = {
    "chat": chat,
    "transcriptions": speech("/v1/audio/transcriptions", language="en"),
    "transcriptions, streamed": speech("/v1/audio/transcriptions", language="en", stream="true"),
    "transcriptions, as text": speech("/v1/audio/transcriptions", language="en", response_format="text"),
    "translations": speech("/v1/audio/translations", language="en", to_language="en"),
}


def test_text_alone_is_judged_by_what_was_planted_in_the_lab_model(hearing):
    """The model's language model is the lab's: harmless text passes, and harmful text is blocked."""
    world, _ = hearing
    for messages, decision in [(BENIGN[0], "allow"), (world.harmful[0], "block")]:
        body = {"model": SERVED_NAME, "messages": messages, "max_tokens": 4}
        reply = httpx.post(f"{world.server.url}{CHAT}", json=body)
        assert reply.headers["x-guardrail-decision"] == decision


@pytest.mark.parametrize("route", ROUTES)
def test_a_sound_is_unscored(hearing, route):
    """The policy's `on_media` says what happens.

    Blocked, the answer has the policy's message; on routes of speech it is an error.
    """
    world, action = hearing
    unscored = world.server.metric("foreguard_unscored_total", reason="media")
    replies = [ROUTES[route](world, sound) for sound in (HIGH, LOW)]
    assert world.server.metric("foreguard_unscored_total", reason="media") == unscored + 2
    for reply in replies:
        assert reply.headers["x-guardrail-decision"] == ("block" if action == "block" else "unscored")
        assert (MESSAGE in reply.text) == (action == "block")
        if route != "chat":
            assert reply.status_code == (400 if action == "block" else 200), reply.text


def test_a_harmful_text_beside_a_sound_is_blocked_by_its_rule(hearing):
    """It is judged as ever, though a policy may let sounds pass."""
    world, _ = hearing
    reply = chat(world, HIGH, world.harmful[1][0]["content"])
    assert reply.headers["x-guardrail-decision"] == "block"
    assert MESSAGE in reply.text


def live(world, *sounds):
    """Ask `/v1/realtime` about sounds, one after the other; return the events of its answer."""
    with connect(f"{world.server.url.replace('http', 'ws')}/v1/realtime") as socket:

        def send(kind, **fields):
            socket.send(json.dumps({"type": kind, **fields}))

        events = [json.loads(socket.recv(timeout=60))]
        send("session.update", model=SERVED_NAME)
        for sound in sounds:
            send("input_audio_buffer.append", audio=pcm(sound))
        send("input_audio_buffer.commit")
        send("input_audio_buffer.commit", final=True)
        while events[-1]["type"] not in ("transcription.done", "error"):
            events.append(json.loads(socket.recv(timeout=60)))
    return events


def test_a_sound_that_goes_on_is_unscored(hearing):
    """On a websocket a blocked transcription says the policy's message, and nothing of the model's.

    Each further piece of sound is judged anew.
    """
    world, action = hearing
    unscored = world.server.metric("foreguard_unscored_total", reason="media")
    events = live(world, HIGH, LOW)
    assert events[-1]["type"] == "transcription.done", events
    judged = world.server.metric("foreguard_unscored_total", reason="media") - unscored
    said = "".join(event["delta"] for event in events if event["type"] == "transcription.delta")
    assert said == events[-1]["text"]
    assert judged == 2
    if action == "block":
        assert said == 2 * MESSAGE
    else:
        assert said
        assert MESSAGE not in said
