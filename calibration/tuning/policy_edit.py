"""Policy edits: new thresholds in a policy's text, each under a comment that says what it does, as a unified diff.

All other text stays as it was, comments included. The edited text is read back, and has to be the policy that was
meant.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from calibration.tuning.outcome import GroupOutcome
from calibration.tuning.tune import Place, Plan, with_numbers
from guard.policy import Policy
from guard.policy_file import parse_policy
from probes.errors import PolicyError
from probes.manifest import Rate

_MARK = "# tuned: "
"""Begins every comment of ours; the next tuning replaces those that stand above the line it changes."""
_OURS = re.compile(r"(?:^[ \t]*# tuned: [^\n]*\n)+\Z", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Edit:
    """A replacement of characters `start` to `end` of the policy's text."""

    start: int
    end: int
    text: str


def policy_diff(text: str, source: str, policy: Policy, plan: Plan, comments: Mapping[Place, Sequence[str]]) -> str:
    """Return the unified diff that puts the plan's numbers into the policy's `text`, for `patch`.

    Empty when nothing changes. Raises `PolicyError` where the result would contradict itself (a threshold above its
    condition's other end), or where the text is laid out so that it cannot be edited.
    """
    tuned = _edited(text, policy, plan, comments)
    meant = with_numbers(policy, {place: number.value for place, number in plan.items()})
    if not _is_yaml(tuned) or parse_policy(tuned, f"{source} (tuned)") != meant:
        raise PolicyError(
            "its layout cannot be edited",
            field=source,
            remedy="write each condition on lines of its own, without anchors",
        )
    lines = difflib.unified_diff(_lines(text), _lines(tuned), source, f"{source} (tuned)")
    # What `patch` expects after a last line that has no end.
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def comments_of(plan: Plan, found: Mapping[str, GroupOutcome]) -> dict[Place, list[str]]:
    """Return for each number its promise, and on what share of each group of prompts its rule now fires."""
    return {place: [number.promise, _fires(place[0], found)] for place, number in plan.items()}


def shown(share: Rate) -> str:
    """Return a share with its interval, as text: `0.65 % (0.31 to 1.2 %)`."""
    value, low, high = (
        f"{x:.2g}" if x < 10 else f"{x:.1f}" for x in (100 * share.value, 100 * share.low, 100 * share.high)
    )
    return f"{value} % ({low} to {high} %)"


def _fires(rule: str, found: Mapping[str, GroupOutcome]) -> str:
    shares = [f"{shown(outcome.rules[rule])} of {group}" for group, outcome in found.items()]
    return f"{rule} fires on {', '.join(shares)}"


def _edited(text: str, policy: Policy, plan: Plan, comments: Mapping[Place, Sequence[str]]) -> str:
    above_line: dict[int, list[str]] = {}
    edits = []
    for place, key, value in _places(text, policy, plan):
        start = text.index(":", key.end_mark.index) + 1
        edits.append(_Edit(start, _end(value), f" {plan[place].text}"))
        line = text.rfind("\n", 0, key.start_mark.index) + 1
        said = above_line.setdefault(line, [])
        said += [each for each in comments.get(place, ()) if each not in said]
    for line, said in above_line.items():
        ours = _OURS.search(text, 0, line)
        indent = re.match(r"[ \t]*", text[line:])
        ending = "\r\n" if text[:line].endswith("\r\n") else "\n"
        block = "".join(f"{indent.group() if indent else ''}{_MARK}{_one_line(each)}{ending}" for each in said)
        edits.append(_Edit(ours.start() if ours else line, line, block))
    for edit in sorted(edits, key=lambda edit: -edit.start):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def _places(text: str, policy: Policy, plan: Plan) -> Iterator[tuple[Place, yaml.Node, yaml.Node]]:
    rules = _value(yaml.compose(text, Loader=yaml.SafeLoader), "rules")
    for rule, node in zip(policy.rules, getattr(rules, "value", []), strict=True):
        for name in rule.when:
            for end in ("above", "below"):
                place: Place = (rule.name, name, "above" if end == "above" else "below")
                pair = _pair(_value(_value(node, "when"), name), end)
                if place in plan and pair is not None:
                    yield place, *pair


def _one_line(text: str) -> str:
    # A stratum may be named by a prompt file, and whatever ends a line would end the comment.
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())


def _is_yaml(text: str) -> bool:
    try:
        yaml.safe_load(text)
    except yaml.YAMLError:  # an alias of what was replaced, for one
        return False
    return True


def _lines(text: str) -> list[str]:
    # Not splitlines(): a message may hold characters that end a line for Python and not for `patch`.
    return re.findall(r"[^\n]*\n|[^\n]+\Z", text)


def _pair(node: yaml.Node | None, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((pair for pair in node.value if pair[0].value == key), None)


def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
    pair = _pair(node, key)
    return pair[1] if pair else None


def _end(node: yaml.Node) -> int:
    # A block mapping's own end mark lies beyond the line break after it; its last scalar's does not.
    while isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        node = node.value[-1][1]
    return int(node.end_mark.index)
