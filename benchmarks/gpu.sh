#!/usr/bin/env bash
# All speed benchmarks on a machine with an accelerator, in under nine minutes:
#   benchmarks/gpu.sh [PYTHON]
# They end in benchmarks/results/<device>.json. Needs jax, flax, optax, orbax and ml_collections; Python 3.11
# or 3.12. What is not installed (PyTorch, Flower) is skipped, and the file says so.
set -u
cd "$(dirname "$0")/.."
python=${1:-python3}
out=$(mktemp -d)
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
missing=$("$python" - <<'PYTHON'
from importlib.util import find_spec
names = ("jax", "flax", "optax", "ml_collections", "pyfusefilter", "safetensors", "zstandard", "sklearn", "PIL", "tqdm")
print(*(name for name in names if find_spec(name) is None))
PYTHON
)
[ -z "$missing" ] || { echo "install first: $missing (pip install -e .)"; exit 1; }
run() { # name, seconds, arguments of python -m
  local name=$1 limit=$2; shift 2
  echo "== $*"
  timeout "$limit" "$python" -m "$@" --json "$out/$name.json" || echo "{\"skipped\": \"$*: status $?\"}" > "$out/$name.json"
}
run paper 200 benchmarks.round --paper
run profile 60 benchmarks.profile --model=vit_b16 --clients=8 --examples=256 --batch=64 --dtype=bfloat16
run round 60 benchmarks.round
run vs_torch 90 benchmarks.vs_torch
run scaling 60 benchmarks.scaling
run vs_flower 50 benchmarks.vs_flower --quick
"$python" - "$out" <<'PYTHON'
import json, pathlib, re, sys
parts = {path.stem: json.loads(path.read_text()) for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json"))}
kinds = [part["machine"]["device"] for part in parts.values() if "machine" in part]
name = re.sub(r"\W+", "-", kinds[0]).strip("-").lower() if kinds else "unknown"
path = pathlib.Path("benchmarks/results", f"{name}.json")
path.write_text(json.dumps(parts, indent=1) + "\n")
print("wrote", path)
PYTHON
