"""A run that may end at any moment: its journal, its checkpoints, and how the same command continues it.

A workdir holds, in the order a run writes them:
    .deltamask_jax         that this is a run's folder
    config.json            whose run this is
    metrics.jsonl          a line per round
    checkpoints/ROUND/     after the line: `arrays` (server state, head) and `ledger` (all else), by orbax,
                           which renames a checkpoint into place when it is whole
    summary.json           last of all: the run is finished

A run continues from its newest whole checkpoint; lines of later rounds are cut off and played again. All
randomness is derived from the seed and the round, so they come out the same. docs/reliability.md promises
what follows from this.
"""

import errno
import json
import logging
import os
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from deltamask_jax.federation import hosts
from deltamask_jax.private_random import root_key
from deltamask_jax.progress import say
from deltamask_jax.workdir import checkpoint, files, sigterm
from deltamask_jax.workdir.checkpoint import Progress, head_of
from deltamask_jax.workdir.claim import LINES, WAYS_OUT, claim, lines, summary_of


class Journal:
    """A workdir while a run writes to it. Within its `with`, SIGTERM, or another process's end, ends this one
    between two files.

    Of several processes, each has a workdir; process 0 alone keeps checkpoints and says where the run stands.

    Attributes:
        summary: of a run that is finished already, else None.

    Raises:
        ValueError, OSError: as `workdir.claim` and `workdir.summary_of`.
    """

    def __init__(self, workdir: Path, config):
        self._cleanup = ExitStack()
        self._workdir, self._config = workdir, config
        fresh = " without --config.resume=fresh" if config.resume == "fresh" else ""
        self._again = f"the same command{fresh}"
        self._lines = workdir / "metrics.jsonl"
        self._cleanup.callback(os.close, claim(workdir, config))
        try:
            self.summary = _of_first(summary_of(workdir) if hosts.index() == 0 else None)
        except ValueError:
            self._cleanup.close()
            raise
        self._writing = threading.Lock()  # held while files change; SIGTERM waits for it
        self._last: Progress | None = None  # committed, in no checkpoint yet
        self._saved = -1  # round of the newest checkpoint

    def __enter__(self) -> "Journal":
        self._cleanup.enter_context(sigterm.ends_the_process(self._close_on_sigterm))
        self._cleanup.enter_context(hosts.before_exit(self._close_before_exit))
        return self

    def __exit__(self, *_) -> None:
        self._cleanup.close()

    def load(self, problem) -> Progress | None:
        """Where the run stands, or None where nothing was kept yet. The files of lines then end there too.

        Args:
            problem: must have the data and pretrained weights the run started with.

        Raises:
            ValueError: the checkpoints are of another problem or format, or rounds were played and no
                checkpoint of them can be read.
        """
        self._identity = {**checkpoint.identity(problem), "root_key": _root_key(self._config)}
        hosts.agree(self._identity)
        progress = _sent_by_first(self._newest() if hosts.index() == 0 else None)
        for path in self._files_of_lines():
            if progress is None:
                path.unlink()
            else:
                files.rewrite(path, [r for r in lines(path) if r["round"] <= progress.round])
        if progress is not None:
            self._saved = progress.round
            files.rewrite(self._lines, progress.records)
            say(f"{self._workdir}: continuing after round {progress.round}")
        return progress

    def commit(
        self, progress: Progress, beside: dict[str, dict[str, Any]] | None = None, *, last: bool = False
    ) -> None:
        """Append the round's lines, then write a checkpoint where one is due.

        Args:
            beside: what other files of lines get, by name; metrics.jsonl gets the newest record.

        Raises:
            OSError: no space left, or the workdir is gone; what was written before stays.
            ValueError: another process's line says something else.
        """
        hosts.agree({k: v for k, v in progress.records[-1].items() if not k.endswith("seconds")})
        with self._writing:
            new = {name: {"round": progress.round, **line} for name, line in (beside or {}).items()}
            for name, line in (new | {self._lines.name: progress.records[-1]}).items():
                try:
                    files.append(self._workdir / name, line)
                except OSError as error:
                    raise OSError(self._cannot(f"append to {name}", error)) from error
            if hosts.index() > 0:
                return
            self._last = progress
            if progress.round % self._config.checkpoint.every == 0 or last:
                self._save(progress)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, the last file: from here on the run is finished."""
        with self._writing:
            files.write_json(self._workdir / "summary.json", summary)

    def _files_of_lines(self) -> list[Path]:
        return [path for name in LINES if (path := self._workdir / name).exists()]

    def _newest(self) -> Progress | None:
        """The newest whole checkpoint."""
        folder, here = (self._workdir / "checkpoints").absolute(), jax.process_index()
        folder.mkdir(exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._config.checkpoint.keep,
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=here,
                active_processes={here},  # on a TPU pod orbax would wait for the other hosts
            ),
        )
        # Opening it also removes what a killed process left half-written.
        self._manager = ocp.CheckpointManager(folder, options=options)
        self._cleanup.callback(self._manager.close)
        for number in sorted(self._manager.all_steps(), reverse=True):
            progress = self._read(number)
            if progress is not None:
                return progress
        played = max((record["round"] for record in lines(self._lines)), default=0)
        if played > 0:
            raise ValueError(
                f"{self._workdir} has {played} rounds in metrics.jsonl and no checkpoint that can be read: "
                f"{WAYS_OUT}"
            )
        return None

    def _save(self, progress: Progress) -> None:
        number = progress.round
        ledger, arrays = checkpoint.pack(progress, self._identity)
        args = ocp.args.Composite(ledger=ocp.args.JsonSave(ledger), arrays=ocp.args.StandardSave(arrays))
        try:
            with _silent():
                if number in self._manager.all_steps():  # one that could not be read
                    self._manager.delete(number)
                self._manager.save(number, args=args, force=True)
        except Exception as error:  # tensorstore reports a full disk in words of its own
            raise OSError(self._cannot(f"write the checkpoint of round {number}", error)) from error
        self._saved, self._last = number, None

    def _read(self, number: int) -> Progress | None:
        """One checkpoint, or None where it is damaged."""
        args = ocp.args.Composite(ledger=ocp.args.JsonRestore(), arrays=ocp.args.StandardRestore())
        try:
            with _silent():
                restored: Any = self._manager.restore(number, args=args)
            ledger, arrays = dict(restored.ledger), dict(restored.arrays)
            checkpoint.check_whole(ledger, arrays)
        except Exception as error:  # whatever orbax makes of missing or damaged files
            return self._damaged(number, error)
        return checkpoint.unpack(ledger, arrays, self._identity, self._workdir)

    def _damaged(self, number: int, error: Exception) -> None:
        logging.warning("checkpoint %d in %s is damaged: %s", number, self._workdir, _first_line(error))

    def _cannot(self, what: str, error: Exception) -> str:
        if not self._workdir.exists():
            return f"cannot {what}: workdir {self._workdir} is gone; the same command starts over"
        known = [text for text in map(os.strerror, errno.errorcode) if text in str(error)]
        reason = known[0] if known else getattr(error, "strerror", None) or _first_line(error)
        goes_on = f"continues after round {self._saved}" if self._saved >= 0 else "starts over"
        return f"cannot {what} in {self._workdir}: {reason}; mend that, then {self._again} {goes_on}"

    def _close_on_sigterm(self) -> str:
        done = self._close_before_exit()
        hosts.leave("SIGTERM")
        return done

    def _close_before_exit(self) -> str:
        self._writing.acquire()  # and never released: the process ends
        if hosts.index() > 0:
            return "the same commands continue"
        try:
            if self._last is not None:
                self._save(self._last)
        except Exception as error:  # a full disk, or buffers that the round in progress has taken over
            logging.warning("the last round is not kept: %s", _first_line(error))
        return (
            f"stopped after round {self._saved}; {self._again} continues"
            if self._saved >= 0
            else "stopped before round 0; the same command starts over"
        )


def _of_first(value: Any) -> Any:
    """Process 0's, for all; a JSON value."""
    if hosts.count() == 1:
        return value
    return json.loads(hosts.exchange([json.dumps(value).encode()] if hosts.index() == 0 else [])[0])


def _sent_by_first(progress: Progress | None) -> Progress | None:
    """Process 0's, as it was loaded, for all."""
    if hosts.count() == 1:
        return progress
    arrays = progress.state if progress else {}
    ledger = progress and {name: getattr(progress, name) for name in checkpoint.LEDGER}
    kinds = _of_first([[name, str(array.dtype), array.shape] for name, array in arrays.items()])
    ledger = _of_first(ledger)
    blobs = hosts.exchange([np.asarray(array).tobytes() for array in arrays.values()])
    if ledger is None:
        return None
    received = {
        name: np.frombuffer(bytearray(blob), jax.numpy.dtype(dtype)).reshape(shape)
        for (name, dtype, shape), blob in zip(kinds, blobs, strict=True)
    }
    return Progress(received, head_of(received), **ledger)


@contextmanager
def _silent() -> Generator[None]:
    """Orbax logs a traceback of what it raises; whoever catches that says it in a line."""
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.FATAL)
    try:
        yield
    finally:
        absl_logging.set_verbosity(before)


def _root_key(config) -> list[int]:
    """Words drawn from the root key: a jax with another generator draws others."""
    return jax.random.bits(root_key(config.seed), (2,), "uint32").tolist()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
