"""The page Review: decisions to label, one after another, by keyboard."""

from dataclasses import dataclass, field
from functools import partial

from nicegui import ui

from guard.store.label import GivenLabel, Label, Labels
from guard.tuning.estimates import Estimated, estimates
from guard.tuning.judged import Rules, judge
from guard.tuning.recent import recent
from guard.tuning.review import FLOOR, ToReview, to_review
from guard.verdict import Action
from serving.console.frame import heading, in_thread, nothing_yet, operator, paragraph, shown, stored, table
from serving.console.source import RECENT, Source

_AT_ONCE = 20
_KEYS = {"b": Label.BENIGN, "h": Label.HARMFUL, "u": Label.UNSURE}
_EVEN = 1.0
"""The floor with which all decisions have one chance: what certifies a threshold soonest."""


@dataclass(slots=True)
class _State:
    """The queue of one who reviews."""

    who: str
    queue: list[ToReview] = field(default_factory=list)
    done: list[ToReview] = field(default_factory=list)
    is_even: bool = False


async def review(source: Source) -> None:
    """Show one decision at a time, and take a label with one key."""
    state = _State(operator() or "console")

    @ui.refreshable
    async def card() -> None:
        await shown(_card, source, state)

    @ui.refreshable
    async def numbers() -> None:
        await shown(_numbers, source)

    async def give(label: Label) -> None:
        if state.queue:
            current = state.queue.pop(0)
            await _give(source, state, current, label)
            state.done.append(current)
            card.refresh()

    async def undo() -> None:
        if state.done:
            last = state.done.pop()
            await _give(source, state, last, Label.WITHDRAWN)
            state.queue.insert(0, last)
            card.refresh()

    async def pressed(event) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        if not event.action.keydown or event.action.repeat or event.modifiers.ctrl or event.modifiers.alt:
            return
        key = str(event.key).lower()
        if key in _KEYS:
            await give(_KEYS[key])
        elif key == "z":
            await undo()

    def switched(event) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        state.is_even, state.queue = bool(event.value), []
        card.refresh()

    paragraph(
        "Borderline decisions and those that probes disagree on come first, each with a known chance, so that the "
        "rates below are those of your traffic. Label in order, and all of them."
    )
    ui.switch("All decisions with the same chance (certifies a threshold soonest)", on_change=switched)
    ui.keyboard(on_key=pressed, ignore=["input", "select", "textarea"])
    await card()
    with ui.row().props('role="group" aria-label="Label"'):
        for key, label in _KEYS.items():
            ui.button(f"{label.value.capitalize()} ({key})", on_click=partial(give, label)).props("no-caps")
        ui.button("Undo (z)", on_click=undo).props("no-caps color=grey-8")
    heading("What the labels say")
    await numbers()
    ui.button("Count again", on_click=numbers.refresh).props("no-caps color=grey-8")


async def _give(source: Source, state: _State, picked: ToReview, label: Label) -> None:
    given = GivenLabel(picked.record.decision.event_id, label, state.who, picked.source, picked.chance)
    await stored(source, lambda: Labels(source.store).give([given]))


async def _card(source: Source, state: _State) -> None:
    if not state.queue:
        bound = (await in_thread(source.rollout)).base.model
        floor = _EVEN if state.is_even else FLOOR
        found = await stored(source, lambda: to_review(source.store, bound, _AT_ONCE, floor=floor))
        seen = {each.record.key for each in state.done}
        state.queue = [each for each in found if each.record.key not in seen]
    if not state.queue:
        nothing_yet("Nothing to label: all that the design picks has a label, or there is no traffic yet.")
        return
    await _show(source, state.queue[0], len(state.done))


async def _show(source: Source, picked: ToReview, done: int) -> None:
    decision = picked.record.decision
    with ui.card().classes("w-full").props('role="region" aria-label="Decision to label" aria-live="polite"'):
        heading(f"{decision.event_id}", 2)
        paragraph(_why(picked))
        text = await in_thread(lambda: _text(source, decision.event_id))
        if text is None:
            nothing_yet(
                "The prompt is not kept. Start the server with --store-texts and FOREGUARD_STORE_KEY to see it here, "
                "or label from outside by the event id: `foreguard store label FILE.csv`, or POST /guard/labels."
            )
        else:
            ui.label(text).style("white-space:pre-wrap;overflow-wrap:anywhere;max-height:16rem;overflow:auto").props(
                'tabindex="0" role="region" aria-label="Prompt"'
            )
        facts = [
            ("time", f"{decision.at:%Y-%m-%d %H:%M:%S}"),
            ("decision", f"{decision.decision.value} by {decision.rule or 'no rule'}"),
            ("tenant", decision.tenant or "(none)"),
            ("route", decision.route or ""),
        ]
        scores = [(name, f"{value:.3f}") for name, value in sorted(decision.scores.items())]
        table(f"Labelled in this session: {done}", ("of the decision", "value"), [*facts, *scores])


def _why(picked: ToReview) -> str:
    if picked.score is None:
        return "Picked at random."
    side = "above" if picked.distance > 0 else "below"
    return f"{abs(picked.distance):.2f} spreads {side} the threshold of {picked.rule} on {picked.score}."


def _text(source: Source, event_id: str) -> str | None:
    vault = source.vault
    if vault is None:
        return None
    found = source.read(lambda: vault.text(event_id))
    return found if isinstance(found, str) else None


async def _numbers(source: Source) -> None:
    rules = Rules.of((await in_thread(source.rollout)).base.model)
    found = await stored(source, lambda: recent(source.store, RECENT))
    judged = judge(found, rules)
    said = estimates(found, judged.severities >= Action.FLAG.severity, judged.counted)
    if not any(said.labels.values()):
        nothing_yet("No labels yet.")
        return
    rows = [
        (name, _interval(each))
        for name, each in (
            ("false-positive rate", said.fpr),
            ("recall", said.recall),
            ("precision", said.precision),
            ("share of harm in traffic", said.prevalence),
        )
    ]
    labels = ", ".join(f"{number:,} {label.value}" for label, number in said.labels.items() if number)
    table(f"By the policy in force, of {labels}", ("of traffic", "share, with its 95 % interval"), rows)


def _interval(estimated: Estimated) -> str:
    found = estimated.known
    if found is not None:
        return f"{found.value:.2%} ({found.low:.2%} to {found.high:.2%}), of {found.count} labels"
    found = estimated.unknown
    if found is None:
        return "not known: no such label"
    return f"{found.value:.2%} of {found.count} labels whose chance is not known: of the labels, not of traffic"
