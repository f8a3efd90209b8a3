"""A running server's administration, as its operators' commands ask it over HTTP."""

from typing import Annotated, Any

import httpx
import typer

from probes.errors import ForeguardError, PolicyError

Url = Annotated[str, typer.Option("--url", envvar="FOREGUARD_ADMIN_URL", help="Address of the administration.")]
Token = Annotated[
    str, typer.Option("--token", envvar="FOREGUARD_ADMIN_TOKEN", help="Your token.", show_envvar=True, prompt=False)
]
LOCAL = "http://127.0.0.1:8001"


class Administration:
    """The administration of one server, as its operator asks it. Raises `ForeguardError` for what it refuses."""

    def __init__(self, url: str, token: str) -> None:
        self._client = httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=30)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Return the answer to a request."""
        try:
            reply = self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise _unreachable(self._client.base_url, error) from error
        if reply.is_success:
            return reply
        if reply.status_code == httpx.codes.UNAUTHORIZED:
            raise PolicyError("is no operator's", field="FOREGUARD_ADMIN_TOKEN", remedy="set your token")
        raise _refused(reply)

    def held(self) -> tuple[str, str]:
        """Return the policy file's content and its revision."""
        reply = self.ask("GET", "/guard/policy")
        return reply.text, reply.headers["etag"].strip('"')


def _unreachable(url: httpx.URL, error: httpx.HTTPError) -> ForeguardError:
    return PolicyError(
        f"{url} does not answer: {error}",
        field="FOREGUARD_ADMIN_URL",
        remedy="start the server with `foreguard serve --admin-port PORT`, and name its address",
    )


def _refused(reply: httpx.Response) -> ForeguardError:
    try:
        told = reply.json()["error"]
        return PolicyError(told["problem"], field=told["field"], remedy=told["remedy"])
    except (ValueError, KeyError, TypeError):
        return PolicyError(f"answers {reply.status_code}", field="FOREGUARD_ADMIN_URL", remedy="name the right address")
