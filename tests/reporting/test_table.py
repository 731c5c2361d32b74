"""A table of runs: what is read, what is left out, and which runs are one row."""

import dataclasses
import json

import pytest

from deltamask_jax.reporting import table
from tests.reporting.written import a_run, write_run


@pytest.mark.parametrize(
    "finished, runs, accuracy",
    [
        ((True, True, False), "2 of 3", "85.00 ± 7.07"),
        ((True, True, True), "3", "60.00 ± 43.59"),
        ((False, False, False), "3 unfinished", "60.00 ± 43.59"),
    ],
)
def test_a_mean_is_over_the_seeds_that_finished(finished, runs, accuracy):
    seeds = zip((0.8, 0.9, 0.1), finished, strict=True)
    runs_of_all = [a_run(f"m/seed{i}", a, finished=f, seed=i) for i, (a, f) in enumerate(seeds)]
    (members,) = table.group(runs_of_all)
    row = table.summary_row(members)
    assert (row["runs"], row["final accuracy, %"]) == (runs, accuracy)


@pytest.mark.parametrize(
    "changes",
    [
        {"resume": "fresh"},
        {"checkpoint__every": 7},
        {"checkpoint__keep": 7},
        {"max_repeats": 7},
        {"prefix_cache": "off"},
    ],
)
def test_what_a_continuation_may_change_makes_no_group(changes):
    runs = [a_run("m/seed0"), a_run("m/seed1", seed=1, **changes), a_run("other", rounds=9)]
    assert [len(members.runs) for members in table.group(runs)] == [2, 1]


@pytest.mark.parametrize(
    "file, field, value",
    [
        ("metrics", "uplink_bytes", "many"),
        ("metrics", "seconds", None),
        ("metrics", "accuracy", [1]),
        ("clients", "down", [1]),
        ("clients", "up", ["few", "many"]),
        ("clients", "clients", 3),
    ],
)
def test_numbers_that_are_none_leave_out_their_run_alone(file, field, value, tmp_path):
    write_run(tmp_path / "whole")
    write_run(tmp_path / "other")
    path = tmp_path / "other" / f"{file}.jsonl"
    changed = [json.loads(line) | {field: value} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in changed))
    runs, left_out = table.load_whole(table.find([tmp_path]))
    assert [run.workdir.name for run in runs] == ["whole"]
    assert len(left_out) == 1 and "other" in left_out[0] and left_out[0].isprintable()


@pytest.mark.parametrize("file", ["config.json", "summary.json", "split.json", "environment.json"])
@pytest.mark.parametrize("content", [b"[1]", b"3", b"\xff", b"{"])
def test_json_that_is_something_else_leaves_out_its_run(file, content, tmp_path):
    write_run(tmp_path / "one")
    (tmp_path / "one" / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"one holds a damaged file: .*{file} is "):
        table.load(tmp_path / "one", "one")


def test_a_summary_that_lacks_all_leaves_out_its_run(tmp_path):
    write_run(tmp_path / "one")
    (tmp_path / "one" / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match="summary.json is damaged.* remove it, and the run's own command"):
        table.load(tmp_path / "one", "one")


def test_parts_are_small_whatever_the_folders_are():
    flat = [f"m{i}" for i in range(30)]
    uneven = [f"a/m{i}" for i in range(30)] + [f"b/x/y{i}" for i in range(3)]
    assert [len(its) for its in table._parts(flat).values()] == [24, 6]
    parts = table._parts(uneven)
    assert {name: len(its) for name, its in parts.items()} == {"a 1": 24, "a 2": 6, "b": 3}
    assert table._parts(["a/x", "a/y"]) == {"": ["a/x", "a/y"]}


def test_a_row_has_the_numbers_of_its_records():
    """Bytes of all rounds, bits and seconds of those after the head's."""
    names = ("round", "accuracy", "uplink_bytes", "uplink_bpp", "downlink_bytes", "downlink_bpp", "seconds")
    lines = [
        (0, 0.5, 1_000_000, 9.0, 2_000_000, 8.0, 90.0),
        (1, 0.9, 3_000_000, 0.5, 4_000_000, 1.0, 1.0),
        (2, 0.7, 3_000_000, 1.5, 4_000_000, 3.0, 2.0),
        (3, None, 3_000_000, 1.0, 4_000_000, 2.0, 30.0),
    ]
    records = [dict(zip(names, line, strict=True)) for line in lines]
    records[1] |= {"client_accuracy_worst": 0.2, "client_accuracy_jain": 0.7}
    records[2] |= {"client_accuracy_worst": 0.4, "client_accuracy_jain": 0.8}
    run = dataclasses.replace(a_run("m/seed0", clients=4), records=records)
    row = table.summary_row(*table.group([run]))
    expected = {
        "final accuracy, %": "70.00",
        "best, %": "90.00",
        "up and down, MB": "24",
        "per client, MB": "6",
        "up, bpp": "1",
        "down, bpp": "2",
        "up, MB": "10",
        "down, MB": "14",
        "s per round": "2.00",
        "rounds": "3",
        "worst tenth of clients, %": "40.00",
        "Jain's index": "0.800",
    }
    assert {name: row[name] for name in expected} == expected


def test_traffic_of_a_client_is_of_all_rounds_and_its_count_of_those_after_the_head_s(tmp_path):
    write_run(tmp_path / "one")  # whose rounds 0 … 3 ask client 0, and client round mod 3
    asked, down, up = table.load(tmp_path / "one", "one").traffic[1]
    assert (asked, down, up) == (1, pytest.approx(9e-6), pytest.approx(2e-6))
    asked, down, up = table.load(tmp_path / "one", "one").traffic[0]
    assert (asked, down, up) == (4, pytest.approx(54e-6), pytest.approx(8e-6))


@pytest.mark.parametrize(
    "name, label",
    [
        ("lr3/seed0", "lr3"),
        ("lr3_s0", "lr3"),
        ("a-seed-0", "a"),
        ("vit_s14", "vit_s14"),  # its seed is 0
        ("clients0", "clients0"),
        ("seed0", ""),
        ("epochs10", "epochs10"),
    ],
)
def test_only_the_seed_s_own_number_is_cut_from_a_name(name, label):
    run = a_run(name)
    assert table._without_seed(run) == label
    assert table.group([run])[0].label == (label or name)
