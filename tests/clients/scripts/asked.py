"""The loop of every client's script: a case and a prompt come in, what the client saw goes out, a line of JSON each."""

import json
import os
import sys
from collections.abc import Callable

URL = os.environ["FOREGUARD_URL"]
V1 = f"{URL}/v1"
MODEL = os.environ["FOREGUARD_MODEL"]


def serve(cases: dict[str, Callable[[str], dict]]) -> None:
    """Do what is asked until nothing more comes."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            seen = cases[asked["case"]](asked["prompt"])
        except Exception as error:  # noqa: BLE001 - whatever a client raises is what the test asks about
            seen = failed(error)
        print(json.dumps(seen, default=str), file=answers, flush=True)


def failed(error: BaseException) -> dict:
    """Return what the error tells: its class, its text, and where there is one the body's code and entry
    `guardrail`.
    """
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else {}
    about = {"code": inner.get("code"), "more": {"guardrail": inner.get("guardrail")}}
    return {"error": type(error).__name__, "said": getattr(error, "message", str(error))} | about
