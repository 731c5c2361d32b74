"""A round's line, a run's sums and the table at its end, against numbers by hand."""

from pathlib import Path

import pytest

from deltamask_jax.federation.rounds import Round
from deltamask_jax.reporting.ledger import closing_table, line_of, summarise
from tests.conftest import tiny_config

D = 4000


def round_of(up, down, **rest) -> Round:
    each = {"clients": list(range(len(up))), "up": up, "down": down}
    return Round(train_loss=0.25, each=each, details=rest.pop("details", {}), payload=b"", **rest)


def lines() -> list[dict]:
    """The head's round and two of three clients each, one of whom sent nothing in the last."""
    flips = {"flip_rate": 0.02, "flip_entropy_bpp": 0.14}, {"flip_rate": 0.01, "flip_entropy_bpp": 0.08}
    rounds = [
        round_of([10, 10, 10], [0, 0, 0]),
        round_of([500, 250, 750], [100, 100, 100], details=flips[0], news_bytes=50),
        round_of([500, 500, 0], [200, 0, 100], details=flips[1], lost={"no answer": 1}, snapshots=1),
    ]
    evaluated = [{"accuracy": 0.4}, {}, {"accuracy": 0.7, "client_accuracy_min": 0.6}]
    return [
        line_of(number, result, its, D, seconds=2.0, compile_seconds=0.5 * (number == 1))
        for number, (result, its) in enumerate(zip(rounds, evaluated, strict=True))
    ]


def test_a_line_counts_bytes_both_ways_and_bits_per_who_sent_them():
    head, first, second = lines()
    assert (first["uplink_bytes"], first["downlink_bytes"], first["total_bytes"]) == (1500, 300, 1800)
    assert first["uplink_bpp"] == pytest.approx(8 * 1500 / 3 / D)
    assert first["downlink_bpp"] == pytest.approx(8 * 300 / 3 / D)
    assert first["news_bpp"] == pytest.approx(8 * 50 / D) and second["news_bpp"] is None
    assert second["uplink_bpp"] == pytest.approx(8 * 1000 / 2 / D)  # of the two who sent something
    assert (second["clients"], second["lost"], second["snapshots"]) == (3, {"no answer": 1}, 1)
    assert first["accuracy"] is None and head["flip_rate"] is None and "epsilon" not in first


def test_a_private_round_says_what_is_spent():
    line = line_of(1, round_of([1], [1]), {}, D, seconds=1.0, compile_seconds=0.0, epsilon=0.0)
    assert line["epsilon"] == 0.0


def test_a_summary_adds_all_rounds_and_means_those_after_the_head_s():
    summary = summarise(tiny_config(clients=3), lines(), 0.5, D, 7.0)
    assert (summary["uplink_bytes"], summary["downlink_bytes"]) == (30 + 1500 + 1000, 300 + 300)
    assert summary["total_bytes"] == 3130 and summary["total_bytes_per_client"] == pytest.approx(3130 / 3)
    assert (summary["initial_accuracy"], summary["final_accuracy"], summary["best_accuracy"]) == (
        0.4,
        0.7,
        0.7,
    )
    assert summary["final_client_accuracy_min"] == 0.6 and summary["rounds"] == 2
    assert summary["mean_uplink_bpp"] == pytest.approx(8 * (500 + 500) / 2 / D)  # per client and round
    assert summary["mean_flip_rate"] == pytest.approx(0.015)
    assert summary["compile_seconds"] == 0.5 and summary["seconds"] == 7.0
    assert "mean_train_loss" not in summary and "epsilon" not in summary


def test_the_closing_table_says_the_total_first_and_skips_what_is_not_known():
    summary = summarise(tiny_config(clients=3), lines(), None, D, 7.0)
    summary |= {"total_bytes": 9_300_000, "total_bytes_per_client": 3_100_000.0}
    summary |= {"uplink_bytes": 8_000_000, "downlink_bytes": 1_300_000}
    text = " ".join(closing_table(summary, Path("runs/x")).split())
    assert "final accuracy 70.00%" in text and "linear probe" not in text
    assert "up and down 9.3 MB, 3.1 MB per client uplink 8 MB, 1.0000 bpp" in text
    assert "downlink 1.3 MB, 0.2000 bpp" in text
    assert "flips 1.50% of the weights per client per round, H = 0.1100 bpp" in text
    assert text.endswith("results in runs/x")


def test_a_run_without_rounds_has_no_rates():
    summary = summarise(tiny_config(rounds=0), lines()[:1], 0.5, D, 1.0)
    assert summary["mean_uplink_bpp"] is None
    assert "– bpp per client per round" in closing_table(summary, Path("x"))
