"""What a run survives: processes killed at random, clients that fail, clients that lie.

    python benchmarks/faults.py --json faults.json --plot attacks.png      # all three parts
    python benchmarks/faults.py --kills=20 --attacks=0 --matrix=0          # the kill test alone

The kill test is in kills.py, the attack table (accuracy of DeltaMask against the share of hostile clients,
for every aggregator) in attackers.py. The fault matrix here plays every fault once: what is expected of it,
and what was seen.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from operator import itemgetter
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # config files import `configs.common`

import attackers  # noqa: E402
import kills  # noqa: E402

from configs import common  # noqa: E402
from deltamask_jax import devices, experiment, methods
from deltamask_jax.federation import faults
from deltamask_jax.federation.rounds import TooFewClients, play_until_enough  # noqa: E402
from deltamask_jax.setup import set_up  # noqa: E402
from deltamask_jax.task import Problem  # noqa: E402
from deltamask_jax.workdir import claim  # noqa: E402


def small_config(**changes):
    """A random network of two blocks and linear probing of its features: seconds to compile."""
    config = common.get_config()
    config.update_from_flattened_dict(
        {
            "method": "linear_probe",
            "clients": 10,
            "rounds": 3,
            "batch_size": 8,
            "train_examples": 300,
            "test_examples": 100,
            "head.init": "he",
            "model.name": "tiny_vit",
            "model.checkpoint": "",
            "model.trained_blocks": 1,
        }
        | changes
    )
    return config


def fault_matrix(scratch: Path) -> list[dict]:
    """Rows of fault, expected, observed."""
    base = set_up(small_config(), _made(scratch / "matrix"))
    rows = []

    def row(fault: str, expected: str, observed: str, holds: bool) -> None:
        rows.append({"fault": fault, "expected": expected, "observed": observed, "holds": bool(holds)})
        print(
            f"{'ok ' if holds else 'NO '} {fault:38} expected: {expected:52} observed: {observed}", flush=True
        )

    def play(problem: Problem = base, number: int = 1, **changes):
        problem = dataclasses.replace(problem, config=small_config(**changes))
        method = methods.build(problem.config, problem.task)
        state, result = play_until_enough(problem, method, method.init(), number)
        finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        return result, finite

    everyone, _ = play()
    sure = everyone.merged == 10
    row("none", "all 10 merged", f"{everyone.merged} merged", sure and not everyone.lost)

    for fault, reason, changes in (
        ("a client never answers, p = 0.4", faults.NO_ANSWER, {"faults.dropout": 0.4}),
        ("deadline of 3 steps", faults.LATE, {"faults.deadline": 3.0}),
    ):
        result, finite = play(**changes)
        row(
            fault,
            f"counted as '{reason}', the others merged",
            f"{result.lost}, {result.merged} merged",
            set(result.lost) == {reason} and result.merged == 10 - result.lost[reason] and finite,
        )
    result, finite = play(**{"faults.straggler": 1.0})
    row(
        "every client does part of its steps",
        "all merged",
        f"{result.merged} merged",
        result.merged == 10 and finite,
    )

    parts = [base.parts[0][:0], base.parts[1][:1], *base.parts[2:]]
    result, finite = play(dataclasses.replace(base, parts=parts))
    row(
        "a client without examples, one with one",
        "the first is left out, the second merged",
        f"{result.lost}, {result.merged} merged",
        result.lost == {faults.NO_EXAMPLES: 1} and result.merged == 9 and finite,
    )
    features = base.inputs["features"][0].at[base.parts[3][0]].set(np.nan)
    poisoned = dataclasses.replace(base, inputs=base.inputs | {"features": (features, features)})
    result, finite = play(poisoned)
    row(
        "a NaN among one client's inputs",
        "dropped as 'not finite', state stays finite",
        f"{result.lost}, state finite: {finite}",
        result.lost == {faults.NOT_FINITE: 1} and finite,
    )
    repeat = {"participation": 0.5, "min_clients": 4, "faults.dropout": 0.5, "max_repeats": 50}
    result = next(r for n in range(1, 30) if (r := play(number=n, **repeat)[0]).repeats)
    row(
        "too few survivors",
        "repeated with a new cohort until 4 are merged",
        f"{result.repeats} repeats, {result.merged} merged of {result.clients} asked",
        result.merged >= 4,
    )
    try:
        play(**{"faults.dropout": 1.0})
        row("no survivors at all", "TooFewClients", "no error", False)
    except TooFewClients as error:
        row(
            "no survivors at all",
            "an error that names the round",
            str(error)[:60] + " …",
            "round 1" in str(error),
        )

    for kind, reasons in (
        ("corrupt", {"checksum", "foreign", "other version", "wrong length"}),
        ("truncate", {"wrong length"}),
        ("replay", {"other round"}),
        ("wrong_d", {"other d"}),
    ):
        result, finite = play(**{"attack.kind": kind, "attack.share": 0.3})
        row(
            f"payloads of 3 clients: {kind}",
            "3 rejected by reason, 7 merged",
            f"{result.rejected}, {result.merged} merged",
            set(result.rejected) <= reasons and sum(result.rejected.values()) == 3 and result.merged == 7,
        )
    for kind, share in (("all_flip", 1.0), ("random_flip", 0.4)):
        lying = {"method": "deltamask", "attack.kind": kind, "attack.share": 0.3, "attack.flip_rate": share}
        result, _ = play(**lying, **{"robust.max_flip_rate": 0.2})
        row(
            f"payloads of 3 clients: {kind}",
            "3 rejected by the cap on flips, 7 merged",
            f"{result.rejected}, {result.merged} merged",
            result.rejected == {"too many flips": 3} and result.merged == 7,
        )
    run_faults(scratch, row)
    return rows


def run_faults(scratch: Path, row) -> None:
    """Faults of the machine and of the workdir: a whole run each, which must end in the same result."""
    whole = scratch / "small"
    experiment.run(small_config(), whole)
    expected = kills.outcome(whole)

    def interrupted(folder: Path, spoil, mend=lambda folder: None) -> tuple[str, bool]:
        """Spoil the workdir after round 2; then mend it and give the same command again."""
        played = experiment.play_until_enough

        def play(problem, method, state, number, memory):
            result = played(problem, method, state, number, memory)
            if number == 2:
                spoil(folder)
            return result

        experiment.play_until_enough = play
        try:
            experiment.run(small_config(), folder)
            message = "no error"
        except (OSError, MemoryError) as error:
            message = f"{type(error).__name__}: {error}"
        finally:
            experiment.play_until_enough = played
        mend(folder)
        experiment.run(small_config(), folder)
        return message.replace(str(scratch), "…"), kills.outcome(folder) == expected

    def report(fault, wanted, result):
        message, equal = result
        row(
            fault,
            f"'{wanted}', then resumes to the same result",
            f"{message}; equal: {equal}",
            wanted in message and equal,
        )

    def fill(folder):
        (folder / "metrics.jsonl").unlink()
        (folder / "metrics.jsonl").symlink_to("/dev/full")

    def free(folder):
        (folder / "metrics.jsonl").unlink()

    report("disk full while a line is appended", "No space left", interrupted(scratch / "full", fill, free))

    def take_room(folder):  # the line still fits, the checkpoint does not
        disk = os.statvfs(folder)
        (folder.parent / "ballast").write_bytes(bytes(disk.f_bavail * disk.f_frsize - 12288))

    def give_room(folder):
        (folder.parent / "ballast").unlink()

    disk = _made(scratch / "disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode == 0:  # it takes root
        try:
            result = interrupted(disk / "run", take_room, give_room)
            report("disk full while a checkpoint is written", "the checkpoint of round 2", result)
        finally:
            subprocess.run(["umount", disk], check=True)

    remove = lambda folder: subprocess.run(["rm", "-r", folder], check=True)  # noqa: E731
    report("workdir removed during the run", "is gone", interrupted(scratch / "gone", remove))

    def exhaust(folder):
        jax.numpy.zeros(1 << 50, "uint8").block_until_ready()

    report("an allocation the memory cannot hold", "out of memory", interrupted(scratch / "memory", exhaust))
    try:
        experiment.run(small_config(seed=1), whole)
        row("workdir of another config", "refused", "no error", False)
    except ValueError as error:
        row(
            "workdir of another config",
            "refused, naming the setting",
            str(error).replace(str(scratch), "…"),
            "seed is 0" in str(error),
        )
    status, equal = sigterm(scratch)
    row(
        "SIGTERM",
        "status 143, then resumes to the same result",
        f"status {status}, equal: {equal}",
        status == 143 and equal,
    )


def sigterm(scratch: Path) -> tuple[int, bool]:
    """SIGTERM after the second line of the kill test's run."""
    folder = scratch / "terminated"
    process = kills.launch(folder, scratch)
    while process.poll() is None and len(claim.lines(folder / "metrics.jsonl")) < 2:
        time.sleep(0.02)
    process.terminate()
    status = process.wait()
    for again in (folder, scratch / "whole"):
        kills.launch(again, scratch).wait()
    return status, kills.outcome(folder) == kills.outcome(scratch / "whole")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="kills of the kill test; 0 leaves it out")
    parser.add_argument("--attacks", type=int, default=6, help="rounds of the attack table; 0 leaves it out")
    parser.add_argument("--seeds", type=int, default=3, help="of the attack table")
    parser.add_argument("--matrix", type=int, default=1, help="0 leaves the fault matrix out")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--json", type=Path, help="write all results here; parts left out keep what it holds")
    parser.add_argument("--plot", type=Path, help="write the attack plot here")
    options = parser.parse_args()
    devices.keep_compilations()  # every row of the attack table is the same program to XLA
    results = {}
    if options.json and options.json.exists():
        results = json.loads(options.json.read_text())

    def keep(part: str, value) -> None:
        results[part] = value
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        if options.kills:
            keep("kill_test", kills.kill_test(options.kills, options.seed, scratch))
            print({k: v for k, v in results["kill_test"].items() if k not in ("log", "settings")})
        if options.matrix:
            keep("fault_matrix", fault_matrix(scratch))
        if options.attacks:
            earlier, listed = results.get("attacks", {}), set(attackers.runs())
            begun = earlier["rows"] if earlier.get("rounds") == options.attacks else []
            which = itemgetter("uniforms", "attack", "share", "defence")
            rows = [row for row in begun if which(row) in listed]  # a table begun before goes on
            settings = {"rounds": options.attacks, "seeds": options.seeds}
            keep("attacks", settings | {"rows": rows})
            attackers.attack_table(
                options.attacks, options.seeds, rows, lambda rows: keep("attacks", settings | {"rows": rows})
            )
    if "attacks" in results:
        print(attackers.markdown(results["attacks"]["rows"]))
        if options.plot:
            attackers.plot(results["attacks"]["rows"], options.plot)


if __name__ == "__main__":
    main()
