"""The site: `make docs` makes it of the repository's own Markdown, notebooks and docstrings.

Pages stay where they are read on the repository's site. The README is the front page, a link to a file that
is no page becomes a download, and notebooks show their committed outputs.
"""

import dataclasses
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import deltamask_jax  # noqa: E402

project = "deltamask_jax"
author = "the deltamask_jax authors"
release = deltamask_jax.__version__
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/api/*.md",
    "colabs/*.ipynb",
    "launch/README.md",
    "tests/README.md",
    "deltamask_jax/assets/README.md",
]
exclude_patterns = [".*", "build", "runs", "flower-app", "**/__pycache__", "**/golden"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
nb_execution_mode = "off"
myst_heading_anchors = 4
default_role = "code"  # docstrings mark code by single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
add_module_names = False
maximum_signature_line_length = 88
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"deltamask_jax {release}"
html_static_path = ["site"]
html_css_files = ["custom.css"]
html_extra_path = ["site/index.html"]
html_theme_options = {"navigation_with_keys": True}

API = "start methods codecs models data federation"
SIDEBAR = {  # a page of docs/ that is not named here stands under Use
    "Start": "docs/quickstart docs/concepts docs/methods colabs/quickstart colabs/text colabs/codec_anatomy "
    "colabs/tpu_vit_b16",
    "Use": "docs/data docs/models docs/text docs/codecs docs/peft docs/configuration",
    "Run": "docs/performance docs/reliability docs/deployment launch/README",
    "Extend": "docs/your-model-and-data docs/your-method docs/your-codec docs/architecture",
    "Results": "docs/results docs/fidelity deltamask_jax/assets/README",
    "Reference": "docs/wire-format " + " ".join(f"docs/api/{name}" for name in API.split()),
    "Project": "CONTRIBUTING tests/README SECURITY CHANGELOG",
}


def _sidebar() -> str:
    placed = {caption: pages.split() for caption, pages in SIDEBAR.items()}
    named = sum(placed.values(), [])
    found = (f"docs/{path.stem}" for path in sorted((ROOT / "docs").glob("*.md")))
    placed["Use"] += [page for page in found if page not in named]
    trees = []
    for caption, pages in placed.items():
        listed = "\n".join(f"/{page}" for page in pages)
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n")
    return "\n\n" + "\n".join(trees)


def _adapt(app, page: str, source: list[str]) -> None:
    """What the site needs beside a page's text: the sidebar, and links to folders lead to their README."""
    here = (ROOT / page).parent

    def link(found: re.Match) -> str:
        text, target = found.groups()
        if not (here / target).is_dir():
            return found.group()
        readme = here / target / "README.md"
        return f"[{text}]({target.rstrip('/')}/README.md)" if readme.exists() else text

    source[0] = re.sub(r"(?<!!)\[([^]]*)\]\(([^)#:]+)\)", link, source[0])
    if page == root_doc:
        source[0] += _sidebar()


def _readable(app, what: str, name: str, value, options, lines: list[str]) -> None:
    """Docstrings are plain text with `code`: bars and stars mean themselves, a module's indented lines stand
    as they are."""
    shown, literal = [], False
    for line in lines:
        indented = what == "module" and line.startswith("  ")
        if indented and not literal:
            shown += ["", "::", ""]
        elif literal and line and not indented:
            shown.append("")
        literal = indented or (literal and not line)
        shown.append(line if literal or ">>> " in line else _escaped(line))
    lines[:] = shown


def _without_fields(app, what, name, value, options, signature, returns) -> tuple[str, None] | None:
    """A dataclass lists its fields below: its signature would be the same again."""
    return ("", None) if dataclasses.is_dataclass(value) else None


def _escaped(line: str) -> str:
    parts = re.split(r"(`[^`]*`)", line)
    return "".join(part if part.startswith("`") else re.sub(r"([|*])", r"\\\1", part) for part in parts)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", _readable, priority=100)  # before Google's sections are read
    app.connect("autodoc-process-signature", _without_fields)
    app.connect("source-read", _adapt)
