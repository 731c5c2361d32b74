"""Where compiled programs are kept, and that a run does without; how large weights are divided."""

import pwd
import tempfile

import jax
import pytest
from jax.sharding import PartitionSpec

from deltamask_jax import devices


@pytest.fixture
def kept(monkeypatch):
    """What jax.config is told."""
    told = {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    return told


def test_compiled_programs_stay_in_the_users_cache(kept, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    devices.keep_compilations()
    assert kept["jax_compilation_cache_dir"] == f"{tmp_path}/deltamask_jax/xla"
    assert not any((tmp_path / "deltamask_jax" / "xla").iterdir()) and not caplog.text


def no_home(monkeypatch, tmp_path):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    return "there is no home folder"


def a_file(monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return "cache/deltamask_jax"


def a_full_disk(monkeypatch, tmp_path):
    def full(dir):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    return "No space left on device"


@pytest.mark.parametrize("made_unusable", [no_home, a_file, a_full_disk])
def test_without_a_cache_folder_a_line_says_so(kept, monkeypatch, tmp_path, caplog, made_unusable):
    reason = made_unusable(monkeypatch, tmp_path)
    devices.keep_compilations()
    (line,) = caplog.messages
    assert not kept and reason in line and "JAX_COMPILATION_CACHE_DIR" in line


@pytest.mark.parametrize("made_unusable", [a_file, a_full_disk])
def test_a_named_cache_folder_that_cannot_be_written_is_not_used(
    kept, monkeypatch, tmp_path, caplog, made_unusable
):
    """jax itself would warn of every program it compiles."""
    made_unusable(monkeypatch, tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    devices.keep_compilations()
    (line,) = caplog.messages
    assert kept == {"jax_compilation_cache_dir": None}
    assert line.endswith("JAX_COMPILATION_CACHE_DIR must name a folder that can be written")


@pytest.mark.parametrize("named", ["", "gs://bucket/xla", "{}/new/folder"])
def test_a_named_cache_is_left_to_jax(kept, monkeypatch, tmp_path, caplog, named):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", named.format(tmp_path))
    devices.keep_compilations()
    assert not kept and not caplog.text


MIB = 2**20
V2 = {"memory.max": 100 * MIB, "memory.current": 70 * MIB}
V1 = {"memory/memory.limit_in_bytes": 100 * MIB, "memory/memory.usage_in_bytes": 70 * MIB}
FILES = f"anon {50 * MIB}\nactive_file {8 * MIB}\ninactive_file {12 * MIB}\n"


@pytest.mark.parametrize(
    "limits, mebibytes",
    [
        ({}, 1000),
        (V2 | {"memory.stat": ""}, 30),
        (V2 | {"memory.stat": FILES}, 50),
        (V2 | {"memory.stat": FILES, "memory.max": "max\n"}, 1000),
        (V2 | {"memory.stat": FILES, "memory.max": 2**40}, 1000),
        (V2 | {"memory.stat": "", "memory.current": 101 * MIB}, 0),
        (V1 | {"memory/memory.stat": FILES}, 50),
        (V1 | {"memory/memory.stat": FILES, "memory/memory.limit_in_bytes": 9223372036854771712}, 1000),
    ],
)
def test_a_container_has_no_more_memory_than_its_limit_leaves(tmp_path, monkeypatch, limits, mebibytes):
    files = {"proc/meminfo": f"MemFree: 5 kB\nMemAvailable: {1000 * 1024} kB\n"}
    for name, content in (files | {f"sys/fs/cgroup/{name}": text for name, text in limits.items()}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(str(content))
    monkeypatch.setattr(devices, "SYSTEM", tmp_path)
    assert devices.available_ram() == mebibytes * MIB


def test_large_arrays_alone_are_divided_along_their_longest_axis():
    assert devices.weight_spec((64, 6, 256), 2) == PartitionSpec(None, None, "weights")
    assert devices.weight_spec((256, 63), 2) == PartitionSpec("weights")
    assert devices.weight_spec((255, 63), 2) == devices.weight_spec((64,), 2) == PartitionSpec()
    with pytest.raises(ValueError, match="weight_shards=3"):
        devices.mesh(3, [None] * 4)
