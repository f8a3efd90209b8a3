"""Reloading the policy: what the policy file says now comes into force, in every engine and here, without a restart.

Each API process follows the file on its own. It checks a new policy as the launch checked the first one, and sends it
to every engine with a canary prompt, which comes back decided by it. From then on requests that come in are decided and
answered by the new policy, and those that are under way by their own. vLLM keeps messages in order, so an engine has a
policy before it gets a request that names it.

A policy that cannot come into force changes nothing: the log, and the metrics `foreguard_policy_*`, say so.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from guard import process_states
from guard.metrics import GuardMetrics
from guard.policy_file import parse_policies
from guard.process_states import ProcessState
from guard.rollout import InForce, PolicyFile, Rollout
from guard.watched_file import WatchedFile
from probes.errors import ForeguardError, PolicyError
from serving.state import PROCESSES

logger = logging.getLogger("vllm.foreguard.policy")

_LOOK_S = 0.25
"""Between looks at the file. A change is taken in at the second look that finds it."""
_ANSWER_S = 1.0
"""How long an engine's answer is waited for. It has the policy by then; a full one has no place for the canary yet."""
_RETRY_S = 5.0
"""Between attempts to give engines a policy that they did not take."""


class PolicyReload:
    """Follows the policy file."""

    def __init__(
        self,
        file: WatchedFile,
        in_force: InForce,
        metrics: GuardMetrics,
        bind: Callable[[PolicyFile], Rollout],
        hand_over: Callable[[str, str], Coroutine[Any, Any, object]],
        state: Path | None = None,
    ) -> None:
        """`bind` raises `ForeguardError` for a policy that does not fit; `hand_over` takes a policy's digest and text
        to every engine, and raises where one does not decide by it. In the folder `state` this process tells what it
        goes by.
        """
        self._file = file
        self._in_force = in_force
        self._metrics = metrics
        self._bind = bind
        self._hand_over = hand_over
        self._state = state and state / PROCESSES
        self._since = time.time()
        self._problem: str | None = None
        self._told: tuple[str, str | None] | None = None
        self._told_at = 0.0
        self._tasks: set[asyncio.Task[object]] = set()

    def begin(self) -> None:
        """Follow the file from now on."""
        self._keep(self._follow())

    async def end(self) -> None:
        """Follow it no longer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._state is not None:
            process_states.forget(self._state)

    async def _follow(self) -> None:
        while True:
            self._tell()
            await asyncio.sleep(_LOOK_S)
            try:
                await self.look()
            except Exception:
                # Whatever failed, the policy in force holds; the next change is looked at all the same.
                logger.exception("a change of the policy could not be looked at")
                self._metrics.observe_reload("refused")

    async def look(self) -> None:
        """Put in force what the file says, if that is new."""
        try:
            content = await asyncio.to_thread(self._file.look)
            if content is None:
                return
            rollout = await asyncio.to_thread(self._checked, content)
        except (OSError, ForeguardError) as error:
            self._refuse(error)
            return
        if rollout.digest == self._in_force.current.digest:
            # Such as a comment that was mended, or a bad change that was taken back.
            self._metrics.reload_succeeded.set(1)
            self._problem = None
            return
        problem = await self._announced(rollout.digest, content.decode())
        if problem is None:
            self._put_in_force(rollout)
            return
        self._refuse(problem)
        await asyncio.sleep(_RETRY_S)
        self._file.forget()

    def _checked(self, content: bytes) -> Rollout:
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise PolicyError(f"is not UTF-8: {error}", field="policy", remedy="save the file as UTF-8") from error
        return self._bind(parse_policies(text))

    async def _announced(self, digest: str, text: str) -> Exception | None:
        """Give every engine the policy; return why one did not take it."""
        task = self._keep(self._hand_over(digest, text))
        done, _ = await asyncio.wait([task], timeout=_ANSWER_S)
        if not done:
            logger.warning("an engine has not yet answered by the policy with the digest %s: it may be full", digest)
            task.add_done_callback(_tell_late)
            return None
        error = task.exception()
        return error if isinstance(error, Exception) else None

    def _put_in_force(self, rollout: Rollout) -> None:
        before, after = self._in_force.current.base.policy, rollout.base.policy
        self._metrics.publish(rollout)
        self._in_force.current = rollout
        self._since, self._problem = time.time(), None
        self._metrics.observe_reload("applied")
        logger.info(
            "policy %s (digest %s) is in force, in place of %s (%s)",
            *(after.label, after.digest),
            *(before.label, before.digest),
        )

    def _refuse(self, error: Exception) -> None:
        self._metrics.observe_reload("refused")
        self._problem = str(error)
        label = self._in_force.current.base.policy.label
        logger.error("the policy file was changed, and %s stays in force: %s", label, error)

    def _tell(self) -> None:
        """Tell in a file what this process goes by: when that changes, and now and then."""
        if self._state is None:
            return
        policy = self._in_force.current.base.policy
        now = policy.digest, self._problem
        if now == self._told and time.monotonic() - self._told_at < process_states.STALE_S / 3:
            return
        state = ProcessState(policy=policy.label, digest=policy.digest, since=self._since, problem=self._problem)
        try:
            process_states.tell(self._state, state)
        except OSError as error:
            logger.warning("what this process goes by cannot be told in %s: %s", self._state, error)
        self._told, self._told_at = now, time.monotonic()

    def _keep(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _tell_late(task: asyncio.Task[object]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.error("an engine does not decide by the policy in force: what it decides is unscored: %s", error)
