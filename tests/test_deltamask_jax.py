"""`import deltamask_jax as dm`: what the README shows."""

import re
from pathlib import Path

import pytest

import deltamask_jax as dm
from deltamask_jax.methods.deltamask import flip_codecs
from tests.conftest import tiny_config


def test_the_readme_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.S)
    assert "import deltamask_jax as dm" in code and code.count("\n") <= 14
    asked = []

    def load_config(*arguments, **more):
        asked.append((arguments, more))
        return tiny_config(rounds=1, head__init="he", model__trained_blocks=1)

    real = dm.load_config("quickstart", {"codec.name": "side_info"}, rounds=2)
    assert (real.codec.name, real.rounds, real.mask.uniforms) == ("side_info", 2, "per_client")
    monkeypatch.setattr(dm, "load_config", load_config)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert asked == [(("quickstart", {"codec.name": "side_info"}), {"rounds": 2})]
    assert capsys.readouterr().out.endswith(" MB\n")
    assert (tmp_path / "runs" / "from_python" / "summary.json").exists()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"codec.nam": "rice"}, "unknown setting config.codec.nam: did you mean 'codec.name'"),
        ({"rounds": "two"}, "config.rounds='two' .*must be a whole number"),
        ({"rounds": 0}, "config.rounds=0: must be at least 1"),
        ({"codec": 3}, "unknown setting config.codec: did you mean"),
        ({"codec.clients": 3}, "config.codec.clients=3 .*must be a table"),
    ],
)
def test_wrong_changes_are_named(changes, said):
    with pytest.raises(ValueError, match=said):
        dm.load_config("quickstart", changes)


def test_clients_of_another_codec_can_be_set_from_python():
    config = dm.load_config("quickstart", {"codec.clients": {"0-4": {"name": "rice"}}})
    assert config.codec.clients["0-4"].name == "rice"
    assert [codec.name for codec in flip_codecs(config)] == ["rice"] * 5 + ["side_info"] * 5


def test_modules_come_when_they_are_asked_for():
    assert dm.methods.METHODS["deltamask"] and dm.models.PRESETS
    with pytest.raises(AttributeError, match="has no 'modles'"):
        _ = dm.modles
    with pytest.raises(OSError):
        dm.load_config("quikstart")
