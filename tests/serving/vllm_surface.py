"""What vLLM's API server offers, as vLLM itself has it: every route, and every field of what a request may be.

`python -m tests.serving.vllm_surface` prints it as JSON. A process of its own: building the server's application twice
leaves traces in Prometheus's registry and in the logging of whoever did.
"""

import dataclasses
import importlib
import json
import os
import pkgutil
import re
import sys
import typing
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VARIABLES = ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_ENABLE_COHERE_API")
FLAGS = (
    *("--enable-scale-out", "--enable-fault-tolerance", "--enable-tokenizer-info-endpoint"),
    *("--profiler-config", '{"profiler": "torch", "torch_profiler_dir": "/nowhere"}'),
)
"""What adds routes, all at once. Routers that nothing here adds are found in vLLM's package."""
TASKS = ("generate", "transcription", "realtime")
READING = ("entrypoints", "renderers", "tracing", "v1/engine", "v1/core/sched", "v1/request.py")
"""Where vLLM reads what a client may put into a dictionary without a class, or into a header."""
_KEY = re.compile(r"""(?:\w*transfer_params|extra_args|xargs|\bkv|\bextra)\b(?:\.get|\.pop)?[(\[]\s*["'](\w+)""")
_HEADER = re.compile(r"""headers(?:\.get\(|\[)\s*["']([\w-]+)""")
_HEADER_NAMES = re.compile(r"""^[A-Z]\w*HEADER\w*(?::[^=\n]+)?\s*=\s*(\[.*\]|".*")$""", re.MULTILINE)
_SAGEMAKER = re.compile(r'"(X-Amzn-[\w-]*\w)"')
REALTIME = ("InputAudioBufferAppend", "InputAudioBufferCommit", "SessionUpdate")
"""What a client sends on the websocket, which no route names."""


def main() -> None:
    """Print as one line of JSON what vLLM offers.

    `default` and `all`: routes, as `METHOD /path`. `bodies`: the classes that a route's body is read as; `inner`: those
    that each of these, or of a websocket's messages, holds, itself among them; `fields`: their fields. `keys` and
    `headers`: what vLLM's sources read out of a dictionary that has no class, and of a request's headers.
    """
    import vllm

    default = _app((), ("generate",)).routes
    os.environ.update(dict.fromkeys(VARIABLES, "1"))
    routes = [*_app(FLAGS, TASKS).routes, *(route for router in _routers() for route in router.routes)]
    bodies = {name: _own(_body(route)) for route in routes for name in _names(route)}
    kinds = {kind for each in bodies.values() for kind in each} | set(_messages())
    held = {kind.__name__: list(_within(kind, {})) for kind in kinds}
    found = {
        "version": vllm.__version__,
        "default": sorted({name for route in default for name in _names(route)}),
        "all": sorted(bodies),
        "bodies": {name: [kind.__name__ for kind in each] for name, each in bodies.items()},
        "inner": {name: [kind.__name__ for kind in each] for name, each in held.items()},
        "fields": {kind.__name__: sorted(_fields(kind)) for each in held.values() for kind in each},
        "keys": sorted(_found(_KEY, _sources())),
        "headers": sorted({*_headers(_sources()), *_found(_SAGEMAKER, _package("model_hosting_container_standards"))}),
    }
    json.dump(found, sys.stdout)


def _app(flags: tuple[str, ...], tasks: tuple[str, ...]) -> Any:
    from vllm.entrypoints.openai.api_server import build_app

    return build_app(_arguments(flags), tasks, None)


def _arguments(flags: tuple[str, ...]) -> Namespace:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", "none", *flags])


def _routers() -> Iterator[Any]:
    """Yield every router in a module that defines routes, whether or not a flag adds it."""
    import vllm.entrypoints
    from fastapi import APIRouter

    for module in pkgutil.walk_packages(vllm.entrypoints.__path__, "vllm.entrypoints."):
        if module.name.endswith("api_router"):
            members = vars(importlib.import_module(module.name)).values()
            yield from (each for each in members if isinstance(each, APIRouter))


def _names(route: Any) -> list[str]:
    """Return `METHOD /path` for each method; a websocket and a mounted application have words of their own."""
    from starlette.routing import Mount, WebSocketRoute

    kind = "WEBSOCKET" if isinstance(route, WebSocketRoute) else "MOUNT" if isinstance(route, Mount) else None
    return [f"{method} {route.path}" for method in ([kind] if kind else route.methods) if method != "HEAD"]


def _body(route: Any) -> Any:
    field = getattr(route, "body_field", None)
    return field.field_info.annotation if field else None


def _messages() -> list[type]:
    from vllm.entrypoints.speech_to_text.realtime import protocol

    return [getattr(protocol, name) for name in REALTIME]


def _own(annotation: Any) -> list[type]:
    """Return the classes of vLLM's with fields that an annotation names."""
    arguments = [each for argument in typing.get_args(annotation) for each in _own(argument)]
    named = isinstance(annotation, type) and annotation.__module__.startswith("vllm.") and _fields(annotation)
    return [annotation, *arguments] if named else arguments


def _within(kind: type, found: dict[type, None]) -> dict[type, None]:
    """Return a class and all that its fields hold."""
    if kind not in found:
        found[kind] = None
        for annotation in _fields(kind).values():
            for each in _own(annotation):
                _within(each, found)
    return found


def _fields(kind: type) -> dict[str, Any]:
    """Return what a client may say of a class, by name; nothing of one that is no record."""
    if hasattr(kind, "model_fields"):
        kind.model_rebuild()
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind) or hasattr(kind, "__struct_fields__"):
        names = getattr(kind, "__struct_fields__", None) or [field.name for field in dataclasses.fields(kind)]
        hints = typing.get_type_hints(kind, include_extras=True)
        return {name: hints[name] for name in names if not name.startswith("_")}
    return {}


def _sources() -> list[str]:
    return [text for place in READING for text in _package("vllm", place)]


def _package(name: str, place: str = "") -> list[str]:
    """Return the sources of a package, or of one place in it; those of pooling models left out."""
    package = Path(importlib.import_module(name).__path__[0]) / place
    files = [package] if package.is_file() else package.rglob("*.py")
    return [file.read_text() for file in files if "pooling" not in file.parts]


def _found(pattern: re.Pattern[str], sources: list[str]) -> set[str]:
    return {name for text in sources for name in pattern.findall(text)}


def _headers(sources: list[str]) -> set[str]:
    named = {name for each in _found(_HEADER_NAMES, sources) for name in re.findall(r'"([\w-]+)"', each)}
    return named | _found(_HEADER, sources)


if __name__ == "__main__":
    main()
