"""Config files are found in a clone, in an installed package, and beside a user's own."""

import subprocess
import sys
from pathlib import Path

from deltamask_jax import config_files

ROOT = Path(__file__).parents[1]
PRINT_ROUNDS = """
import sys
from absl import app
from deltamask_jax import main
app.run(lambda _: print(main._CONFIG.value.rounds), flags_parser=main.parse_flags)
"""


def rounds_of(folder, *arguments):
    command = [sys.executable, "-c", PRINT_ROUNDS, *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_shipped_configs_are_found_from_anywhere(tmp_path):
    result = rounds_of(tmp_path, "--config", "configs/quickstart.py", "--config.rounds=7")
    assert (result.stdout, result.returncode) == ("7\n", 0), result.stderr


def test_a_users_own_config_builds_on_the_shipped_ones(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from configs import quickstart\n\ndef get_config():\n"
        "    config = quickstart.get_config()\n    config.rounds = 9\n    return config\n"
    )
    assert rounds_of(tmp_path, "--config=mine.py").stdout == "9\n"


def test_an_unknown_file_is_answered_with_those_there_are(tmp_path):
    result = rounds_of(tmp_path, "--config=configs/quickstrat.py")
    assert result.returncode == 1 and "quickstart, vit_b16" in result.stderr


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text("from configs.quickstart import get_config\n")
    assert config_files.locate("~/mine.py:a=~") == f"{tmp_path}/mine.py:a=~"
    assert config_files.load("~/mine.py").rounds == 12


def test_a_file_in_the_working_directory_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.py").write_text("")
    assert config_files.locate("configs/quickstart.py:smoke") == "configs/quickstart.py:smoke"
    assert config_files.locate("configs/vit_b16.py:smoke") == f"{config_files.FOLDER}/vit_b16.py:smoke"


def test_the_package_is_found_beside_its_clone(tmp_path):
    """From the folder that holds it, a clone called deltamask_jax must not hide the package."""
    (tmp_path / "deltamask_jax").symlink_to(ROOT)
    code = "import deltamask_jax as dm; print(dm.load_config)"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
