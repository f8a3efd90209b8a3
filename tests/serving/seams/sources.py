"""vLLM's sources, read and not run: whether a seam is there. So a version can be asked that cannot be imported here."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_WORDS = re.compile(r"(?P<module>\S+) (?P<name>[\w.]+)(?:\((?P<parameters>[\w, ]+)\))?(?: -> (?P<callee>\w+))?")
Function = ast.FunctionDef | ast.AsyncFunctionDef
Node = ast.AST


@dataclass
class Sources:
    """A folder in which `vllm/` lies."""

    folder: Path
    _modules: dict[str, ast.Module | None] = field(default_factory=dict)

    def version(self) -> str:
        """Return the version by the folder's metadata."""
        metadata = next(self.folder.glob("vllm*.dist-info/METADATA")).read_text()
        return re.search(r"^Version: (\S+)", metadata, re.MULTILINE)[1]

    def misses(self, seam: str) -> str | None:
        """Return what is missing of a seam, or None. Of alternatives, what the first one misses."""
        found = [self._misses(words) for words in seam.split(" or ")]
        return None if None in found else found[0]

    def differs(self, seam: str) -> str | None:
        """Return what the first of a seam's alternatives misses where another one holds."""
        return None if self.misses(seam) else self._misses(seam.split(" or ")[0])

    def _misses(self, words: str) -> str | None:
        seam = _WORDS.fullmatch(words)
        if seam is None:
            raise ValueError(f"not the words of a seam: {words!r}")
        owner, *attribute = seam["name"].split(".")
        place = self._find(seam["module"], owner)
        if place is None:
            return f"{seam['module']} has no {owner}"
        for name in attribute:
            place = self._member(*place, name)
            if place is None:
                return f"{owner} has no {name}"
        wanted = [each.strip() for each in (seam["parameters"] or "").split(",") if each.strip()]
        if wanted and not _in_order(wanted, _parameters(place[1])):
            return f"{seam['name']} takes {', '.join(_parameters(place[1])) or 'nothing'}, not {', '.join(wanted)}"
        if seam["callee"] and seam["callee"] not in _called(place[1]):
            return f"{seam['name']} does not call {seam['callee']}"
        return None

    def _module(self, name: str) -> ast.Module | None:
        if name not in self._modules:
            path = self.folder.joinpath(*name.split("."))
            file = next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)
            self._modules[name] = ast.parse(file.read_text()) if file else None
        return self._modules[name]

    def _find(self, module: str, name: str) -> tuple[str, Node] | None:
        """Return where a module's name is defined, through whatever imports it, and its definition."""
        tree = self._module(module)
        for node in _statements(tree.body) if tree else ():
            match node:
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef() if node.name == name:
                    return module, node
                case ast.Assign() | ast.AnnAssign() if name in _targets(node) or _is_made_on_demand(node, name):
                    return module, node
                case ast.ImportFrom() if (found := self._through(module, node, name)) is not None:
                    return found
        submodule = self._module(f"{module}.{name}")
        return None if submodule is None else (f"{module}.{name}", submodule)

    def _through(self, module: str, node: ast.ImportFrom, name: str) -> tuple[str, Node] | None:
        own = {each.asname or each.name: each.name for each in node.names}
        if "*" in own:
            return self._find(self._absolute(module, node), name)
        return self._find(self._absolute(module, node), own[name]) or (module, node) if name in own else None

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = module.split(".")
        if (self.folder.joinpath(*package) / "__init__.py").is_file():
            package.append("")
        return ".".join([*package[: -node.level], *filter(None, [node.module])])

    def _member(self, module: str, owner: Node, name: str) -> tuple[str, Node] | None:
        """Return a class's attribute, its own or that of what it derives from."""
        if not isinstance(owner, ast.ClassDef):
            return None
        found = [node for node in _statements(owner.body) if name in _names(node)]
        if found:
            return module, found[-1]  # after overloads
        inner = (node for node in ast.walk(owner) if isinstance(node, ast.Assign | ast.AnnAssign))
        if own := next((node for node in inner if f"self.{name}" in _targets(node)), None):
            return module, own
        for base in owner.bases:
            text = ast.unparse(base).split("[")[0]
            place = self._find(module, text) if text.isidentifier() else None
            if place and (inherited := self._member(*place, name)):
                return inherited
        return None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, those under an `if` or a `try` too."""
    for node in body:
        yield node
        for part in ("body", "orelse", "handlers") if isinstance(node, ast.If | ast.Try) else ():
            for each in getattr(node, part, []):
                yield from _statements(each.body if isinstance(each, ast.ExceptHandler) else [each])


def _is_made_on_demand(node: ast.Assign | ast.AnnAssign, name: str) -> bool:
    """Return whether a module's table of what it imports when asked has the name, as `vllm/__init__.py` does."""
    keys = node.value.keys if isinstance(node.value, ast.Dict) else ()
    return any(isinstance(key, ast.Constant) and key.value == name for key in keys)


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    return _targets(node) if isinstance(node, ast.Assign | ast.AnnAssign) else []


def _targets(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [ast.unparse(each) for target in targets for each in getattr(target, "elts", [target])]


def _parameters(node: Node) -> list[str]:
    if not isinstance(node, Function):
        return []
    each = node.args
    return [parameter.arg for parameter in (*each.posonlyargs, *each.args, *each.kwonlyargs)]


def _in_order(wanted: list[str], found: list[str]) -> bool:
    rest = iter(found)
    return all(each in rest for each in wanted)


def _called(node: Node) -> set[str]:
    calls = (each.func for each in ast.walk(node) if isinstance(each, ast.Call))
    return {getattr(func, "attr", None) or getattr(func, "id", "") for func in calls}
