"""The hub: reached or not, and what it refuses, in one line and without waiting."""

import huggingface_hub
import pytest

from deltamask_jax import hub


class _Session:
    def __init__(self, error=None):
        self.error = error

    def head(self, url, timeout):
        assert timeout <= 5
        if self.error:
            raise self.error


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: _Session(ConnectionError("down\nagain")))
    assert hub.unreachable() == f"{huggingface_hub.constants.ENDPOINT} cannot be reached (ConnectionError)"
    with pytest.raises(OSError, match="nothing can be pushed to org/it: .* leave out --push-to-hub"):
        hub.check("org/it")
    monkeypatch.setattr("huggingface_hub.utils.get_session", _Session)
    hub.check("org/it")


@pytest.mark.parametrize("name", ["it", "org/it/there", "org/it!", ""])
def test_what_is_no_repository_is_refused_before_the_hub_is_asked(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: pytest.fail("asked"))
    with pytest.raises(ValueError, match="is no hub repository"):
        hub.check(name)


def test_a_refusal_of_the_hub_is_one_line(monkeypatch, tmp_path):
    class Api:
        def create_repo(self, name, exist_ok):
            raise RuntimeError("403 Forbidden\n\nlog in")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"org/it does not take the export \(403 Forbidden log in\)") as refused:
        hub.push("org/it", {"file": tmp_path / "file"}, "why")
    assert str(refused.value).isprintable()
