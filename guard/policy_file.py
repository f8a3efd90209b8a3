"""Policy files: YAML in, policies or an error with its line and remedy out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from guard.policy import Policy
from guard.rollout import PolicyFile, RolloutSettings
from probes.errors import PolicyError

_REMEDIES = {
    "extra_forbidden": "remove the key, or correct its spelling; docs/policy.md lists them all",
    "string_type": "put the value in quotes: YAML takes bare numbers and dates for something else",
    "guessable_key": "make a token that nobody guesses: `foreguard key` prints one, and the policy's entry for it",
    "missing": "add the key; docs/policy.md shows an example",
}


def load_policy(path: Path) -> Policy:
    """Read the policy of the file at `path`, without its variants. Raises `PolicyError` as `load_policies` does."""
    return load_policies(path).policy


def parse_policy(text: str, source: str = "policy") -> Policy:
    """Read a policy from YAML `text`, without its variants. Raises `PolicyError` as `parse_policies` does."""
    return parse_policies(text, source).policy


def load_policies(path: Path) -> PolicyFile:
    """Read the policy file at `path`. Raises `PolicyError` naming the key, the line and the remedy."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(
            f"cannot read {path.name}: {error}", field="policy", remedy="name a readable YAML file"
        ) from error
    return parse_policies(text, path.name)


def parse_policies(text: str, source: str = "policy") -> PolicyFile:
    """Read a policy file from YAML `text`; `source` names it in errors."""
    root, content = _read(text, source)
    if not isinstance(content, dict):
        raise PolicyError(
            f"{source} is not a mapping", field="policy", remedy="start from the example in docs/policy.md"
        )
    said = {key: content.pop(key) for key in [*content] if key in RolloutSettings.model_fields}
    where = _Where(root, source)
    policy = where.validate(Policy, content)
    settings = where.validate(RolloutSettings, said)
    variants = {
        name: where.validate(Policy, content | changes, ("variants", name))
        for name, changes in settings.variants.items()
    }
    for caller in policy.callers:
        if unknown := sorted(set(caller.may_choose) - set(variants)):
            field = where.of(["callers", policy.callers.index(caller), "may_choose"])
            raise PolicyError(f"no variant is named {unknown[0]!r}", field=field, remedy="name one of `variants`")
    if not said:
        return PolicyFile(policy)
    all_of_it = settings.model_dump_json()
    return PolicyFile(
        policy.in_file(all_of_it),
        {name: variant.in_file(all_of_it, name) for name, variant in variants.items()},
        settings,
    )


_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class _Where:
    """Says where in a file something is wrong."""

    root: yaml.Node | None
    source: str

    def validate(self, model: type[_Model], content: Any, within: Sequence[str | int] = ()) -> _Model:
        """Return `content`, which stands `within` these keys, as the model. Raises `PolicyError`."""
        try:
            return model.model_validate(content)
        except ValidationError as error:
            raise self._explain(error, within) from error

    def of(self, keys: Sequence[str | int]) -> str:
        """Return the file, the line and the key of the deepest part of `keys` that the file has."""
        return f"{self.source}:{_line(self.root, keys)}: {'.'.join(map(str, keys)) or 'policy'}"

    def _explain(self, error: ValidationError, within: Sequence[str | int]) -> PolicyError:
        details = error.errors()
        # A union reports every branch that failed; the deepest location is the branch that the writer meant.
        first = max(details, key=lambda detail: len(_keys(detail["loc"])))
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        remedy = _REMEDIES.get(first["type"], "correct the value; docs/policy.md gives each key's type and range")
        problem = first["msg"].removeprefix("Value error, ")
        return PolicyError(f"{problem}{more}", field=self.of([*within, *_keys(first["loc"])]), remedy=remedy)


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
