"""The form of every Markdown page: lines that fit, cells that fit, links that lead somewhere.

It reads files and imports nothing of the package, so that a commit hook may run it.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (".", "docs", "docs/api", "launch", "tests", "deltamask_jax/assets")
PAGES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))

LINE, CODE, CELL = 100, 110, 100  # characters
# Pages whose form is not held yet; a page whose lines and cells fit has no place here.


def names(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def visible(text: str) -> str:
    """What a reader sees of Markdown: links without their addresses, code without its marks."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("`", "").replace("**", "")


def too_wide(path: Path) -> list[str]:
    found, code = [], False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        code ^= line.lstrip().startswith("```")
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)
            wide = max(len(visible(cell.strip())) for cell in cells) > CELL
        else:
            shown = re.sub(r"\]\([^)]*\)|https?://\S+", "", line)  # an address cannot be broken
            wide = len(shown) > (CODE if code else LINE)
        if wide:
            found.append(f"{names(path)}:{number}: {line[:60]}…")
    return found


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_lines_and_cells_fit(page):
    assert not (wide := too_wide(page)), "\n".join(wide)


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_nothing_was_left_to_be_filled_in(page):
    assert not re.findall(r"@@\w*|TODO|FIXME|XXX", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_a_page_has_one_title(page):  # the site's sidebar shows every one
    titles = re.findall(r"^# .*", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), flags=re.M)
    assert len(titles) == 1, titles


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target.replace("\\", "")).exists(), target


def anchors(page: Path) -> set[str]:
    """GitHub's addresses of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", visible(title).lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_to_headings_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


def test_the_wire_format_points_into_no_code():
    text = (ROOT / "docs" / "wire-format.md").read_text()
    assert not re.findall(r"\.py\b|`(?:codecs|tests|deltamask_jax)[./]|\w+\._\w+", text)


def test_what_is_not_sure_stands_on_the_page_of_fidelity():
    sources = [*PAGES, *(ROOT / "deltamask_jax").rglob("*.py"), *(ROOT / "launch").glob("*.py")]
    scattered = [names(path) for path in sources if "we understand" in path.read_text()]
    assert not scattered, "say it in docs/fidelity.md"
