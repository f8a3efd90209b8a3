"""A threshold or the canary's share in a policy file's text, exchanged. All other text stays, comments included."""

import yaml

from guard.policy import Condition
from guard.policy_file import parse_policies
from probes.errors import PolicyError


def with_threshold(text: str, rule: str, score: str, above: float) -> str:
    """Return the text with `above` as the number of a rule's condition on a score, in the file's own policy.

    Raises `PolicyError` where the file is none, where no rule has that condition, and where the text is laid out so
    that it cannot be edited: the result is read back, and has to be the policy that was meant.
    """
    before = parse_policies(text).policy
    pair = _condition(text, rule, score)
    if pair is None:
        raise PolicyError(
            f"no rule {rule!r} asks for {score!r} to be above something",
            field=f"rules.{rule}.when.{score}",
            remedy="name a rule of the policy, and a score that it reads",
        )
    begin = text.index(":", pair[0].end_mark.index) + 1
    edited = f"{text[:begin]} {above!r}{text[_end(pair[1]) :]}"
    rules = tuple(
        each.model_copy(update={"when": each.when | {score: Condition(above=above, below=each.when[score].below)}})
        if each.name == rule
        else each
        for each in before.rules
    )
    if not _says(edited, before.model_copy(update={"rules": rules}).model_dump()):
        raise PolicyError(
            "its layout cannot be edited",
            field="policy",
            remedy="write each condition on lines of its own, without anchors",
        )
    return edited


def with_canary(text: str, variant: str, percent: float) -> str:
    """Return the text with a `canary` that gives a share of all callers, in percent, to a variant; 0 takes it away.

    Raises `PolicyError` where the result is no policy file, such as for a variant that is not there.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    pair = _pair(root, "canary")
    line = f"canary: {{variant: {variant}, percent: {percent!r}}}" if percent else ""
    if pair is None:
        edited = f"{text}{'' if text.endswith(chr(10)) else chr(10)}{line}\n" if line else text
    else:
        edited = f"{text[: pair[0].start_mark.index]}{line}{text[_end(pair[1]) :]}"
    canary = parse_policies(edited).settings.canary
    if (canary.percent if canary else 0) != percent:
        raise PolicyError("its layout cannot be edited", field="canary", remedy="write it on a line of its own")
    return edited


def _says(text: str, meant: object) -> bool:
    try:
        return bool(parse_policies(text).policy.model_dump() == meant)
    except PolicyError:
        return False


def _condition(text: str, rule: str, score: str) -> tuple[yaml.Node, yaml.Node] | None:
    rules = _value(yaml.compose(text, Loader=yaml.SafeLoader), "rules")
    for each in getattr(rules, "value", []):
        name = _value(each, "name")
        if name is not None and name.value == rule:
            return _pair(_value(_value(each, "when"), score), "above")
    return None


def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
    pair = _pair(node, key)
    return pair[1] if pair else None


def _pair(node: yaml.Node | None, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((pair for pair in node.value if pair[0].value == key), None)


def _end(node: yaml.Node) -> int:
    # A block mapping's own end mark lies beyond the line break after it; its last scalar's does not.
    while isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        node = node.value[-1][1]
    return int(node.end_mark.index)
