"""A live server whose policy file changes."""

import shutil
import tempfile
import time
from pathlib import Path

import httpx

from tests.serving.server import SERVED_NAME
from tests.serving.world import BENIGN

SOON_S = 2.0
"""Within which a change is in force, in seconds."""
SETTLED_S = 0.75
"""After which nothing is left of a change that one API process has taken in, in seconds."""
UNSCORED_REASONS = ("no_verdict", "missing", "policy_error")


class ConfigMap:
    """A folder as the kubelet mounts it: `policy.yaml` leads through the link `..data` into a folder that is new with
    each change, and the one before is deleted.
    """

    def __init__(self, folder):
        self._folder = folder

    def write(self, text):
        """Exchange the content."""
        data, file = self._folder / "..data", self._folder / "policy.yaml"
        before = data.resolve() if data.is_symlink() else None
        after = Path(tempfile.mkdtemp(prefix="..", dir=self._folder))
        (after / "policy.yaml").write_text(text)
        (self._folder / "..data_tmp").symlink_to(after.name)
        (self._folder / "..data_tmp").replace(data)
        if before is None:
            file.symlink_to(Path("..data") / "policy.yaml")
        else:
            shutil.rmtree(before)


class Live:
    """A server, and its policy file."""

    def __init__(self, server, limit, harmful):
        self.server = server
        self.file = server.log.parent / "policy.yaml"
        self.limit = limit
        self.harmful = harmful

    def text(self, name, action="block", **settings):
        """A policy that does this to harmful prompts, and says its own name."""
        rules = f"- {{name: harmful, action: {action}, when: {{harm: {{above: {self.limit}}}}}}}"
        more = "".join(f"{key}: {value}\n" for key, value in settings.items())
        response = f"response: {{message: '{name} declines.'}}"
        return f"name: {name}\nversion: '1'\noff_template: allow\n{response}\n{more}rules:\n{rules}\n"

    def write(self, text):
        """Write the policy file as an editor does: another file takes its place."""
        beside = self.file.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.file)

    def ask(self, messages, **options):
        """Ask over a connection of its own, so that any API process may answer."""
        body = {"model": SERVED_NAME, "messages": messages, "max_tokens": 2} | options
        headers = {"connection": "close"}
        return httpx.post(f"{self.server.url}/v1/chat/completions", json=body, headers=headers, timeout=60)

    def labels(self, number=12):
        """The policies of so many answers."""
        return {self.ask(BENIGN[0]).headers["x-guardrail-policy"] for _ in range(number)}

    def wait_for(self, name):
        """Wait until every answer is under a policy; return how long it took, in seconds."""
        began = time.monotonic()
        while self.ask(BENIGN[0]).headers["x-guardrail-policy"] != f"{name}@1" and time.monotonic() < began + 30:
            time.sleep(0.02)
        taken = time.monotonic() - began
        time.sleep(SETTLED_S)  # the other API process may be a look behind
        assert self.labels() == {f"{name}@1"}
        return taken

    def unscored(self):
        """Prompts that had no score for a fault of the guard's."""
        return sum(self.server.metric("foreguard_unscored_total", reason=each) for each in UNSCORED_REASONS)
