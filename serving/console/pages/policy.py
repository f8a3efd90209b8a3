"""The page Policy: what is in force, what a change would change, the change itself, and the way back."""

import difflib
from collections.abc import Sequence

from nicegui import ui

from guard.policy_file import parse_policies
from guard.policy_history import Change, revision_of
from guard.policy_text import with_canary, with_threshold
from probes.errors import ForeguardError
from serving.admin.policy_desk import Applied, PolicyDesk, Unconfirmed
from serving.console.frame import heading, in_thread, operator, paragraph, table
from serving.console.source import Source, told


async def policy(source: Source) -> None:
    """Show the policy file, and let an operator change it where this console may."""
    text = await in_thread(source.text)
    if source.desk is None:
        paragraph(
            "This console stands beside a fleet, and changes no server's policy. Change it where it comes from (a "
            "ConfigMap, or `foreguard policy apply` at each server's admin port). What the file says:"
        )
        ui.code(text, language="yaml").classes("w-full")
        return
    await _Editor(source.desk, text).build()


class _Editor:
    """One operator's change, from the text that they saw."""

    def __init__(self, desk: PolicyDesk, text: str) -> None:
        self._desk, self._seen = desk, text
        self._who = operator() or "console"

    async def build(self) -> None:
        """Show the editor, the difference and the history."""
        history = await in_thread(self._desk.history)
        text, note = self._proposed()
        if note:
            paragraph(note, "note")
        heading("The policy file")
        self._text = ui.textarea("Policy file (YAML)", value=text).props("autogrow outlined input-class=code")
        self._text.classes("w-full").style("font-family:monospace")
        self._canary()
        with ui.row():
            ui.button("Show what changes", on_click=self._diff).props("no-caps color=grey-8")
            ui.button("Apply", on_click=lambda: self._apply(confirmed=False)).props("no-caps")
        self._area = ui.column().classes("w-full").props('aria-live="polite"')
        if note:
            await self._diff()
        heading("History")
        self._history(history)

    def _proposed(self) -> tuple[str, str]:
        """Return the text with the threshold that the page What if proposes, and what is said about it."""
        request = ui.context.client.request
        asked = dict(request.query_params) if request else {}
        try:
            rule, score, above = asked["rule"], asked["score"], float(asked["above"])
            text = with_threshold(self._seen, rule, score, above)
        except (KeyError, ValueError):
            return self._seen, ""
        except ForeguardError as error:
            return self._seen, told(error)
        return text, f"Proposed: {rule}, {score} above {above:.4f}. It is in force when you apply it."

    def _canary(self) -> None:
        """Show the share of callers that a variant is turned on for, where the file has variants."""
        try:
            settings = parse_policies(self._seen).settings
        except ForeguardError:
            return
        if not settings.variants:
            paragraph("To enforce for a share of all callers first, add a variant: docs/policy.md says how.")
            return
        now = settings.canary
        with ui.row().classes("items-end"):
            variant = ui.select(
                list(settings.variants), value=now.variant if now else next(iter(settings.variants)), label="Variant"
            ).style("min-width:10rem")
            percent = ui.number("Percent of callers", value=now.percent if now else 0, min=0, max=100, step=1).style(
                "min-width:10rem"
            )

            async def put() -> None:
                try:
                    text = with_canary(str(self._text.value), str(variant.value), float(percent.value or 0))
                except ForeguardError as error:
                    ui.notify(told(error))
                    return
                self._text.set_value(text)
                await self._diff()

            ui.button("Put the canary into the text", on_click=put).props("no-caps color=grey-8")

    async def _diff(self) -> None:
        self._area.clear()
        with self._area:
            lines = list(
                difflib.unified_diff(
                    self._seen.splitlines(), str(self._text.value).splitlines(), "in the file", "yours", lineterm=""
                )
            )
            if not lines:
                paragraph("Nothing changes.")
                return
            ui.code("\n".join(lines), language="diff").classes("w-full")

    async def _apply(self, *, confirmed: bool) -> None:
        content, expected = str(self._text.value).encode(), revision_of(self._seen.encode())
        self._area.clear()
        with self._area:
            try:
                applied = await in_thread(lambda: self._desk.apply(content, expected, self._who, confirmed=confirmed))
            except Unconfirmed as error:
                paragraph(f"Not applied. {error.problem}.", "alarm")
                ui.button("Apply it all the same", on_click=lambda: self._apply(confirmed=True)).props(
                    "no-caps color=negative"
                )
                return
            except ForeguardError as error:
                paragraph(f"Not applied. {told(error)}", "alarm")
                return
            self._applied(applied)
        self._seen = content.decode()

    def _applied(self, applied: Applied) -> None:
        waiting = ", ".join(f"process {each.pid}: {each.problem or 'not yet'}" for each in applied.waiting)
        where = f"{len(applied.in_force)} of {len(applied.in_force) + len(applied.waiting)} processes"
        paragraph(
            f"{applied.label} (revision {applied.revision}) is in force in {where} after {applied.seconds:.1f} s."
            + (f" Still waiting: {waiting}." if waiting else "")
        )

    def _history(self, history: Sequence[Change]) -> None:
        rows = [
            (f"{each.at:%Y-%m-%d %H:%M:%S}", each.who, each.what, each.before or "", each.revision, each.label)
            for each in history[:50]
        ]
        table("Changes, the last one first", ("time (UTC)", "who", "what", "from", "to", "policy"), rows)
        if history and history[0].before:
            back = history[0].before
            ui.button(f"Roll back to {back}", on_click=self._roll_back).props("no-caps color=grey-8")

    async def _roll_back(self) -> None:
        self._area.clear()
        with self._area:
            try:
                expected = revision_of(await in_thread(self._desk.content))
                applied = await in_thread(lambda: self._desk.roll_back(expected, self._who))
            except ForeguardError as error:
                paragraph(f"Not rolled back. {told(error)}", "alarm")
                return
            self._seen = (await in_thread(self._desk.content)).decode()
            self._text.set_value(self._seen)
            self._applied(applied)
