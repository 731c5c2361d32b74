"""One progress display, and messages beside it, for a terminal, a notebook and a log file."""

import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm


def say(text: str) -> None:
    """A message of a run, on stdout: above the bar where there is one, and at once where a log file is read.

    What went wrong while the run goes on is a warning of `logging` instead.
    """
    tqdm.write(text)
    sys.stdout.flush()
    log(text)


_logs: list[tuple[TextIO, float]] = []  # open files of `logged`, and when each run began


@contextmanager
def logged(path: Path, started: float) -> Generator[None]:
    """Meanwhile what is said is appended to a file too, each message behind the seconds since `started`."""
    with path.open("a") as file:
        _logs.append((file, started))
        try:
            yield
        finally:
            _logs.remove((file, started))


def log(text: str) -> None:
    """A message for the log file alone: what a terminal shows in its bar."""
    for file, started in _logs:
        print(f"{time.time() - started:8.1f} s  {text}", file=file, flush=True)


class _Lines:
    """A line of text a note, where nobody watches a bar: log files, CI."""

    def __init__(self, numbers: Sequence[int], name: str, file: TextIO, total: int):
        self.numbers, self.name, self.file, self.total = numbers, name, file, total

    def __iter__(self) -> Iterator[int]:
        self.started = time.time()
        for done, number in enumerate(self.numbers, start=1):
            self.done = done
            yield number

    def set_postfix_str(self, note: str) -> None:
        elapsed = time.time() - self.started
        left = elapsed / self.done * (len(self.numbers) - self.done)
        clock = f"{tqdm.format_interval(elapsed)}, {tqdm.format_interval(left)} left"
        done = self.total - len(self.numbers) + self.done
        print(f"{self.name} {done}/{self.total} [{clock}] {note}", file=self.file, flush=True)


def over(numbers: Sequence[int], name: str, file: TextIO | None = None, total: int | None = None) -> Any:
    """Iterate over rounds with a progress display; `.set_postfix_str(text)` notes what the last one gave.

    A bar in a terminal, and in a notebook that has ipywidgets; otherwise one line a note.

    Args:
        numbers: what is iterated over.
        name: stands in front.
        file: where to write, by default stderr.
        total: how many there are with those that an earlier run has done; by default none were.
    """
    file = file or sys.stderr
    total = len(numbers) if total is None else total
    done = total - len(numbers)
    if file.isatty():
        return tqdm(
            numbers, desc=name, unit="round", file=file, dynamic_ncols=True, initial=done, total=total
        )
    if "ipykernel.zmqshell" in sys.modules and "ipywidgets" in sys.modules:
        from tqdm.notebook import tqdm as in_notebook

        return in_notebook(numbers, desc=name, unit="round", initial=done, total=total)
    return _Lines(numbers, name, file, total)
