"""The command line: mistakes end in one line that says what to change, without a traceback."""

import subprocess
import sys

import pytest


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "deltamask_jax.main", *arguments], capture_output=True, text=True, timeout=120
    )


# Each of these fails before jax is imported, so the whole table takes seconds.
@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "say which config"),
        (["--config=configs/nope.py"], "nope.py"),
        (["--config=configs/quickstart.py", "--config.round=3"], "did you mean 'rounds'"),
        (["--config=configs/quickstart.py", "--config.mask.theta=1"], "did you mean 'mask.theta_"),
        (["--config=configs/quickstart.py", "--config.rounds=x"], "invalid literal"),
        (["--config=configs/quickstart.py", "--confg.rounds=1"], "Unknown command line flag"),
        (["--config=configs/quickstart.py:smoke"], "takes no options"),
        (["--config=configs/vit_b16.py:alhpa=1"], "did you mean 'alpha'"),
        (["--config=configs/quickstart.py", "stray"], "unexpected argument 'stray'"),
    ],
)
def test_mistakes_are_explained(arguments, message):
    result = run(*arguments)
    assert result.returncode != 0
    assert message in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2


def test_errors_of_the_run_are_one_line_too(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = run("--config=configs/quickstart.py", f"--workdir={blocked}/run")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "cannot write to workdir" in result.stderr
