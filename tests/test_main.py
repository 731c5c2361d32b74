"""The command line: mistakes end in one line that says what to change, without a traceback."""

import os
import subprocess
import sys

import pytest


def run(*arguments, **environment):
    command = [sys.executable, "-m", "deltamask_jax.main", *arguments]
    environment = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


# Each of these fails before jax is imported, so the whole table takes seconds.
@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "say which config"),
        (["--config=configs/nope.py"], "nope.py"),
        (["--config=configs/quickstart.py", "--config.round=3"], "did you mean 'rounds'"),
        (["--config=configs/quickstart.py", "--config.mask.theta=1"], "did you mean 'mask.theta_"),
        (["--config=configs/quickstart.py", "--noconfig.tensorbord"], "did you mean 'tensorboard'"),
        (["--config=configs/quickstart.py", "--noconfig.mask.theta"], "did you mean 'mask.theta_"),
        (["--config=configs/quickstart.py", "--config.rounds=x"], "invalid literal"),
        (["--config=configs/quickstart.py", "--confg.rounds=1"], "Unknown command line flag"),
        (["--config=configs/quickstart.py:smoke"], "takes no options"),
        (["--config=configs/vit_b16.py:alhpa=1"], "did you mean 'alpha'"),
        (["--config=configs/quickstart.py", "stray"], "unexpected argument 'stray'"),
        (["--config=configs/quickstart.py", "config"], "unexpected argument 'config'"),
        (["-config"], "Missing value for flag -config"),
        (
            ["--workdir", "config", "--config=configs/quickstart.py", "--config.rounds=0"],
            "must be at least 1",
        ),
    ],
)
def test_mistakes_are_explained(arguments, message):
    result = run(*arguments)
    assert result.returncode != 0
    assert message in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2


@pytest.mark.parametrize("started", ["-m deltamask_jax.main", "deltamask"])
def test_help_tells_the_flags_however_it_is_started(tmp_path, started):
    (tmp_path / "deltamask").write_text("from deltamask_jax.main import entry_point\nentry_point()\n")
    command = [sys.executable, *started.split(), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path).stdout
    assert "--config=configs/quickstart.py" in shown and "--workdir: Folder the run writes to" in shown


def test_errors_of_the_run_are_one_line_too(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = run("--config=configs/quickstart.py", f"--workdir={blocked}/run")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "cannot write to workdir" in result.stderr


CONFIG = """from configs import common

def get_config():
    config = common.get_config()
    {line}
    return config
"""


# None of these reaches jax.
@pytest.mark.parametrize(
    "text, message",
    [
        (CONFIG.format(line="config.clientz = 5"), "unknown setting config.clientz: did you mean 'clients'?"),
        (CONFIG.format(line="config.rounds = None"), "config.rounds=None (NoneType): must be a whole number"),
        (
            CONFIG.format(line="config.rounds = 'ten'"),
            "mine.py, line 5: TypeError: Could not override",
        ),
        (CONFIG.format(line="config.mask.kappa = float('nan')"), "config.mask.kappa=nan: must be a number"),
        (CONFIG.format(line="config.rounds = 1 / 0"), "mine.py, line 5: ZeroDivisionError: division by zero"),
        (CONFIG.format(line="open('nothing-here')"), "mine.py, line 5: FileNotFoundError"),
        (CONFIG.format(line="import nothing_here"), "mine.py, line 5: ModuleNotFoundError"),
        (CONFIG.format(line="return None"), "mine.py: get_config() returned NoneType, no ConfigDict"),
        (CONFIG.format(line="return {'rounds': 3}"), "returned dict, no ConfigDict"),
        ("rounds = 3\n", "mine.py has no get_config()"),
        ("def get_config(:\n", "mine.py, line 1: SyntaxError: invalid syntax"),
        ("def get_config(a, b):\n    pass\n", "mine.py: TypeError: get_config() missing 2 required"),
    ],
)
def test_a_config_file_that_gives_no_config_is_answered_in_one_line(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    result = run(f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run")
    assert result.returncode == 1 and message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_what_a_file_leaves_open_the_command_line_may_not_say_wrongly(tmp_path):
    (tmp_path / "mine.py").write_text(CONFIG.format(line="config.rounds = None"))
    result = run(f"--config={tmp_path}/mine.py", "--config.rounds=ten", f"--workdir={tmp_path}/run")
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"JAX_PLATFORMS": "abacus"}, "jax cannot start (JAX_PLATFORMS: abacus)"),
        ({"JAX_ENABLE_X64": "1"}, "JAX_ENABLE_X64=True changes"),
        ({"JAX_ENABLE_X64": "perhaps"}, "invalid truth value 'perhaps' for environment 'JAX_ENABLE_X64'"),
    ],
)
def test_a_jax_that_cannot_run_this_is_answered_in_one_line(tmp_path, environment, message):
    result = run("--config=configs/quickstart.py", f"--workdir={tmp_path}/run", **environment)
    assert result.returncode == 1 and message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()
