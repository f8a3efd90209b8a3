"""docs/inventory.md as data: what was decided about each of vLLM's routes and request fields."""

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "inventory.md"
UNREACHED = "Not reached in any test"
OPTIONAL = "Only where a flag or a variable adds it: for operators"

_NAMES = re.compile(r"`([^`]+)`")
_TEST = re.compile(r"`(tests/)?([\w/]*test_\w+\.py)(?:::(\w+))?`")


@dataclass
class Inventory:
    """The page, by heading."""

    routes: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    """Heading -> `METHOD /path` -> the classes that its body may be read as."""
    fields: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    """Heading -> class -> its fields."""
    undeclared: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    """Heading -> a key or header -> others of its kind."""

    @property
    def generating(self) -> dict[str, tuple[str, ...]]:
        """The routes that a prompt can be sent to and generated from."""
        return {route: kinds for routes in self.routes.values() for route, kinds in routes.items() if kinds}

    def read(self, heading: str) -> set[str]:
        """Return the keys or headers under a heading that begins so."""
        kinds = next(each for name, each in self.undeclared.items() if name.startswith(heading))
        return {name for first, others in kinds.items() for name in (first, *others)}

    def decided(self, kind: str) -> dict[str, str]:
        """Return a class's fields, each with the heading it stands under."""
        return {name: heading for heading, kinds in self.fields.items() for name in kinds.get(kind, ())}


def inventory() -> Inventory:
    """Read the page. Raises `ValueError` for what stands on it twice."""
    text, found = PAGE.read_text(), Inventory()
    for chapter in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        into = {"Routes": found.routes, "Fields": found.fields}.get(chapter.split("\n")[0], found.undeclared)
        for section in re.split(r"^### ", chapter, flags=re.MULTILINE)[1:]:
            heading, _, body = section.partition("\n")
            for name, others in _entries(body):
                _add(into.setdefault(heading, {}), name, others)
    _require_once([route for routes in found.routes.values() for route in routes])
    _require_once([(k, name) for kinds in found.fields.values() for k, names in kinds.items() for name in names])
    return found


def shown_on(page: str) -> set[tuple[str, str]]:
    """Return the files, and the functions in them, that a page of docs/ says show something.

    A file that does not begin with `tests/` is one below `tests/serving/`.
    """
    text = (ROOT / "docs" / page).read_text()
    return {(f"{match[1] or 'tests/serving/'}{match[2]}", match[3] or "") for match in _TEST.finditer(text)}


def _entries(body: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return a list's items: what each begins with, and the other names in it."""
    items = re.findall(r"^- (.*?)(?=^- |^$|\Z)", body, flags=re.MULTILINE | re.DOTALL)
    # What is said in brackets is about a name and is none.
    names = [_NAMES.findall(re.sub(r"\([^)]*\)", "", item.split(";")[0])) for item in items]
    return [(each[0], tuple(each[1:])) for each in names]


def _add(entries: dict[str, tuple[str, ...]], name: str, others: tuple[str, ...]) -> None:
    _require_once([*entries, name])
    entries[name] = others


def _require_once(names: list) -> None:
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"docs/inventory.md has twice: {sorted(map(str, twice))}")
