"""What our own files import from vLLM: each a seam, read off the files themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

SERVING = Path(__file__).parents[3] / "serving"


def imported() -> dict[str, tuple[str, ...]]:
    """Return by file, as `table.SEAMS` has it, what it imports from vLLM, but for what a `try` imports."""
    files = {str(file.relative_to(SERVING.parent)): ast.parse(file.read_text()) for file in SERVING.rglob("*.py")}
    found = {name: tuple(dict.fromkeys(_imports(tree))) for name, tree in sorted(files.items())}
    return {name: seams for name, seams in found.items() if seams}


def _imports(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Try):
        return
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
        yield from (f"{node.module} {each.name}" for each in node.names)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child)
