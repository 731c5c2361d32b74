"""Fine-tuned networks back in the format they came in."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from deltamask_jax.data.preprocessing import Preprocessing
from deltamask_jax.data.tokenization import Tokenization
from deltamask_jax.models import Model, Params
from deltamask_jax.models.bert import BertConfig
from deltamask_jax.pretrained import layouts
from deltamask_jax.pretrained.tensors import write_safetensors

Head = dict[str, Any]  # {'kernel': f32[feature_dim, classes], 'bias': f32[classes]}


def export_huggingface(
    directory: str | Path,
    model: Model,
    params: Params,
    head: Head | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Writes model.safetensors and config.json that the family's own library loads.

    ViT, CLIP and DINOv2 load with `transformers.AutoModel.from_pretrained(directory)` and, but for
    CLIP, whose transformers classifier pools otherwise, with
    `AutoModelForImageClassification`; BERT and RoBERTa with `AutoModel` and, from the same folder,
    `AutoTokenizer`; ConvMixer with `timm.create_model('local-dir:DIRECTORY')`.
    The head lies in head.safetensors besides.

    Args:
        directory: created if need be.
        model: what the parameters belong to; its image size becomes the checkpoint's.
        params: with the mask applied.
        head: the classifier on top.
        class_names: one per class, for the config's id2label.

    Raises:
        ValueError: an architecture that its published format cannot express, a head of other shapes, or
            other than one name per class.
        OSError: a file cannot be written.
    """
    a = model.architecture
    if a.family == "vit" and not (a.class_token and a.pooling == "cls"):
        raise ValueError(f"{model.name} has no cls token to pool, which Hugging Face's ViT needs")
    flat = traverse_util.flatten_dict(params, sep="/")
    wanted = layouts.stored(a, layouts.parameter_shapes(model))
    tensors = {t.key: t.write(np.asarray(flat[path], np.float32)) for path, t in wanted.items()}
    config, prefix = published_config(model, head)
    tensors = {prefixed(key, prefix): value for key, value in tensors.items()}
    if a.family == "dinov2":  # unused, but transformers warns of files without it
        tensors[f"{prefix}embeddings.mask_token"] = np.zeros((1, a.width), np.float32)
    if head is not None:
        kernel, bias = checked_head(model, head, class_names)
        tensors |= classifier(a.family, kernel, bias)
        names = class_names or [f"LABEL_{i}" for i in range(len(bias))]
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        config["label2id"] = {name: i for i, name in enumerate(names)}
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if head is not None:
        write_safetensors(directory / "head.safetensors", {"kernel": kernel, "bias": bias}, {})
    write_preprocessing(directory, model)


def write_preprocessing(directory: Path, model: Model) -> None:
    """The tokenizer or the image processor's settings, as transformers reads them."""
    if isinstance(model.preprocessing, Tokenization):
        (directory / "tokenizer.json").write_text(model.preprocessing.tokenizer, encoding="utf-8")
    elif model.architecture.family != "convmixer":
        processor = _processor(model.architecture.family, model.preprocessing)
        (directory / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def checked_head(model: Model, head: Head, class_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a head that fits the model.

    Raises:
        ValueError: it has other shapes, or not one name per class.
    """
    kernel, bias = (np.asarray(head[name], np.float32) for name in ("kernel", "bias"))
    if kernel.shape != (model.feature_dim, *bias.shape) or len(class_names) not in (0, len(bias)):
        raise ValueError(
            f"a head of shapes {[*kernel.shape]} and {[*bias.shape]} with {len(class_names)} class names "
            f"is none of {model.name}, which gives {model.feature_dim} features"
        )
    return kernel, bias


def prefixed(key: str, prefix: str) -> str:
    """A name below the backbone's prefix; CLIP's projection stands outside."""
    return key if key.startswith("visual_projection") else prefix + key


def published_config(model: Model, head: Head | None) -> tuple[dict[str, Any], str]:
    """config.json, and the prefix its architecture gives to the names of the backbone."""
    a = model.architecture
    p = model.preprocessing
    if a.family == "convmixer" and isinstance(p, Preprocessing):
        shape = {"input_size": [3, p.size, p.size], "mean": p.mean, "std": p.std, "crop_pct": p.crop}
        cfg = shape | {"first_conv": "stem.0", "classifier": "head", "interpolation": p.filter}
        classes = 0 if head is None else len(head["bias"])
        return {"architecture": model.name, "num_classes": classes, "pretrained_cfg": cfg}, ""
    if isinstance(a, BertConfig):
        names = {"bert": "BertModel", "roberta": "RobertaModel"}
        return layouts.huggingface_config(a) | {
            "torch_dtype": "float32",
            "architectures": [names[a.family]],
        }, ""
    config = layouts.huggingface_config(dataclasses.replace(a, image_size=model.image_size))
    config["torch_dtype"] = "float32"
    if a.family == "clip":
        name = "CLIPVisionModelWithProjection" if a.projection else "CLIPVisionModel"
        return config | {"architectures": [name]}, "vision_model."
    base = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}
    kind = config["model_type"]
    name = base[kind] + ("Model" if head is None else "ForImageClassification")
    return config | {"architectures": [name]}, "" if head is None else f"{kind}."


def classifier(family: str, kernel: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """A head as the tensors of the family's own classifier; none where that pools otherwise than we do."""
    weight = np.ascontiguousarray(kernel.T)
    if family in ("clip", "bert", "roberta"):
        return {}
    if family == "convmixer":
        return {"head.weight": weight, "head.bias": bias}
    if family == "dinov2":  # transformers concatenates the mean of the patches, which we do not use
        weight = np.concatenate([weight, np.zeros_like(weight)], axis=1)
    return {"classifier.weight": weight, "classifier.bias": bias}


def _processor(family: str, p: Preprocessing) -> dict[str, Any]:
    """preprocessor_config.json of the family's image processor."""
    names = {
        "vit": "ViTImageProcessor",
        "clip": "CLIPImageProcessor",
        "dinov2": "BitImageProcessor",
    }
    square = {"height": p.size, "width": p.size}
    exact = p.resize == "exact"
    config = {
        "image_processor_type": names[family],
        "do_resize": True,
        "size": square if exact else {"shortest_edge": int(p.size / p.crop + 1e-6)},
        "resample": {"bilinear": 2, "bicubic": 3}[p.filter],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": p.mean,
        "image_std": p.std,
    }
    if not exact:
        config |= {"do_center_crop": True, "crop_size": square, "do_convert_rgb": True}
    return config
