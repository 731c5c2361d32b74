"""`~` is the home folder."""

from pathlib import Path

import pytest

from deltamask_jax.paths import expanded


def test_home(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/runs/a") == Path("/somewhere/runs/a")
    assert expanded("runs/~") == Path("runs/~")
    with pytest.raises(ValueError, match="nobody-by-this-name/x: there is no home folder"):
        expanded("~nobody-by-this-name/x")
