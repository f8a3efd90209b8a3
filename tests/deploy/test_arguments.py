"""The promise: what the container is told is what `foreguard serve`, and behind it vLLM, understand."""

import ipaddress
import json
import subprocess
import sys

import typer

from guard.cli import application
from tests.deploy.layouts import LAYOUTS, ROOT, resources

PARSE = """
import json, sys
from serving.launch.guardable import require_guardable
from serving.launch.server import _parse
for arguments in json.load(sys.stdin):
    args = _parse(arguments)
    require_guardable(args, _parse(arguments[:1]))
    print(json.dumps([args.served_model_name, args.shutdown_timeout, args.enforce_eager]))
"""


def _arguments(layout):
    (container,) = resources(layout)["Deployment"]["spec"]["template"]["spec"]["containers"]
    return container["args"]


def _parsed(layout):
    name, *arguments = _arguments(layout)
    return typer.main.get_command(application()).commands[name].make_context(name, list(arguments))


def test_the_command_line_takes_the_arguments(container, layout):
    """`foreguard serve` parses the arguments, and its files are where the volumes are mounted."""
    told = _parsed(layout).params
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert told["model"] == mounts["model"]
    assert str(told["artifact"]) == mounts["artifact"]
    assert str(told["policy"].parent) == mounts["policy"]
    assert told["port"] in {port["containerPort"] for port in container["ports"]}


def test_the_server_listens_beyond_the_pod(layout):
    """The probes and the service come from outside: loopback, which is the default, would fail them all."""
    assert ipaddress.ip_address(_parsed(layout).params["host"]).is_unspecified


def test_vllm_takes_what_follows_the_dashes():
    """The parser of vLLM knows every option after `--`, and the guard refuses none. Parses only: no engine starts."""
    rest = [["the-model", *_parsed(layout).args] for layout in LAYOUTS]
    done = subprocess.run(
        [sys.executable, "-c", PARSE], input=json.dumps(rest), capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    heard = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    assert heard == [[["model"], 90, False], [["model"], 90, True], [["model"], 90, False]]
