"""The report: what runs wrote, on one page that needs nothing else."""

import base64
import json
import re
from xml.etree import ElementTree

import pytest

from deltamask_jax.reporting import figures, report, table
from tests.reporting.written import a_run, write_run


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    write_run(folder / "mask" / "seed0")
    write_run(folder / "mask" / "seed1", seed=1)
    write_run(folder / "full", rounds=2, finished=False, method="fedavg")
    return report.render(table.find([folder]))


def test_nothing_outside_the_page_is_needed(page):
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert len(sources) > 15 and all(source.startswith("data:image/") for source in sources)
    assert "default-src 'none'" in page


def test_every_picture_is_a_drawing(page):
    drawings = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    for drawing in drawings:
        root = ElementTree.fromstring(base64.b64decode(drawing))
        assert root.tag.endswith("svg") and len(list(root.iter())) > 30
    for caption in (
        "Accuracy against megabytes sent up and down",
        "θ over rounds",
        "θ by layer",
        "Who holds",
        "by how often it was asked",
    ):
        assert caption in page


def test_seeds_are_one_line_of_the_summary_and_unfinished_runs_say_so(page):
    rows = re.findall(r"<tr><td><span class=\"key\".*?</tr>", page, flags=re.S)
    assert len(rows) == 2
    masks = next(row for row in rows if "</span>mask</td>" in row)
    # 80 % and 81 %; probe 60 % in both; 4 rounds of 1,000 bytes
    for cell in ("2", "80.50 ± 0.71", "60.00", "0.5", "0.08", "2"):
        assert f"<td>{cell}</td>" in masks
    assert "full is unfinished: 2 of 3 rounds" in page


def test_settings_that_differ(page):
    table = page.split("Settings that differ")[1].split("</table>")[0]
    assert re.findall(r'class="name">([^<]+)<', table) == ["method", "seed"]
    assert "fedavg" in table and "&lt;b&gt;" in page and "<b>" not in page


def test_a_run_alone_lists_its_settings(tmp_path):
    write_run(tmp_path / "one", finished=False, rounds=0)
    page = report.render(table.find([tmp_path / "one"]))
    assert "mask.theta_init" in page and "Inside the run" in page


def test_client_accuracies_are_drawn_where_the_run_measured_them(tmp_path):
    write_run(tmp_path / "one")
    path = tmp_path / "one" / "metrics.jsonl"
    last = json.loads(path.read_text().splitlines()[-1]) | {
        "client_accuracy_mean": 0.8,
        "client_accuracy_worst": 0.4,
    }
    with path.open("a") as file:
        file.write(json.dumps(last) + "\n")
    assert "Per-client accuracy" in report.render([tmp_path / "one"])


def test_large_payloads_are_cropped(tmp_path):
    write_run(tmp_path / "one")
    shown = report.payload(table.load(tmp_path / "one", "one"))
    assert "900 × 100; its top left 512 × 100" in shown["caption"]


def test_a_torn_line_ends_what_is_shown_and_is_named(tmp_path, caplog):
    write_run(tmp_path / "one")
    path = tmp_path / "one" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-30])
    run = table.load(tmp_path / "one", "one")
    assert [r["round"] for r in run.records] == [0, 1, 2, 3]  # the first line is of round 3 as well
    assert run.records[-1]["accuracy"] == 0.01
    assert run.left_out == ["1 damaged line at the end of metrics.jsonl"]
    page = report.render([tmp_path / "one"])
    assert "Left out: one: 1 damaged line" in page and "one: 1 damaged line" in caplog.text
    first, second, *rest = whole.encode().splitlines(keepends=True)
    path.write_bytes(first + second + b"\xff\n" + b"".join(rest))
    run = table.load(tmp_path / "one", "one")
    assert [r["round"] for r in run.records] == [0, 3] and run.left_out[0].startswith("4 damaged lines")
    path.write_text(whole + '{"round": 4}\n')  # JSON, and no line of ours
    assert len(table.load(tmp_path / "one", "one").left_out) == 1


@pytest.mark.parametrize(
    "file, text",
    [("summary.json", "{"), ("split.json", "[1]"), ("config.json", "3"), ("split.json", "\udcff")],
)
def test_a_broken_run_does_not_cost_the_others(tmp_path, caplog, capsys, file, text):
    write_run(tmp_path / "whole")
    write_run(tmp_path / "broken")
    (tmp_path / "broken" / file).write_text(text, errors="surrogateescape")
    (tmp_path / "whole" / "payload.png").write_bytes(b"torn")
    report.main([str(tmp_path), f"--out={tmp_path}/page.html"])
    page = (tmp_path / "page.html").read_text()
    assert f"Left out: {tmp_path}/broken holds a damaged file" in page and "80.00" in page
    assert "payload.png cannot be shown" in page
    assert f"{tmp_path}/broken" in caplog.text
    assert "page.html: 1 run (1 left out), " in capsys.readouterr().out


