"""The Hugging Face hub: whether it can be reached, and how an export gets there."""

from collections.abc import Mapping
from pathlib import Path


def unreachable() -> str:
    """The hub's address and why it cannot be reached, within seconds; '' where it can.

    Its own client would retry for half a minute.
    """
    from huggingface_hub import constants, utils  # slow to import, rarely needed

    try:
        utils.get_session().head(constants.ENDPOINT, timeout=3)
    except Exception as error:  # of whatever the client connects with
        return f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})"
    return ""


def check(repository: str) -> None:
    """Refuse a repository that nothing can be pushed to, before any work.

    Raises:
        ValueError: no name of a repository.
        OSError: no connection.
    """
    from huggingface_hub import errors, utils

    try:
        utils.validate_repo_id(repository)
    except errors.HFValidationError as error:
        raise ValueError(f"{repository!r} is no hub repository, org/name: {_one_line(error)}") from None
    if "/" not in repository:
        raise ValueError(f"{repository!r} is no hub repository: give org/name")
    if why := unreachable():
        raise OSError(f"nothing can be pushed to {repository}: {why}; leave out --push-to-hub to write files")


def push(repository: str, files: Mapping[str, Path], message: str) -> str:
    """Put files into a model repository, made if need be, in one commit.

    Args:
        repository: org/name.
        files: name there -> file here.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        OSError: refused, or the connection broke.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    added = [huggingface_hub.CommitOperationAdd(name, path) for name, path in files.items()]
    try:
        api.create_repo(repository, exist_ok=True)
        return api.create_commit(repository, added, commit_message=message).commit_url
    except Exception as error:  # of the hub's client, of what it connects with
        status = getattr(getattr(error, "response", None), "status_code", None)
        login = "; `hf auth login` with a token that may write there" if status in (401, 403) else ""
        raise OSError(f"{repository} does not take the export ({_one_line(error)}){login}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
