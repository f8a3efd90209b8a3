"""Policy files: YAML in, a `Policy` or an error with its line and remedy out."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from guard.policy import Policy
from probes.errors import PolicyError

_REMEDIES = {
    "extra_forbidden": "remove the key, or correct its spelling; docs/policy.md lists them all",
    "string_type": "put the value in quotes: YAML takes bare numbers and dates for something else",
    "guessable_key": "make a token that nobody guesses: `foreguard key` prints one, and the policy's entry for it",
    "missing": "add the key; docs/policy.md shows an example",
}


def load_policy(path: Path) -> Policy:
    """Read the policy at `path`. Raises `PolicyError` naming the key, the line and the remedy."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(
            f"cannot read {path.name}: {error}", field="policy", remedy="name a readable YAML file"
        ) from error
    return parse_policy(text, path.name)


def parse_policy(text: str, source: str = "policy") -> Policy:
    """Read a policy from YAML `text`; `source` names it in errors."""
    root, content = _read(text, source)
    if not isinstance(content, dict):
        raise PolicyError(
            f"{source} is not a mapping", field="policy", remedy="start from the example in docs/policy.md"
        )
    try:
        return Policy.model_validate(content)
    except ValidationError as error:
        raise _explain(error, root, source) from error


def _read(text: str, source: str) -> tuple[yaml.Node | None, object]:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _require_plain_keys(root, source, set())
        return root, yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error)
        raise PolicyError(f"is not YAML: {problem}", field=where, remedy="mend the syntax at that line") from error


def _require_plain_keys(node: yaml.Node | None, source: str, seen: set[int]) -> None:
    """Raise `PolicyError` for a key that is no word, or is given twice: YAML's reader would keep the last, silently."""
    if node is None or id(node) in seen:  # aliases share their nodes, and may contain themselves
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _require_plain_keys(item, source, seen)
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            where = f"{source}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise PolicyError("a key is a list or a mapping", field=where, remedy="use a word as the key")
            if key.value in keys:
                raise PolicyError(f"key {key.value!r} is given twice", field=where, remedy="keep one of the two")
            keys.add(key.value)
            _require_plain_keys(value, source, seen)


def _explain(error: ValidationError, root: yaml.Node | None, source: str) -> PolicyError:
    details = error.errors()
    # A union reports every branch that failed; the deepest location is the branch that the writer meant.
    first = max(details, key=lambda detail: len(_keys(detail["loc"])))
    keys = _keys(first["loc"])
    line = _line(root, keys)
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    remedy = _REMEDIES.get(first["type"], "correct the value; docs/policy.md gives each key's type and range")
    problem = first["msg"].removeprefix("Value error, ")
    return PolicyError(
        f"{problem}{more}", field=f"{source}:{line}: {'.'.join(map(str, keys)) or 'policy'}", remedy=remedy
    )


def _keys(location: Sequence[str | int]) -> list[str | int]:
    # After "above" and "below", pydantic names the branch of the union: it is no key of the file.
    pairs = zip(("", *location), location, strict=False)
    return [part for before, part in pairs if not (before in {"above", "below"} and part in {"float", "TargetFpr"})]


def _line(node: yaml.Node | None, keys: Sequence[str | int]) -> int:
    """Return the 1-based line of the deepest part of `keys` that the file has."""
    line = node.start_mark.line + 1 if node else 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(key)), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
    return line
