"""Who may import whom: docs/architecture.md says it, the code keeps it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "deltamask_jax"


def layers() -> dict[str, int]:
    """'codecs' -> how high its layer stands in the page's table, from 1."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text[text.index("| layer |") :].partition("\n\n")[0].splitlines()[2:]
    rows = [row.strip("| ").split(" | ") for row in reversed(table)]
    order = list(dict.fromkeys(layer for layer, _ in rows))
    return {
        name: 1 + order.index(layer) for layer, names in rows for name in re.findall(r"`([\w.]+)`", names)
    }


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, at its top or later, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("deltamask_jax.") for name in found if name.startswith("deltamask_jax.")}


def layer_of(module: str, known: dict[str, int]) -> int | None:
    folder, _, rest = module.partition(".")
    return known.get(f"{folder}.{rest.partition('.')[0]}", known.get(folder))


def test_modules_import_from_lower_layers_only():
    known, wrong = layers(), []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        mine = layer_of(module, known)
        assert mine, f"{module} is in no layer of docs/architecture.md"
        for other in imported(path):
            theirs = layer_of(other, known)  # none: a value of the package's own, like __version__
            if theirs and other.partition(".")[0] != module.partition(".")[0] and theirs >= mine:
                wrong.append(f"{module} (layer {mine}) imports {other} (layer {theirs})")
    assert not wrong, "\n".join(wrong)


def test_the_table_names_what_exists():
    for name in layers():
        path = PACKAGE / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), name
