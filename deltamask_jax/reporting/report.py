"""One HTML page about one run or many, from what they left in their workdirs; nothing is recomputed.

    python -m deltamask_jax.report runs/quickstart
    python -m deltamask_jax.report runs/table_iid --out=report.html     # every run below that folder

The page needs no network: pictures and style are inside. Unfinished runs are shown as far as they are.
"""

import argparse
import base64
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

from deltamask_jax.paths import expanded
from deltamask_jax.reporting import figures
from deltamask_jax.reporting.table import Run, columns, find, group, load_whole, summary_row

_TEMPLATE = "report.html"
_SHOWN_PIXELS = 512  # side of the part of a payload that is shown
_MOST_PIXELS = 60_000_000  # larger payload images are not opened


def differences(tables: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Name -> each table's value, for the names whose value is not the same in all of them."""
    names = dict.fromkeys(name for table in tables for name in table)
    values = {name: [_text(table.get(name, "–")) for table in tables] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def payload(run: Run) -> dict[str, str] | None:
    """The top left part of the payload's image, pixel for pixel, and a line about it."""
    path = run.workdir / "payload.png"
    if not path.exists():
        return None
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                return {"uri": "", "caption": f"{width} × {height} bytes: too large to show"}
            shown = image.crop((0, 0, min(width, _SHOWN_PIXELS), min(height, _SHOWN_PIXELS)))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        return {"uri": "", "caption": f"payload.png cannot be shown: {error}"}
    file = io.BytesIO()
    shown.save(file, "PNG")
    part = "" if shown.size == (width, height) else f"; its top left {shown.width} × {shown.height} bytes"
    return {
        "uri": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode(),
        "caption": f"last client's payload of the last round, one byte per pixel: {width} × {height}{part}",
    }


def template():
    """The page's template.

    Raises:
        ValueError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise ValueError('the report needs: pip install "deltamask_jax[report]"') from None
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(_TEMPLATE)


def render(folders: list[Path]) -> str:
    """The page. What is damaged is named there and in a warning; the rest is shown.

    Args:
        folders: of runs, as from `find`.

    Raises:
        ValueError: no run can be read, or jinja2 is not installed.
    """
    return _page(*load_whole(folders))


def _page(runs: list[Run], left_out: list[str]) -> str:
    page = template()
    groups = group(runs)
    counted = [run.name for members in groups for run in members.runs]
    left_out = left_out + [
        f"{run.name}: another run has its settings and its seed" for run in runs if run.name not in counted
    ]
    for what in left_out:
        logging.warning("left out: %s", what)
    rows = list(map(summary_row, groups))
    parts = {part: [g for g in groups if g.part == part] for part in dict.fromkeys(g.part for g in groups)}
    with matplotlib.rc_context(figures.RC):
        inside, failures = [], []
        for run in runs:
            try:
                pictures = figures.of_run(run)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                pictures = []
                failures.append(
                    f"{run.name}: its pictures, of a damaged file ({type(error).__name__}: {error})"
                )
            inside.append((run, pictures, payload(run)))
        for what in failures:
            logging.warning("left out: %s", what)
        return page.render(
            left_out=left_out + failures,
            title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
            groups=groups,
            rows=list(zip(groups, rows, strict=True)),
            columns=columns(rows),
            curves={part: figures.comparison(its) for part, its in parts.items()},
            parts=parts,
            runs=inside,
            settings=differences([run.config for run in runs]),
            unequal=differences([_versions(run) for run in runs]),
            environment={
                name: _text(value)
                for name, value in _versions(runs[0]).items()
                if all(run.environment.get(name) == value for run in runs)
            },
            config={name: _text(value) for name, value in runs[0].config.items()} if len(runs) == 1 else {},
        )


def _versions(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.environment.items() if name != "command"}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def main(argv: list[str] | None = None) -> None:
    """The command `python -m deltamask_jax.report FOLDER…`."""
    parser = argparse.ArgumentParser(
        prog="python -m deltamask_jax.report", description=__doc__.split("\n")[0]
    )
    parser.add_argument("workdir", nargs="+", type=Path, help="folder of a run, or of many runs")
    parser.add_argument("--out", type=Path, help="default: report.html in the first folder")
    arguments = parser.parse_args(argv)
    try:
        folders = find(arguments.workdir)
        out = expanded(arguments.out or arguments.workdir[0] / "report.html")
        runs, left_out = load_whole(folders)
        out.write_text(_page(runs, left_out), encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    missing = f" ({len(folders) - len(runs)} left out)" if len(runs) < len(folders) else ""
    print(f"{out}: {len(runs)} run{'s' * (len(runs) > 1)}{missing}, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
