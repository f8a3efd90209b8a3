"""The administration's HTTP interface, under `/guard`. Format: `docs/admin.md`."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from guard.policy_history import revision_of
from probes.errors import ForeguardError, PolicyError
from serving.admin.drift_desk import DriftDesk
from serving.admin.operators import Operators
from serving.admin.policy_desk import Applied, Outdated, PolicyDesk, ReadOnly, Unconfirmed
from serving.admin.store_desk import NoStore, StoreDesk, StoreGone, TooLong

logger = logging.getLogger("vllm.foreguard.admin")

_LONGEST = 1 << 20
"""Bytes of the longest body."""
_YAML = "application/yaml"
_STATUS: dict[type[ForeguardError], HTTPStatus] = {
    Outdated: HTTPStatus.PRECONDITION_FAILED,
    Unconfirmed: HTTPStatus.CONFLICT,
    ReadOnly: HTTPStatus.SERVICE_UNAVAILABLE,
    NoStore: HTTPStatus.NOT_FOUND,
    TooLong: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    StoreGone: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Of what an operator does; anything else that is wrong with a policy, or with labels, is 422."""

Answer = Callable[[Request, str], Awaitable[Response]]
"""Takes a request, and the name of the operator who asks."""


def application(policy: PolicyDesk, drift: DriftDesk, operators: Operators, store: StoreDesk) -> Starlette:
    """Return the application. Whoever has no operator's token learns nothing but that."""

    def route(path: str, answer: Answer, method: str = "GET") -> Route:
        async def guarded(request: Request) -> Response:
            who = operators.name_of(request.headers.get("authorization"))
            if who is None:
                return JSONResponse({"error": "Unauthorized"}, HTTPStatus.UNAUTHORIZED, {"www-authenticate": "Bearer"})
            try:
                return await answer(request, who)
            except ForeguardError as error:
                return _refusal(error)

        return Route(path, guarded, methods=[method])

    pages, of_drift, of_store = _Pages(policy), _DriftPages(drift), _StorePages(store)
    return Starlette(
        routes=[
            route("/guard/policy", pages.policy),
            route("/guard/policy", pages.apply, "PUT"),
            route("/guard/policy/rollback", pages.roll_back, "POST"),
            route("/guard/policy/history", pages.history),
            route("/guard/policy/history/{revision}", pages.text),
            route("/guard/policy/diff", pages.diff),
            route("/guard/processes", pages.processes),
            route("/guard/drift", of_drift.processes),
            route("/guard/drift/acknowledge", of_drift.acknowledge, "POST"),
            route("/guard/store", of_store.status),
            route("/guard/labels", of_store.label, "POST"),
        ]
    )


class _Pages:
    """What the routes answer."""

    def __init__(self, desk: PolicyDesk) -> None:
        self._desk = desk

    async def policy(self, _request: Request, _who: str) -> Response:
        """The policy file, with its revision as the ETag."""
        content = await run_in_threadpool(self._desk.content)
        return Response(content, media_type=_YAML, headers={"etag": f'"{revision_of(content)}"'})

    async def apply(self, request: Request, who: str) -> Response:
        """Put the body into the policy file, if that is at the revision that `If-Match` names."""
        expected, content = _expected(request), await _body(request)
        confirmed = request.query_params.get("confirm") == "yes"
        return _told(await run_in_threadpool(self._desk.apply, content, expected, who, confirmed=confirmed))

    async def roll_back(self, request: Request, who: str) -> Response:
        """Put an earlier revision back."""
        expected, revision = _expected(request), request.query_params.get("revision")
        return _told(await run_in_threadpool(self._desk.roll_back, expected, who, revision))

    async def history(self, _request: Request, _who: str) -> Response:
        """All changes, the last one first."""
        changes = await run_in_threadpool(self._desk.history)
        return JSONResponse({"changes": [each.model_dump(mode="json") for each in changes]})

    async def text(self, request: Request, _who: str) -> Response:
        """The policy file as it was at a revision."""
        content = await run_in_threadpool(self._desk.text, request.path_params["revision"])
        return Response(content, media_type=_YAML)

    async def diff(self, request: Request, _who: str) -> Response:
        """What changes from one revision to another; without `after` to what the file says now."""
        after = request.query_params.get("after") or revision_of(await run_in_threadpool(self._desk.content))
        before = request.query_params.get("before", "")
        return PlainTextResponse(await run_in_threadpool(self._desk.diff, before, after))

    async def processes(self, _request: Request, _who: str) -> Response:
        """What each process of the server goes by."""
        found = await run_in_threadpool(self._desk.processes)
        return JSONResponse({"processes": [each.model_dump() for each in found]})


class _DriftPages:
    """What the routes about drift answer."""

    def __init__(self, desk: DriftDesk) -> None:
        self._desk = desk

    async def processes(self, _request: Request, _who: str) -> Response:
        """What each process found."""
        return JSONResponse({"processes": await run_in_threadpool(self._desk.processes)})

    async def acknowledge(self, _request: Request, who: str) -> Response:
        """Have every process begin anew."""
        await run_in_threadpool(self._desk.acknowledge)
        logger.info("%s acknowledged what has drifted", who)
        return Response(status_code=HTTPStatus.NO_CONTENT)


class _StorePages:
    """What the routes about the decision store answer."""

    def __init__(self, desk: StoreDesk) -> None:
        self._desk = desk

    async def status(self, _request: Request, _who: str) -> Response:
        """What the store holds."""
        return JSONResponse(await run_in_threadpool(self._desk.status))

    async def label(self, request: Request, who: str) -> Response:
        """Give the body's labels, all of them or none."""
        content = await _read(request, TooLong("has more than 1 MiB", field="labels", remedy="send them in parts"))
        given = await run_in_threadpool(self._desk.label, content, who)
        return JSONResponse({"given": given.number, "unknown": sorted(given.unknown)})


def _told(applied: Applied) -> Response:
    """Return what came of a change: 202 where a process does not go by it yet, and says why if it knows."""
    told = asdict(applied) | {"waiting": [each.model_dump() for each in applied.waiting]}
    status = HTTPStatus.OK if applied.in_force and not applied.waiting else HTTPStatus.ACCEPTED
    return JSONResponse(told, status, {"etag": f'"{applied.revision}"'})


def _expected(request: Request) -> str:
    given = request.headers.get("if-match", "").strip().removeprefix("W/").strip('"')
    if not given:
        raise Outdated(
            "says not which revision the change is made to",
            field="If-Match",
            remedy="send the ETag that GET /guard/policy gave",
        )
    return given


async def _body(request: Request) -> bytes:
    return await _read(request, PolicyError("has more than 1 MiB", field="policy", remedy="send a policy file"))


async def _read(request: Request, too_long: ForeguardError) -> bytes:
    """Return the body. Raises `too_long` for one that has more than `_LONGEST` bytes."""
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > _LONGEST:
            raise too_long
    return bytes(content)


def _refusal(error: ForeguardError) -> Response:
    status = _STATUS.get(type(error), HTTPStatus.UNPROCESSABLE_ENTITY)
    told = {"field": error.field, "problem": error.problem, "remedy": error.remedy}
    return JSONResponse({"error": told}, status)
