"""What a finished run learned, as files other programs load, each with its model card.

    python -m deltamask_jax.export runs/quickstart              # into runs/quickstart/export
    python -m deltamask_jax.export runs/quickstart --out=DIR
    python -m deltamask_jax.export runs/quickstart --push-to-hub=org/name

DIR/huggingface holds the whole network with its head, as the family's own library loads it. Beside it lies,
of a mask, DIR/compact.safetensors: its bits and the head, tied to the base checkpoint's hash; of low-rank
updates or biases, DIR/adapter: what `peft` loads on top of the base.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from deltamask_jax import hub, methods, models, pretrained
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.methods.peft import tuned_parts
from deltamask_jax.models import adapters
from deltamask_jax.models.bert import BertConfig
from deltamask_jax.paths import expanded
from deltamask_jax.pretrained.tensors import one_line, read_safetensors
from deltamask_jax.reporting import card
from deltamask_jax.setup import without_cut
from deltamask_jax.task import Task
from deltamask_jax.workdir import claim


class Finished(NamedTuple):
    """What a run left: its config, the network it started from, what it learned and what it says about it."""

    config: ConfigDict
    model: models.Model
    learned: dict[str, np.ndarray]
    class_names: list[str]
    summary: dict[str, Any]
    environment: dict[str, Any]

    @property
    def head(self) -> dict[str, np.ndarray]:
        return {name: self.learned[f"head/{name}"] for name in ("kernel", "bias")}


def export(workdir: str | Path, out: str | Path | None = None, push_to_hub: str = "") -> list[Path]:
    """Write the network that a finished run learned.

    Args:
        workdir: of a run of a method that learns a mask, or tunes what `config.peft` says.
        out: folder, by default `export` inside the workdir.
        push_to_hub: org/name of the hub repository that is given the files as well; '' = none.

    Returns:
        What was written.

    Raises:
        ValueError: no finished run, or one that learned what has no published form.
        FileNotFoundError: the run's checkpoint is no longer there.
        OSError: the hub cannot be reached, or refuses.
    """
    workdir = expanded(workdir)
    out = expanded(out) if out else workdir / "export"
    if push_to_hub:
        hub.check(push_to_hub)
    run = _finished(workdir)
    params = pretrained.load(run.config.model, run.model)
    if isinstance(run.model.architecture, BertConfig):
        run = run._replace(model=pretrained.with_tokenizer(run.config.model, run.model))
    write = _export_mask if "mask" in run.learned else _export_parts
    written = write(run, params, out)
    if push_to_hub:
        print(hub.push(push_to_hub, _for_hub(written), f"{run.config.method} on {run.config.model.name}"))
    return written


def _export_mask(run: Finished, params: models.Params, out: Path) -> list[Path]:
    """The compact file, then the masked network where it has a published format."""
    compact = out / "compact.safetensors"
    mask = np.unpackbits(run.learned["mask"], count=len(run.learned["theta"]))
    size = pretrained.export_compact(compact, run.model, params, mask, run.head)
    print(f"{compact}: {size:,} bytes for {mask.size:,} masked weights and the head")
    masked, _ = pretrained.load_compact(compact, params)
    try:
        return [compact, _export_network(run, masked, out)]
    except ValueError as error:  # the architecture has no published format
        print(f"no {out / 'huggingface'}: {error}")
    _write_card(run, out, "compact")
    return [compact]


def _export_parts(run: Finished, params: models.Params, out: Path) -> list[Path]:
    """The network with its tuned parts merged, then these alone where their base has a name."""
    parts = _parts(run, params)
    written = [_export_network(run, adapters.grow(params, parts), out)]
    base, folder = _base(run.config), out / "adapter"
    if not parts or not base:
        why = "transformers cannot load its base" if parts else "the head alone was trained"
        print(f"no {folder}: {why}")
        return written
    try:
        revision = run.config.model.revision
        pretrained.export_adapter(folder, run.model, parts, run.head, run.class_names, base, revision)
    except ValueError as error:
        print(f"no {folder}: {error}")
        return written
    _write_card(run, folder, "adapter")
    print(f"{folder}: {sum(np.size(part) for part in parts.values()):,} numbers for peft, on top of {base}")
    return [*written, folder]


def _export_network(run: Finished, params: models.Params, out: Path) -> Path:
    folder = out / "huggingface"
    pretrained.export_huggingface(folder, run.model, params, run.head, run.class_names)
    _write_card(run, folder, "network")
    print(f"{folder}: the network and its head")
    return folder


def _parts(run: Finished, params: models.Params) -> adapters.Parts:
    """What was tuned, as biases or low-rank factors.

    Raises:
        ValueError: layers that no published format has, or a damaged file.
    """
    config, options = run.config, run.config.peft
    if options.kind in ("adapter", "prompt"):
        raise ValueError(
            f"peft.kind={options.kind!r} adds layers that no published format has: they stay in "
            f"{config.method}.safetensors"
        )
    model = without_cut(config, run.model) if methods.trains_prefix(config) else run.model
    index = FlatIndex.create(params, run.model.masked)
    tuned = tuned_parts(options, config.seed, Task(model, params, run.head, index))
    learned = {name: x for name, x in run.learned.items() if not name.startswith("head/")}
    if {name: np.shape(x) for name, x in learned.items()} != {
        name: np.shape(x) for name, x in tuned.trained.items()
    }:
        raise ValueError(f"{config.method}.safetensors is damaged: it does not hold what config.peft tunes")
    return tuned.expand(tuned.frozen, learned)


def _base(config: ConfigDict) -> str:
    """What transformers loads the run's base network by; '' where it cannot."""
    checkpoint = config.model.checkpoint
    if checkpoint.startswith("hf:"):
        return checkpoint.removeprefix("hf:")
    return checkpoint if checkpoint and (expanded(checkpoint) / "config.json").is_file() else ""


