"""Low-rank updates and biases as an adapter that `peft` loads on top of the published network.

Names are those of the modules of transformers 5. Low-rank updates are peft's LoRA with a factor of 1. Biases
have no kind of their own in peft: they travel as LoRA's `bias='all'` does, whole, in an adapter that targets
no module.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deltamask_jax.models import Model
from deltamask_jax.models.adapters import Parts
from deltamask_jax.pretrained import layouts
from deltamask_jax.pretrained.export import (
    Head,
    checked_head,
    classifier,
    prefixed,
    published_config,
    write_preprocessing,
)
from deltamask_jax.pretrained.tensors import write_safetensors

_NO_MODULE = "dummy-target-modules"  # what peft takes for an adapter without layers of its own


def export_adapter(
    directory: str | Path,
    model: Model,
    parts: Parts,
    head: Head,
    class_names: Sequence[str],
    base: str,
    revision: str = "",
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors for `peft.PeftModel.from_pretrained`.

    ViT and DINOv2 are loaded with `AutoModelForImageClassification` and the head is part of the adapter. Of
    CLIP (`CLIPVisionModelWithProjection`), BERT and RoBERTa (`AutoModel`) the head lies in head.safetensors.

    Args:
        directory: created if need be.
        model: what the parts belong to.
        parts: every trained bias by its path, or LoRA's factors `…/lora_a`, `…/lora_b`, as `adapters.grow`
            takes them.
        head: the classifier on top.
        class_names: one per class.
        base: the network without the parts, as transformers calls it: a hub id, or a folder.
        revision: its commit, if pinned.

    Raises:
        ValueError: a network that is not of transformers, parts of another kind, or a head of other shapes.
        OSError: a file cannot be written.
    """
    a = model.architecture
    if a.family == "convmixer":
        raise ValueError(f"{model.name} is a network of timm, for which peft has no names")
    kernel, bias = checked_head(model, head, class_names)
    prefix = published_config(model, head)[1]
    wanted = layouts.stored(a, layouts.parameter_shapes(model))
    tensors: dict[str, np.ndarray] = {}
    targets, rank = [], 0
    for path, part in parts.items():
        module, _, leaf = path.rpartition("/")
        if leaf not in ("bias", "lora_a", "lora_b"):
            raise ValueError(f"peft has no adapter that holds {path}")
        part = np.asarray(part, np.float32)
        name = wanted[path if leaf == "bias" else f"{module}/kernel"].key.rpartition(".")[0]
        names = [prefixed(name, prefix) for name in layouts.modules(a.family, name)]
        if leaf == "lora_a":
            rank = part.shape[1]
            targets += names
            tensors |= {f"{name}.lora_A.weight": np.ascontiguousarray(part.T) for name in names}
        elif leaf == "lora_b":
            halves = np.split(np.ascontiguousarray(part.T), len(names))
            tensors |= {f"{name}.lora_B.weight": x for name, x in zip(names, halves, strict=True)}
        else:
            halves = np.split(part.reshape(-1), len(names))
            tensors |= {f"{name}.bias": x for name, x in zip(names, halves, strict=True)}
    top = classifier(a.family, kernel, bias)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "revision": revision or None,
        "inference_mode": True,
        "r": rank or 1,
        "lora_alpha": rank or 1,
        "lora_dropout": 0.0,
        "bias": "none" if rank else "all",
        "target_modules": targets or _NO_MODULE,
        "modules_to_save": ["classifier"] if top else None,
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    named = {f"base_model.model.{name}": x for name, x in (tensors | top).items()}
    write_safetensors(directory / "adapter_model.safetensors", named, {"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_safetensors(directory / "head.safetensors", {"kernel": kernel, "bias": bias}, {})
    write_preprocessing(directory, model)
