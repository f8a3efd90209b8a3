"""The command `foreguard console`: the operators' console beside a fleet."""

import os
from pathlib import Path
from typing import Annotated

import typer

_HERE = ("127.0.0.1", "::1", "localhost")


def console(
    store: Annotated[
        str, typer.Option(help="Address of the decision store that the fleet writes to.", envvar="FOREGUARD_STORE")
    ],
    artifact: Annotated[
        Path | None, typer.Option(help="The fleet's artifact, for calibration's curves.", envvar="FOREGUARD_ARTIFACT")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="The fleet's policy file. It is shown, and not changed.", envvar="FOREGUARD_POLICY"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8002,
    no_sign_in: Annotated[
        bool, typer.Option("--no-sign-in", help="Let everyone in. Only where the address is this machine's own.")
    ] = False,
) -> None:
    """Open the operators' console on a decision store: live decisions, scores, what-if, review and ROC.

    Operators sign in with the tokens in FOREGUARD_ADMIN_TOKENS (NAME=TOKEN, with commas between several). Prompts are
    shown where the fleet keeps them and FOREGUARD_STORE_KEY is theirs. One server's own console, which also changes
    its policy, is at its admin port: `foreguard serve --admin-port`.

        foreguard console --store postgresql://guard@db/guard --artifact ./artifact --policy policy.yaml
    """
    from probes.errors import ServingError
    from serving.admin.operators import Operators
    from serving.console.beside import serve_beside
    from serving.settings import ADMIN_TOKENS

    if no_sign_in and host not in _HERE:
        raise ServingError(
            f"everyone who reaches {host} would be let in",
            field="--no-sign-in",
            remedy="leave it out, or listen on 127.0.0.1",
        )
    if (artifact is None) != (policy is None):
        raise ServingError(
            "thresholds are shown from both together",
            field="--policy",
            remedy="give --artifact and --policy, or neither",
        )
    operators = None if no_sign_in else Operators.parse(os.environ.get(ADMIN_TOKENS, ""))
    serve_beside(store, artifact, policy, operators, host, port)
