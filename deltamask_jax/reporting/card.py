"""The model card of an export: what the network is, how it was trained, what it cost, how to load it."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from ml_collections import ConfigDict

from deltamask_jax.data.tokenization import Tokenization
from deltamask_jax.models import Model

_CARD = """---
{metadata}
---

# {title}

{model}, fine-tuned across {clients} clients by `{method}` with deltamask_jax {version}.
Every byte between server and clients is counted below.

| | |
|---|---|
{table}

## How to load it

```python
{usage}
```

## How it was made

```bash
{command}
```

Commit of deltamask_jax: {commit}. Devices: {devices}. The accuracy is that of one run with one seed.
Nothing else was evaluated: no other data, no fairness, no robustness.
"""
_FROM_COMPACT = """from types import SimpleNamespace

from deltamask_jax import models, pretrained

model = models.from_architecture(models.PRESETS["{name}"], name="{name}", image_size={size})
params = pretrained.load(SimpleNamespace(checkpoint="BASE", revision=""), model)
params, head = pretrained.load_compact("FOLDER/compact.safetensors", params)"""
_FROM_TIMM = """import timm

model = timm.create_model("local-dir:FOLDER")"""
_HERE = "FOLDER_OR_ORG/NAME"
_HUB_ID = re.compile(r"(?:[\w-]+/)?[\w.-]+", re.ASCII)  # what the hub takes as a data set's type
_CLASSIFIER = "AutoModelForImageClassification"
_CLASSES = {"clip": "CLIPVisionModelWithProjection", "bert": "AutoModel", "roberta": "AutoModel"}


def write(
    folder: Path,
    form: str,
    config: ConfigDict,
    model: Model,
    summary: dict[str, Any],
    environment: dict[str, Any],
    class_names: list[str],
) -> None:
    """Writes folder/README.md, a card as the Hugging Face hub reads it.

    Args:
        folder: of the export.
        form: what lies there: a 'network', an 'adapter' or a 'compact' file.
        config, summary, environment: as the run wrote them.
        model: the network.
        class_names: one per class.

    Raises:
        OSError: it cannot be written.
    """
    family = model.architecture.family
    library = {"adapter": "peft", "network": "timm" if family == "convmixer" else "transformers"}
    on_hub = config.model.checkpoint.startswith("hf:")
    data, data_on_hub = _data(config), _data_on_hub(config)
    split = "validation" if config.validation_examples else "test"
    result = EvalResult(
        task_type=f"{'text' if isinstance(model.preprocessing, Tokenization) else 'image'}-classification",
        # The hub refuses the whole card if its type holds anything else, the colon of `tfds:` for one.
        dataset_type=data_on_hub or re.sub(r"[^\w.-]", "-", data, flags=re.ASCII),
        dataset_name=data,
        dataset_split=split,
        metric_type="accuracy",
        metric_value=_accuracy(summary),
    )
    metadata = ModelCardData(
        base_model=_base(config) if on_hub else None,
        base_model_relation=("adapter" if form == "adapter" else "finetune") if on_hub else None,
        datasets=[data_on_hub] if data_on_hub else None,
        library_name=library.get(form, "deltamask_jax"),
        metrics=["accuracy"],
        tags=["federated-learning", "deltamask_jax", config.method],
        model_name=f"{config.model.name}-{config.method}",
        eval_results=[result],
    )
    rows = _rows(config, summary, class_names, split)
    text = _CARD.format(
        metadata=metadata.to_yaml(),
        title=metadata.model_name,
        model=config.model.name,
        clients=config.clients,
        method=config.method,
        version=environment["deltamask_jax"],
        table="\n".join(f"| {name} | {value} |" for name, value in rows),
        usage=_usage(form, family, config, model, len(class_names)),
        command=environment["command"],
        commit=environment["commit"] or "unknown",
        devices=environment["devices"],
    )
    ModelCard(text).save(folder / "README.md")


def _rows(
    config: ConfigDict, summary: dict[str, Any], class_names: list[str], split: str
) -> list[tuple[str, str]]:
    alpha = f", α = {config.partition.alpha:g}" if config.partition.name == "dirichlet" else ""
    epsilon, dp = summary.get("epsilon"), config.get("dp")
    privacy = "no differential privacy" if epsilon is None else f"ε = {epsilon:.4g}"
    privacy += f", δ = {dp.delta:.3g}, per {dp.level}" if dp and epsilon is not None else ""
    probe, revision = summary["linear_probe_accuracy"], config.model.revision
    commit = f", commit {revision}" if revision else ""
    return [
        ("base model", _base(config) + commit),
        ("data", f"{_data(config)}, {len(class_names)} classes: {_cell(', '.join(class_names))}"),
        ("split", f"{config.partition.name}{alpha}, {config.clients} clients"),
        ("rounds", f"{summary['rounds']}, each with {100 * config.participation:.3g} % of the clients"),
        ("bytes up", f"{summary['uplink_bytes']:,}"),
        ("bytes down", f"{summary['downlink_bytes']:,}"),
        ("bytes per client", f"{summary['total_bytes_per_client']:,.0f}, up and down"),
        ("privacy", privacy),
        ("seed", str(config.seed)),
        ("accuracy", f"{_accuracy(summary):.2%} of the {split} examples"),
        *([] if probe is None else [("accuracy of a linear probe", f"{probe:.2%}")]),
    ]


def _accuracy(summary: dict[str, Any]) -> float:
    """Of the network that is exported: a mask is thresholded, whatever the run evaluated."""
    return summary.get("thresholded_accuracy", summary["final_accuracy"])


def _base(config: ConfigDict) -> str:
    """The base network's name for people: a hub id, or the last part of a path."""
    checkpoint = config.model.checkpoint
    if checkpoint in ("", "embedded"):
        return f"{config.model.name}, {'embedded in deltamask_jax' if checkpoint else 'random weights'}"
    return checkpoint.removeprefix("hf:") if checkpoint.startswith("hf:") else Path(checkpoint).name


