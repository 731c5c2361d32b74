"""The progress display: lines in a log file, a bar in a terminal."""

import io
import time

from deltamask_jax import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def play(file):
    bar = progress.over(range(3), "deltamask", file=file)
    for number in bar:
        bar.set_postfix_str(f"accuracy {number}%")
    return file.getvalue()


def test_a_log_file_gets_one_line_a_step():
    lines = play(io.StringIO()).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("deltamask 1/3 [") and lines[2].endswith("accuracy 2%")


def test_a_terminal_gets_a_bar():
    text = play(Terminal())
    assert "\r" in text and "100%" in text and "accuracy 2%" in text


def test_a_message_leaves_the_bar_whole(capsys):
    terminal = Terminal()
    bar = progress.over(range(2), "deltamask", file=terminal)
    next(iter(bar))
    progress.say("moved aside")
    assert capsys.readouterr().out == "moved aside\n" and "moved" not in terminal.getvalue()
    bar.close()


def test_what_is_said_stands_in_the_log_file_too(tmp_path, capsys):
    with progress.logged(tmp_path / "log.txt", started=time.time() - 5):
        progress.say("reading")
        progress.log("round 1")
    progress.say("after")
    first, second = (tmp_path / "log.txt").read_text().splitlines()
    assert (
        first.endswith(" s  reading") and 5 <= float(first.split()[0]) < 60 and second.endswith("  round 1")
    )
    assert capsys.readouterr().out == "reading\nafter\n"
