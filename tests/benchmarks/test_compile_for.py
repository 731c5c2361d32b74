"""What a run dispatches lowers for GPUs and TPUs, and compiles for a TPU where its compiler is installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import compile_for
from deltamask_jax import config_files, devices

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_every_program_lowers_for(platform, monkeypatch):
    """Without the platform: jax.export lowers for machines that are not here."""
    exported = []

    def lowered(jitted, *shapes):
        exported.append(jax.export.export(jitted, platforms=[platform])(*shapes))

    monkeypatch.setattr(compile_for, "lowered", lowered)
    config = config_files.load("configs/digits.py")
    config.model.name, config.model.checkpoint, config.model.trained_blocks = "tiny_vit", "", 1
    config.clients = 2
    mesh = devices.mesh(devices=jax.devices()[:1])
    names = [name for name, *_ in compile_for.programs(config, mesh, chunk=2, examples=8, memory=2**30)]
    assert names == ["prefix", "training chunk", "one step", "flips, top κ", "evaluation", "Σ m_g"]
    assert [each.platforms for each in exported] == [(platform,)] * len(names)


def test_the_costliest_operations_come_first():
    text = "\n".join(
        f'  %{name} = f32[8,{size}]{{1,0}} fusion(%a), metadata={{op_name="jit(f)/{name}"}}, '
        f'backend_config={{"estimated_cycles":"{cycles}"}}'
        for name, size, cycles in (("small", 4, 10), ("large", 2, 30))
    )
    first, second = compile_for.operations(text)
    assert (first["operation"], first["cycles"], first["share"]) == ("large", 30, 0.75)
    assert second["MB of output"] == pytest.approx(8 * 4 * 4 / 1e6) and second["from"] == "jit(f)/small"


def test_operations_of_all_blocks_are_summed_by_where_they_come_from():
    found = [
        {"from": f"jit(step)/{way}(jvp(Vit))/run_blocks/block_{k}/Dense_0/dot", "cycles": cycles}
        for way, k, cycles in (("vmap", 0, 8), ("vmap", 1, 16), ("transpose", 0, 40))
    ]
    found = [{**each, "share": each["cycles"] / 64, "MB of output": 1.0} for each in found]
    backward, forward = compile_for.by_source(found)
    assert (backward["way"], backward["cycles"], backward["operations"]) == ("backward", 40, 1)
    assert (forward["from"], forward["share"], forward["operations"]) == ("block/Dense/dot", 0.375, 2)
    assert forward["MB of output"] == 2


@pytest.mark.parametrize("target", ["v5e", "gpu:v5e", "tpu:v1", ""])
def test_an_unknown_target_is_refused(target):
    with pytest.raises(SystemExit, match="not like tpu:v5e:2x2"):
        compile_for.chips_of(target)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs deltamask_jax[aot]")
def test_a_small_round_compiles_for_a_tpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.compile_for", "--config=configs/digits.py"]
    command += [
        "--target=tpu:v5e:2x2",
        "--examples=8",
        "--model=tiny_vit",
        f"--json={tmp_path / 'rows.json'}",
    ]
    subprocess.run(command, check=True, cwd=ROOT)
    found = json.loads((tmp_path / "rows.json").read_text())
    rows = {row["program"]: row for row in found["rows"]}
    assert 0 < found["share of a product's operations per cycle"] < 1
    assert found["its parts"] and sum(row["share"] for row in found["its parts"]) <= 1.0001
    assert rows["training chunk"]["collectives"] == "none"
    assert 0 < rows["one step"]["its seconds"] < 1 and 0 < rows["training chunk"]["of the chip's"] < 1
