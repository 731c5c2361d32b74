"""What a finished run learned, as a network: compact, and in the format the checkpoint came in.

    python -m deltamask_jax.export runs/quickstart              # into runs/quickstart/export
    python -m deltamask_jax.export runs/quickstart --out=DIR

DIR/compact.safetensors holds the mask's bits and the head, tied to the base checkpoint's hash;
DIR/huggingface the masked network with its head, as the family's own library loads it, where it has a format.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from deltamask_jax import models, pretrained
from deltamask_jax.models.bert import BertConfig
from deltamask_jax.paths import expanded
from deltamask_jax.pretrained.tensors import one_line, read_safetensors
from deltamask_jax.workdir import claim


def export(workdir: str | Path, out: str | Path | None = None) -> list[Path]:
    """Write the network that a finished run learned.

    Args:
        workdir: of a run of a method that learns a mask.
        out: folder, by default `export` inside the workdir.

    Returns:
        What was written.

    Raises:
        ValueError: no finished run, or one that learned no mask.
        FileNotFoundError: the run's checkpoint is no longer there.
    """
    workdir = expanded(workdir)
    out = expanded(out) if out else workdir / "export"
    config, model, learned, class_names = _finished(workdir)
    params = pretrained.load(config.model, model)
    if isinstance(model.architecture, BertConfig):
        model = pretrained.with_tokenizer(config.model, model)
    head = {name: learned[f"head/{name}"] for name in ("kernel", "bias")}
    compact = out / "compact.safetensors"
    mask = np.unpackbits(learned["mask"], count=len(learned["theta"]))
    size = pretrained.export_compact(compact, model, params, mask, head)
    print(f"{compact}: {size:,} bytes for {mask.size:,} masked weights and the head")
    masked, head = pretrained.load_compact(compact, params)
    try:
        pretrained.export_huggingface(out / "huggingface", model, masked, head, class_names)
    except ValueError as error:  # the architecture has no published format
        print(f"no {out / 'huggingface'}: {error}")
        return [compact]
    print(f"{out / 'huggingface'}: the masked network and its head")
    return [compact, out / "huggingface"]


def _finished(workdir: Path) -> tuple[ConfigDict, models.Model, dict[str, np.ndarray], list[str]]:
    """Config, model, learned tensors and class names of a run.

    Raises:
        ValueError: it is not there, not finished, damaged, or learned no mask.
    """
    claim.summary_of(workdir)  # a damaged one is refused
    try:
        config, split = (json.loads((workdir / file).read_text()) for file in ("config.json", "split.json"))
        config = ConfigDict(config)
        model = models.build(config.model)
        class_names = [str(name) for name in split["class_names"]]
        file = workdir / f"{config.method}.safetensors"
    except OSError as error:
        raise ValueError(f"{workdir} holds no finished run: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{workdir} holds no run, or a damaged one: {one_line(error)}") from None
    if not file.exists():
        raise ValueError(f"{workdir} holds no finished run: there is no {file.name} yet")
    learned = read_safetensors(file)
    if "mask" not in learned:
        raise ValueError(f"{workdir}: method {config.method!r} learned no mask, there is nothing to export")
    if lacking := [name for name in ("theta", "head/kernel", "head/bias") if name not in learned]:
        raise ValueError(f"{file} is damaged: it lacks {', '.join(lacking)}")
    mask, theta, bias = (learned[name] for name in ("mask", "theta", "head/bias"))
    if len(theta.shape) != 1 or (mask.dtype, mask.shape) != ("uint8", (-(-theta.shape[0] // 8),)):
        raise ValueError(f"{file} is damaged: its mask does not fit its theta")
    if bias.shape != (len(class_names),):
        raise ValueError(
            f"{workdir} is damaged: its head has not {len(class_names)} classes, as split.json has"
        )
    return config, model, {name: tensor() for name, tensor in learned.items()}, class_names


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workdir", help="folder of a finished run")
    parser.add_argument("--out", help="where to write; by default `export` inside it")
    options = parser.parse_args(argv)
    try:
        export(options.workdir, options.out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
