"""The hub: reached or not, and what it refuses, in one line and without waiting."""

from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

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


def answered(status):
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError("Forbidden\n\nby the hub", response=response)


@pytest.mark.parametrize(
    "error, message",
    [
        (answered(401), "(Forbidden by the hub); `hf auth login` with a token that may write there"),
        (answered(403), "(Forbidden by the hub); `hf auth login` with a token that may write there"),
        (answered(400), "(Forbidden by the hub)"),
        (ValueError("Invalid metadata in README.md.\n- bad"), "(Invalid metadata in README.md. - bad)"),
        (ConnectionError(), "(ConnectionError)"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line_and_a_token_is_named_where_it_is_at_fault(
    monkeypatch, tmp_path, error, message
):
    class Api:
        def create_repo(self, name, exist_ok):
            raise error

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError) as refused:
        hub.push("org/it", {"file": tmp_path / "file"}, "why")
    assert str(refused.value) == f"org/it does not take the export {message}"
