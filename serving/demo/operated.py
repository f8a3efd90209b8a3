"""The console's demo: a server in shadow mode, made-up traffic through it, and the console open on it."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

import httpx
import yaml
from cryptography.fernet import Fernet
from rich.console import Console
from rich.progress import Progress

from guard.console import table_console
from serving.demo.asking import MODEL
from serving.demo.steps import calibrate, foreguard, step, subject_of
from serving.demo.subjects import Model, Subject
from serving.demo.traffic import Callers, Sent, hour
from serving.offline.process import free_port, guarded_command, running

_FLAGS = ["--served-model-name", MODEL, "--max-model-len", "1024", "--enforce-eager"]
_AT_ONCE = 8
_MAX_TOKENS = 4
_LABELLED = 0.3
"""Chance of each decision to be labelled by whoever made the traffic up."""
_PAUSE_S = 1.0
"""Between two requests, once the hour is through."""
_OPERATOR = "demo"


def operate(guarded: Model, lab_folder: Path, work: Path, *, keep_on: bool = True) -> None:
    """Run the console's demo until it is interrupted, or without `keep_on` until the hour's traffic is through.

    Raises `ServingError` when a step fails.
    """
    console = table_console()
    work.mkdir(parents=True, exist_ok=True)
    subject = subject_of(console, guarded, lab_folder, work)
    step(console, 1, f"Calibrate {subject.title}")
    calibrate(subject, work / "artifact", work)
    callers, policy = Callers(), work / "console-policy.yaml"
    policy.write_text(_in_shadow(subject.policy.read_text(), callers))
    foreguard("check", str(policy), "--artifact", str(work / "artifact"))
    step(console, 2, "Serve it in shadow mode: every request is judged, and none is stopped")
    port, admin_port, token = free_port(), free_port(), secrets.token_urlsafe(24)
    store = work / "decisions.db"
    for left in work.glob("decisions.db*"):
        left.unlink()
    command = guarded_command(subject.model, work / "artifact", policy, port, _FLAGS)
    at = command.index("--")
    command[at:at] = ["--admin-port", str(admin_port), "--state", str(work / "state"), "--store-texts"]
    environment = {
        "FOREGUARD_ADMIN_TOKENS": f"{_OPERATOR}={token}",
        "FOREGUARD_STORE": f"sqlite:///{store.resolve()}",
        "FOREGUARD_STORE_KEY": Fernet.generate_key().decode(),
    }
    with running(command, port, work / "console-server.log", environment) as server:
        admin = f"http://127.0.0.1:{admin_port}"
        _say_where(console, admin, token)
        step(console, 3, "Replay an hour of made-up traffic through it")
        asyncio.run(_replay(console, server.url, admin, token, list(hour(subject, callers))))
        if keep_on:
            step(console, 4, "More traffic, a request a second, until you press Ctrl-C")
            _say_where(console, admin, token)
            try:
                asyncio.run(_go_on(server.url, _endless(subject, callers)))
            except KeyboardInterrupt:
                console.print("stopping the server")


def _in_shadow(policy: str, callers: Callers) -> str:
    """Return the policy in shadow mode, with tenants, and with a variant that enforces it."""
    added = {"variants": {"enforcing": {"mode": "enforce"}}, "tenants": callers.as_policy()}
    head = policy.replace("mode: enforce", "mode: shadow")
    hint = "# To enforce it for one caller in twenty:\n# canary: {variant: enforcing, percent: 5}\n"
    return f"{head}\n{yaml.safe_dump(added, sort_keys=False)}\n{hint}"


def _say_where(console: Console, admin: str, token: str) -> None:
    console.print(f"The console: [bold]{admin}/guard/console[/]", soft_wrap=True)
    console.print(f"Sign in with the token [bold]{token}[/]", soft_wrap=True)


async def _replay(console: Console, url: str, admin: str, token: str, requests: list[Sent]) -> None:
    """Send the requests, some at once, and label some of their decisions, as whoever made them up knows them."""
    chance, labels = secrets.SystemRandom(), []
    with Progress(console=console, transient=not console.is_terminal) as progress:
        task = progress.add_task("replaying", total=len(requests))
        async for sent, event_id in _answered(url, requests):
            progress.advance(task)
            if chance.random() < _LABELLED:
                label = "harmful" if sent.is_harmful else "benign"
                labels.append({"event_id": event_id, "label": label, "chance": _LABELLED})
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as client:
        (await client.post(f"{admin}/guard/labels", json={"labels": labels})).raise_for_status()
    console.print(f"{len(requests)} requests; {len(labels)} of the decisions, drawn at random, are labelled")


async def _answered(url: str, requests: Iterable[Sent]) -> AsyncIterator[tuple[Sent, str]]:
    """Yield each request with its decision's event id, as answers come in."""
    waiting: set[asyncio.Task[tuple[Sent, str]]] = set()
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        for sent in requests:
            waiting.add(asyncio.create_task(_ask(client, sent)))
            if len(waiting) >= _AT_ONCE:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    yield each.result()
        for each in waiting:
            yield await each


async def _ask(client: httpx.AsyncClient, sent: Sent) -> tuple[Sent, str]:
    body: dict[str, Any] = {"model": MODEL, "messages": sent.messages, "max_tokens": _MAX_TOKENS}
    headers = {"authorization": f"Bearer {sent.token}"}
    answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    answer.raise_for_status()
    return sent, answer.headers["x-guardrail-event-id"]


async def _go_on(url: str, requests: Iterator[Sent]) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        for sent in requests:
            await _ask(client, sent)
            await asyncio.sleep(_PAUSE_S)


def _endless(subject: Subject, callers: Callers) -> Iterator[Sent]:
    return chain.from_iterable(hour(subject, callers, seed) for seed in count(1))
