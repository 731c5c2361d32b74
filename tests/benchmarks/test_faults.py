"""An attack table that was begun before goes on with its own rows alone."""

import importlib
import json
import sys

import pytest

from benchmarks import attackers, kills

LISTED = dict(zip(("uniforms", "attack", "share", "defence"), attackers.runs()[0], strict=True))


@pytest.mark.parametrize("rounds, taken_up", [(6, 1), (2, 0)])
def test_rows_of_other_rounds_or_of_no_listed_run_are_not_taken_up(tmp_path, monkeypatch, rounds, taken_up):
    monkeypatch.setitem(sys.modules, "attackers", attackers)  # as beside the script
    monkeypatch.setitem(sys.modules, "kills", kills)
    faults = importlib.import_module("benchmarks.faults")
    row, file, found = {"seed": 0, "accuracy": 0.5, **LISTED}, tmp_path / "faults.json", []
    earlier = {"rounds": 6, "seeds": 1, "rows": [row, row | {"share": 0.9}]}
    file.write_text(json.dumps({"attacks": earlier}))
    monkeypatch.setattr(faults.devices, "keep_compilations", lambda: None)
    monkeypatch.setattr(attackers, "attack_table", lambda rounds, seeds, rows, keep: found.extend(rows))
    options = ["--kills=0", "--matrix=0", f"--attacks={rounds}", f"--json={file}"]
    monkeypatch.setattr(sys, "argv", ["faults.py", *options])
    faults.main()
    assert found == [row] * taken_up
