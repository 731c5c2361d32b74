"""Writes docs/configuration.md from configs/common.py, its comments, and the ranges in config.py.

python -m docs.configuration
"""

import ast
import inspect
import io
import textwrap
import tokenize
from pathlib import Path

from configs import common
from deltamask_jax import config as config_lib

HEAD = """# Configuration reference

Every setting of a run, with its default. Written by `python -m docs.configuration` from
[`configs/common.py`](../configs/common.py); other configs start there and change a few lines. On the
command line: `--config.mask.theta_init=0.9`.
"""
TOP = "General"


def comments(alone: bool = False) -> dict[int, str]:
    """Line number -> comment of configs/common.py, without its #; `alone`: those on lines of their own."""
    tokens = tokenize.generate_tokens(io.StringIO(inspect.getsource(common)).readline)
    found = [t for t in tokens if t.type == tokenize.COMMENT]
    return {t.start[0]: t.string.lstrip("# ") for t in found if not alone or t.line.lstrip()[0] == "#"}


def meanings() -> dict[str, str]:
    """Dotted name -> comment beside its assignment; of a section, on the lines above it."""
    found, notes, own_lines = {}, comments(), comments(alone=True)
    tree = ast.parse(inspect.getsource(common))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        name = ast.unparse(node.targets[0]).removeprefix("config.")
        beside = [notes[line] for line in range(node.lineno, node.end_lineno + 1) if line in notes]
        above, line = [], node.lineno - 1
        while line in own_lines and not beside:
            above.insert(0, own_lines[line])
            line -= 1
        found[name] = " ".join(beside or above)
    return found


def allowed(name: str) -> str:
    """The values config.py accepts."""
    if name in config_lib.CHOICES:
        return ", ".join(f"`{choice}`" for choice in config_lib.CHOICES[name])
    if name not in config_lib.RANGES:
        return ""
    low, high = config_lib.RANGES[name]
    return f"≥ {low:g}" if high >= 1e6 else f"{low:g} … {high:g}"


def page() -> str:
    """The whole document."""
    meaning, sections = meanings(), {}
    settings = config_lib.flatten(common.get_config())
    for name in meaning:
        if name in settings or name == "codec.clients":  # an empty table of its own, by default
            section = name.rpartition(".")[0]
            sections.setdefault(section, []).append(name)
    lines = [HEAD]
    for section, names in sections.items():
        about = meaning.get(section, "")
        lines += [
            f"## {f'`{section}`' if section else TOP}\n",
            *([textwrap.fill(about, 100) + "\n"] if about else []),
        ]
        lines += ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
        for name in names:
            text = meaning[name].replace("|", "\\|")
            lines.append(f"| `{name}` | `{settings.get(name, {})!r}` | {allowed(name)} | {text} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page())