def _for_hub(written: list[Path]) -> dict[str, Path]:
    """Name in a repository -> file: the last folder's at its root, where libraries look.

    A merged network beside an adapter stays here: where both lie, transformers takes the adapter.
    """
    last = written[-1]
    folder = last if last.is_dir() else last.parent
    files = sorted(folder.iterdir()) if last.is_dir() else [folder / "README.md"]
    return {file.name: file for file in [*files, *(path for path in written if path.is_file())]}


def _write_card(run: Finished, folder: Path, form: str) -> None:
    card.write(folder, form, run.config, run.model, run.summary, run.environment, run.class_names)


def _finished(workdir: Path) -> Finished:
    """What a run left in its workdir.

    Raises:
        ValueError: it is not there, not finished, damaged, or learned what cannot be exported.
    """
    summary = claim.summary_of(workdir)  # a damaged one is refused
    try:
        config, split, environment = (
            json.loads((workdir / file).read_text())
            for file in ("config.json", "split.json", "environment.json")
        )
        config = ConfigDict(config)
        model = models.build(config.model)
        class_names = [str(name) for name in split["class_names"]]
        file = workdir / f"{config.method}.safetensors"
    except OSError as error:
        raise ValueError(f"{workdir} holds no finished run: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{workdir} holds no run, or a damaged one: {one_line(error)}") from None
    lacking = next((path.name for path in (file, workdir / "summary.json") if not path.exists()), "")
    if lacking or summary is None:
        raise ValueError(f"{workdir} holds no finished run: there is no {lacking} yet")
    tensors = read_safetensors(file)
    if "mask" not in tensors and not methods.tunes_parts(config):
        raise ValueError(
            f"{workdir}: method {config.method!r} learned no mask and tuned no part of config.peft: there is "
            "nothing to export"
        )
    wanted = ("theta", "head/kernel", "head/bias") if "mask" in tensors else ("head/kernel", "head/bias")
    if missing := [name for name in wanted if name not in tensors]:
        raise ValueError(f"{file} is damaged: it lacks {', '.join(missing)}")
    if "mask" in tensors:
        mask, theta = tensors["mask"], tensors["theta"]
        if len(theta.shape) != 1 or (mask.dtype, mask.shape) != ("uint8", (-(-theta.shape[0] // 8),)):
            raise ValueError(f"{file} is damaged: its mask does not fit its theta")
    if tensors["head/bias"].shape != (len(class_names),):
        raise ValueError(
            f"{workdir} is damaged: its head has not {len(class_names)} classes, as split.json has"
        )
    learned = {name: tensor() for name, tensor in tensors.items()}
    return Finished(config, model, learned, class_names, summary, environment)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workdir", help="folder of a finished run")
    parser.add_argument("--out", help="where to write; by default `export` inside it")
    parser.add_argument("--push-to-hub", default="", metavar="ORG/NAME", help="a hub repository to fill too")
    options = parser.parse_args(argv)
    try:
        export(options.workdir, options.out, options.push_to_hub)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
