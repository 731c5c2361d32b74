"""SIGTERM: what is said before the end, the status, and where it keeps its meaning."""

import signal
import subprocess
import sys
import threading

import pytest

from deltamask_jax.workdir import sigterm

BUSY = """
import os, signal
from deltamask_jax.workdir import sigterm

with sigterm.ends_the_process({before_exit}):
    os.kill(os.getpid(), signal.SIGTERM)
    os.read(os.pipe()[0], 1)  # one long call
"""


@pytest.mark.parametrize("before_exit, said", [("lambda: 'kept'", "SIGTERM: kept"), ("lambda: 1 / 0", "")])
def test_the_process_ends_in_the_middle_of_a_call(before_exit, said):
    program = [sys.executable, "-c", BUSY.format(before_exit=before_exit)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert done.returncode == sigterm.STATUS == 143 and said in done.stderr


def test_afterwards_and_on_other_threads_it_means_what_it_did():
    usual = signal.getsignal(signal.SIGTERM)
    with sigterm.ends_the_process(str):
        assert signal.getsignal(signal.SIGTERM) is not usual
    assert signal.getsignal(signal.SIGTERM) is usual and signal.set_wakeup_fd(-1) == -1
    seen = []

    def elsewhere():
        with sigterm.ends_the_process(str):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [usual]