def test_the_command_line_names_what_is_wrong(tmp_path, capsys):
    with pytest.raises(SystemExit, match="holds no metrics.jsonl"):
        report.main([str(tmp_path)])
    write_run(tmp_path / "one")
    (tmp_path / "one" / "summary.json").write_text("{")
    with pytest.raises(SystemExit, match="damaged"):
        report.main([str(tmp_path)])
    (tmp_path / "one" / "summary.json").unlink()
    report.main([str(tmp_path)])
    assert (tmp_path / "report.html").stat().st_size > 20_000
    assert "report.html: 1 run, " in capsys.readouterr().out


def test_what_is_no_folder_of_runs_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    write_run(tmp_path / "one")
    for arguments in (
        ["none"],
        ["file"],
        ["one", f"--out={tmp_path}/none/x.html"],
        ["one", f"--out={tmp_path}"],
    ):
        with pytest.raises(SystemExit, match="error: ") as stopped:
            report.main([str(tmp_path / arguments[0]), *arguments[1:]])
        assert str(stopped.value).isprintable() and str(tmp_path) in str(stopped.value)


def page_of(runs, monkeypatch):
    """The page, and whose labels each picture of several runs has; these are not drawn."""
    drawn = []

    def comparison(groups):
        drawn.append([group.label for group in groups])
        return [figures.Picture("data:image/svg+xml;base64,", f"picture {len(drawn)}")]

    monkeypatch.setattr(figures, "comparison", comparison)
    monkeypatch.setattr(report, "load_whole", lambda folders: (runs, []))
    return report.render([]), drawn


@pytest.mark.parametrize("finished, counted", [((True, True), "m/seed0"), ((False, True), "m/again")])
def test_a_seed_that_is_there_twice_counts_once(monkeypatch, finished, counted):
    names = ("m/seed0", "m/again")
    runs = [a_run(name, finished=its) for name, its in zip(names, finished, strict=True)]
    runs.append(a_run("m/seed1", seed=1))
    (members,) = table.group(runs)
    assert [run.name for run in members.runs] == [counted, "m/seed1"]
    page, _ = page_of(runs, monkeypatch)
    (other,) = {*names} - {counted}
    assert re.findall(r"Left out: (\S+): another run has its settings and its seed", page) == [other]


def test_more_groups_than_styles_are_divided_by_their_folders(monkeypatch):
    runs = [a_run(f"{data}/m{k}/seed0", data=data, rounds=k + 2) for data in "ab" for k in range(20)]
    (part,) = {members.part for members in table.group(runs[:24])}
    assert part == ""
    groups = table.group(runs)
    assert len({(members.part, members.style) for members in groups}) == len(groups) == 40
    page, drawn = page_of(runs, monkeypatch)
    assert drawn == [[f"{data}/m{k}" for k in range(20)] for data in "ab"]
    shown = re.findall(r"<h3>(\w+)</h3>|<figcaption>(picture \d)", page)
    assert shown == [("a", ""), ("", "picture 1"), ("b", ""), ("", "picture 2")]


@pytest.mark.parametrize(
    "file, change, said",
    [
        ("diagnostics.jsonl", lambda lines: lines[-1].pop("theta_histogram"), "other: 1 damaged line at"),
        ("diagnostics.jsonl", lambda lines: lines[0]["theta_histogram"].clear(), "other: its pictures, of a"),
        ("split.json", lambda split: split.update(class_names=None), "other holds a damaged file"),
        ("environment.json", lambda its: its.pop("command"), ""),
        ("metrics.jsonl", lambda lines: lines[-1].update(train_loss="x"), "other holds a damaged file"),
    ],
)
def test_what_is_damaged_or_absent_is_named_and_the_rest_is_shown(file, change, said, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "_picture", lambda figure, caption: figures.Picture("data:", caption))
    write_run(tmp_path / "whole", finished=False)
    write_run(tmp_path / "other", seed=1)
    path = tmp_path / "other" / file
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines if file.endswith("l") else lines[0])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report.render(table.find([tmp_path]))
    named = re.findall("Left out: (.*)", page)
    assert len(named) == bool(said) and all(said in what for what in named)
    assert "<summary>whole</summary>" in page
