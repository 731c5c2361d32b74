"""SIGTERM, which clusters send seconds before they kill: end at once, but not in the middle of a file."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

STATUS = 128 + signal.SIGTERM  # 143, what shells report for a process that SIGTERM ended


@contextmanager
def ends_the_process(before_exit: Callable[[], str]) -> Generator[None]:
    """Inside, SIGTERM calls `before_exit`, prints what it returns, and ends the process with status 143.

    Python runs signal handlers between bytecodes only, and a round may be one long call into XLA. So a thread
    waits on a pipe for the signal's number, which the C-level handler writes at once.

    Outside the main thread Python allows no signal handlers; SIGTERM then keeps its meaning.

    Args:
        before_exit: runs on another thread while the main thread goes on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def wait():
        while numbers := os.read(reading, 64):
            if signal.SIGTERM in numbers:
                try:
                    print("\nSIGTERM:", before_exit(), file=sys.stderr, flush=True)
                finally:
                    os._exit(STATUS)
        os.close(reading)

    waiting = threading.Thread(target=wait, name="sigterm", daemon=True)
    waiting.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, handler)
        os.close(writing)
        waiting.join()
