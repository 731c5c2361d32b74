"""What one client's encoding and decoding costs on this device, for each network's number of masked weights.

    python launch/table_codec_cost.py --device="Raspberry Pi 5" --out=runs/codec_cost
    python launch/table_codec_cost.py --smoke

Run it on each device with the same --out (or copy the JSON files together): table.md has a column per device.
Times are medians; energy needs a meter at the plug and is not measured. Logits drift by a
Gaussian until about 1 % of the bits flip.
"""

import argparse
import json
import platform
import re
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from deltamask_jax import codecs
from deltamask_jax.paths import expanded
from deltamask_jax.public_random import MASK, stream_key
from deltamask_jax.workdir import files

WEIGHTS = {
    "ConvMixer-768/32": 3_137_280,
    "ViT-S": 8_847_360,
    "ViT-B": 35_389_440,
    "ViT-L": 62_914_560,
}
CODECS = ({"name": "bfuse"}, {"name": "bfuse", "container": "zstd"}, {"name": "rice"}, {"name": "side_info"})


def drifted(d: int, seed: int = 0) -> tuple[np.ndarray, codecs.Context]:
    """About 1 % flips of d mask bits, and what both ends know."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(2, 2, d).astype(np.float32)
    moved = logits + 0.115 * rng.standard_normal(d, np.float32)
    theta, theta_k = (np.clip(65536 / (1 + np.exp(-x)), 0, 65535).astype(np.uint16) for x in (logits, moved))
    context = codecs.Context(d, theta, (stream_key(seed, 0, 0, MASK),))
    u = context.uniforms()
    return np.flatnonzero((u < theta) != (u < theta_k)).astype(np.uint32), context


def seconds(function, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure(d: int, repeats: int) -> dict[str, dict[str, float]]:
    """Codec -> share of flips, bits per parameter, seconds each way."""
    flips, context = drifted(d)
    rows = {}
    for settings in CODECS:
        codec = codecs.get(**settings)
        payload = codec.encode(flips, context)
        rows[codec.name] = {
            "flip_rate": len(flips) / d,
            "bpp": 8 * len(payload) / d,
            "encode_seconds": seconds(lambda codec=codec: codec.encode(flips, context), repeats),
            "decode_seconds": seconds(
                lambda codec=codec, payload=payload: codec.decode(payload, context), repeats
            ),
        }
    return rows


def table(measured: list[dict]) -> str:
    """A row per network and codec, a column per device: bits per parameter, then encode / decode seconds."""
    devices = [one["device"] for one in measured]
    lines = ["| network | codec | bpp | " + " | ".join(devices) + " |", "|---" * (3 + len(devices)) + "|"]
    networks = [item for one in measured for item in one["networks"].items()]
    for network, codec in dict.fromkeys((network, codec) for network, its in networks for codec in its):
        found = [one["networks"].get(network, {}).get(codec) for one in measured]
        took = [its and f"{its['encode_seconds']:.3f} / {its['decode_seconds']:.3f}" for its in found]
        cells = [text or "–" for text in took]
        bpp = next(its["bpp"] for its in found if its)
        lines.append(f"| {network} | {codec} | {bpp:.4f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\nseconds to encode / to decode one client's update\n"


def measured_before(out: Path) -> dict[str, dict]:
    """File name -> what each device measured.

    Raises:
        ValueError: a JSON file of the folder is damaged, or none of this script's.
    """
    found = {}
    for path in sorted(out.glob("*.json")):
        try:
            found[path.name] = json.loads(path.read_text())
            table([found[path.name]])
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(f"{path} is not what this script writes; choose another --out") from None
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--device", default=f"{platform.node()} ({platform.machine()})", help="name in the table"
    )
    parser.add_argument(
        "--out", type=expanded, help="folder; by default runs/codec_cost, with --smoke runs/codec_cost-smoke"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="one small network")
    options = parser.parse_args(argv)
    options.out = options.out or Path("runs/codec_cost" + "-smoke" * options.smoke)
    name = re.sub(r"\W+", "-", options.device).strip("-") + ".json"
    if options.repeats < 1:
        parser.error(f"--repeats={options.repeats}: must be at least 1")
    if name == ".json":
        parser.error(f"--device={options.device!r}: needs a letter or digit, for the name of its file")
    try:  # before anything is measured
        options.out.mkdir(parents=True, exist_ok=True)
        devices = measured_before(options.out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    networks = {"glyph ViT": 983_040} if options.smoke else WEIGHTS
    found = {name: measure(d, options.repeats) for name, d in networks.items()}
    result = {
        "device": options.device,
        "networks": found,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,  # Linux counts in KiB
    }
    files.write_json(options.out / name, result)
    text = table(list((devices | {name: result}).values()))
    (options.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
