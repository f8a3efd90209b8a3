"""Starting the guarded server: every check first, then vLLM's own server with the guard's classes named in its flags.

The guard enters vLLM by four of its own flags (`--worker-cls`, `--scheduler-cls`, `--middleware`,
`--additional-config`) and not by an entry point: vLLM only logs a plugin that fails to load, while a class that it
cannot import stops it.
"""

import socket
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from probes.artifact import Artifact
from probes.errors import ServingError
from probes.fingerprint import Fingerprint, fingerprint
from probes.steering import require_servable_steering
from serving.api.keys import Keys
from serving.checked import Checked
from serving.config import AdapterConfig, GuardConfig
from serving.launch.administration import administrate, keep_state, take_tokens
from serving.launch.cpu_memory import choose_kv_cache
from serving.launch.environment import prepare_environment
from serving.launch.guardable import require_guardable
from serving.launch.model_folder import model_folder
from serving.launch.storage import stored, take_store
from serving.launch.supported import require_supported_vllm
from serving.policy_fit import require_guarded_adapters, require_templates
from serving.settings import require_settings
from serving.store_settings import StoreSettings

WORKER = "serving.worker.worker.GuardedWorker"
SCHEDULER = "serving.core.gate.guarded_scheduler"
MIDDLEWARE = "serving.api.middleware.GuardMiddleware"
DEFAULT_STATE = Path("foreguard-state")
"""The folder for the state of a server that is administrated, where none is named."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a person asked for."""

    model: str
    artifact: Path
    policy: Path
    host: str
    port: int
    vllm: Sequence[str] = ()
    """Further arguments of `vllm serve`, as typed."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Artifacts of LoRA adapters, by the adapter's name in `--lora-modules`."""
    state: Path | None = None
    """The folder for what the server's processes tell of themselves, and for the policy's history."""
    admin_host: str = "127.0.0.1"
    admin_port: int | None = None
    """Where the administration listens, if anywhere."""
    store: StoreSettings | None = None
    """Where decisions are stored, if anywhere. Its keys are the environment's."""


def serve(launch: Launch) -> None:
    """Check everything, then serve until stopped. Raises `ForeguardError` before a port is opened."""
    require_supported_vllm()
    prepare_environment()
    require_settings()
    args = _parse([*_base_arguments(launch), *launch.vllm])
    require_guardable(args, _parse(_base_arguments(launch)))
    Keys.of(args)
    tokens = take_tokens() if launch.admin_port is not None else ""
    store = take_store(launch.store)
    config, checked = _check_files(launch, args)
    if args.uds is None:
        _require_free_port(args.host, args.port)
    if launch.admin_port is not None:
        _require_free_port(launch.admin_host, launch.admin_port, field="--admin-port")
    if chosen := choose_kv_cache(args, model_folder(launch.model, args.revision)):
        print(f"foreguard: {chosen}", file=sys.stderr, flush=True)
    args.worker_cls, args.scheduler_cls = WORKER, SCHEDULER
    args.middleware = [*args.middleware, MIDDLEWARE]
    args.additional_config = {**(args.additional_config or {}), **config.to_vllm()}
    checked.publish()
    with stored(store), _administrated(launch, config, tokens, store):
        _run(args)


def _base_arguments(launch: Launch) -> list[str]:
    return [launch.model, "--host", launch.host, "--port", str(launch.port)]


def _parse(arguments: list[str]) -> Namespace:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    _set_up_command_line()
    parser = FlexibleArgumentParser(description="vLLM, as started by foreguard serve")
    ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    args: Namespace = parser.parse_args(["serve", *arguments])
    ServeSubcommand().validate(args)
    return args


def _check_files(launch: Launch, args: Namespace) -> tuple[GuardConfig, Checked]:
    """Return the guard's configuration, once all files belong together, and which they are. Raises `ForeguardError`."""
    artifact = Artifact.load(launch.artifact)
    require_servable_steering(artifact.manifest)
    folder = model_folder(launch.model, args.revision)
    modules = {module.name: Path(module.path) for module in args.lora_modules or ()}
    checked = Checked.begin([folder, *(modules[name] for name in launch.adapters if name in modules)])
    dtype = None if args.dtype == "auto" else {"half": "float16", "float": "float32"}.get(args.dtype, args.dtype)
    found = partial(fingerprint, folder, dtype=dtype, chat_template=_chat_template(args))
    artifact.manifest.fingerprint.require(found())
    config = GuardConfig(
        artifact=launch.artifact.resolve(),
        artifact_digest=artifact.manifest.digest,
        # Not where its links lead now: a ConfigMap's lead elsewhere after each change.
        policy=launch.policy.absolute(),
        behind_middleware=True,
    )
    policy = config.bind_policy(artifact).policy
    adapters = [_check_adapter(name, path, modules, found) for name, path in launch.adapters.items()]
    config = config.model_copy(update={"adapters": tuple(adapters)})
    artifacts = config.load_artifacts()
    for each in config.bind_policies(artifacts).sets:
        require_templates(each.policy, artifacts)
        require_guarded_adapters(each.policy, modules, launch.adapters)
    return config, checked.with_policy(policy)


def _check_adapter(
    name: str, folder: Path, modules: Mapping[str, Path], found: Callable[..., Fingerprint]
) -> AdapterConfig:
    """Return the configuration of one adapter whose artifact, at `folder`, is its own. Raises `ForeguardError`."""
    if name not in modules:
        raise ServingError(
            f"no adapter is served as {name!r}",
            field="--adapter",
            remedy=f"use one of: {', '.join(modules)}" if modules else "name it in vLLM's --lora-modules",
        )
    artifact = Artifact.load(folder)
    require_servable_steering(artifact.manifest)
    artifact.manifest.fingerprint.require(found(adapter=modules[name]))
    digest = artifact.manifest.digest
    return AdapterConfig(name=name, path=modules[name], artifact=folder.resolve(), artifact_digest=digest)


def _chat_template(args: Namespace) -> str | None:
    """Return the text of `--chat-template`, which names a file or is the template itself."""
    template: str | None = args.chat_template
    try:
        return template and Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError):  # such as a template that is too long for a name
        return template


@contextmanager
def _administrated(launch: Launch, config: GuardConfig, tokens: str, store: StoreSettings | None) -> Iterator[None]:
    """Keep the server's state, and have it administrated, where that is asked for."""
    state = launch.state or (DEFAULT_STATE if launch.admin_port is not None else None)
    if state is not None:
        keep_state(state)
    if launch.admin_port is None or state is None:
        yield
        return
    process = administrate(config, tokens, launch.admin_host, launch.admin_port, state, store)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _require_free_port(host: str, port: int, field: str = "--port") -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServingError(
                f"cannot listen on {host}:{port}: {error.strerror}",
                field=field,
                remedy=f"choose a free port with {field}",
            ) from error


def _run(args: Namespace) -> None:
    from vllm.entrypoints.cli.serve import ServeSubcommand

    ServeSubcommand.cmd(args)


def _set_up_command_line() -> None:
    """Set vLLM's environment as its own command line does first."""
    try:
        from vllm.entrypoints.common.startup import cli_env_setup
    except ImportError:
        from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    cli_env_setup()
