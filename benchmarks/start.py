"""What starting costs: CPU seconds and compiled programs of a run of one round, compile cache empty and full.

    python -m benchmarks.start --quick
    python -m benchmarks.start --config=configs/quickstart.py --json start.json

Every run is a process of its own, `python -m deltamask_jax.main --config.rounds=1`. 'to round 1' is when it
says that the first round begins: data, frozen prefix, head and linear probe lie behind it. 'round 1' is when
that round is merged and evaluated, 'end' when the process has ended, its pictures drawn. Programs are those
that XLA compiled or read from the cache. CPU seconds are user + sys of all threads: other work on the machine
disturbs them less than seconds that elapse.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARKS = {"to round 1": "the first round also compiles", "round 1": r" 1/1.*accuracy"}
COMPILED = re.compile(r"Finished XLA compilation of (\S+) in ([\d.]+) sec")


def spent(process: subprocess.Popen) -> float:
    """CPU seconds of a running process so far, of all its threads (Linux)."""
    user, system = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def measure(config: str, overrides: list[str], cache: Path, workdir: Path) -> dict:
    """One run, its log read as it is written.

    Raises:
        RuntimeError: the run failed; the last lines it wrote.
    """
    command = [sys.executable, "-m", "deltamask_jax.main", f"--config={config}", "--config.rounds=1"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_LOG_COMPILES": "1"}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        [*command, f"--workdir={workdir}", *overrides],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    row, programs, lines = {}, [], []
    for line in process.stdout:
        lines = [*lines[-4:], line[:200]]
        if found := COMPILED.search(line):
            programs.append(float(found[2]))
        for name, mark in MARKS.items():
            if name not in row and re.search(mark, line):
                row[name] = {"cpu_seconds": spent(process), "programs": len(programs)}
    if process.wait():
        raise RuntimeError("".join(lines))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    row["end"] = {"cpu_seconds": used, "programs": len(programs)}
    return row | {"elapsed": time.perf_counter() - begun, "compiling": sum(programs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--quick", action="store_true", help="two clients and few examples")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options, overrides = parser.parse_known_args()
    if options.quick:
        overrides += [f"--config.{name}" for name in ("clients=2", "train_examples=40", "test_examples=20")]
    rows = []
    print("| compile cache | until | CPU seconds | programs |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("empty", "full"):
            row = measure(options.config, overrides, Path(folder, "cache"), Path(folder, cache))
            rows.append({"config": options.config, "overrides": overrides, "cache": cache} | row)
            for until in (*MARKS, "end"):
                its = row.get(until)
                if its:
                    print(f"| {cache} | {until} | {its['cpu_seconds']:.1f} | {its['programs']} |", flush=True)
            print(f"| | elapsed, compiling | {row['elapsed']:.0f}, {row['compiling']:.0f} | |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