def _data(config: ConfigDict) -> str:
    """The data's name without the folders it lay in."""
    kind, colon, name = config.data.partition(":")
    is_a_name = not colon or kind == "tfds" or _data_on_hub(config)
    return config.data if is_a_name else f"{kind}:{Path(name).name}"


def _data_on_hub(config: ConfigDict) -> str:
    """The hub's id of the data; '' where it lies elsewhere, as a folder does that `hf:` names."""
    kind, _, name = config.data.partition(":")
    repository = name.partition(",")[0]
    return repository if kind == "hf" and _HUB_ID.fullmatch(repository) else ""


def _usage(form: str, family: str, config: ConfigDict, model: Model, classes: int) -> str:
    if form == "compact":
        return _FROM_COMPACT.format(name=model.name, size=model.image_size)
    if family == "convmixer":
        return _FROM_TIMM
    cls = _CLASSES.get(family, _CLASSIFIER)
    lines = [f"from transformers import {cls}", "", f'model = {cls}.from_pretrained("{_HERE}")']
    if form == "adapter":
        revision = f', revision="{config.model.revision}"' if config.model.revision else ""
        labels = f", num_labels={classes}, ignore_mismatched_sizes=True" if cls == _CLASSIFIER else ""
        base = config.model.checkpoint.removeprefix("hf:")
        lines = [
            "from peft import PeftModel",
            f"from transformers import {cls}  # 5 or later",
            "",
            f'base = {cls}.from_pretrained("{base}"{revision}{labels})',
            f'model = PeftModel.from_pretrained(base, "{_HERE}")',
        ]
    if cls != _CLASSIFIER:  # the head lies beside
        lines[:0] = ["from safetensors.numpy import load_file"]
        pooled = "image_embeds" if family == "clip" else f"{model.architecture.pooling} of last_hidden_state"
        lines += [
            'head = load_file("FOLDER/head.safetensors")',
            f'# logits: features @ head["kernel"] + head["bias"]; features: {pooled}',
        ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text in one cell of a table, cut."""
    words = " ".join(text.replace("|", "\\|").split())
    return words if len(words) <= 400 else words[:399] + "…"
