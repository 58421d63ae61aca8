"""Imports between packages go in the direction that CONTRIBUTING.md states."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import vqkern

PACKAGE = Path(vqkern.__file__).parent
CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"


def levels() -> list[list[str]]:
    """The chain of the document, what others are built on last."""
    (chain,) = re.findall(r"Imports point one way: `([^`]*)`", CONTRIBUTING.read_text())
    return [re.findall(r"\w+", level) for level in chain.split("->")]


def imported(file: Path) -> Iterator[str]:
    """Packages and modules beside `vqkern/__init__.py` that a file imports, at any place in it."""
    folder = ["vqkern", *file.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            paths = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) - node.level + 1] if node.level else []
            module = start + (node.module or "").split(".")
            paths = [[*filter(None, module), alias.name] for alias in node.names]
        else:
            continue
        yield from (path[1] for path in paths if path[0] == "vqkern" and len(path) > 1)


def test_imports_point_one_way():
    rank = {name: number for number, level in enumerate(levels()) for name in level}
    known = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    known -= {"__init__", "__pycache__", "recipes"}
    assert set(rank) == known
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imported(file):
            # What `vqkern` itself exports comes from ops and quantizers.
            target = name if name in known else "quantizers"
            if name in ("__version__", own) or own == "__init__":
                continue
            if rank[target] <= rank[own]:
                wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert not wrong
