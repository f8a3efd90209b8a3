"""A package of somebody else's, of one module, as CONTRIBUTING shows it."""

import re
import tomllib
from pathlib import Path

_PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
_BLOCKS = re.findall(r"^```(?:python|toml)\n(.*?)^```", _PAGE, re.DOTALL | re.MULTILINE)


def write_package(folder: Path, module: str = "own_probe", text: str | None = None) -> Path:
    """Write an installed package of one module into `folder`: with CONTRIBUTING's text for it, or another."""
    shown = next(block for block in _BLOCKS if block.startswith(f"# {module}.py"))
    entry = next(block for block in _BLOCKS if f'"{module}:' in block)
    (group, points), *_ = tomllib.loads(entry)["project"]["entry-points"].items()
    info = folder / f"{folder.name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {folder.name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
    )
    (folder / f"{module}.py").write_text(text or shown)
    return folder
