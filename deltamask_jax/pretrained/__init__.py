"""Checkpoints in, checkpoints out. Every tensor is accounted for: nothing is skipped in silence.

`load` reads Hugging Face safetensors (ViT, CLIP, DINOv2, BERT, RoBERTa), timm's ConvMixer, AugReg npz, and
trees of Scenic, vision_transformer or our own. `export_huggingface` writes a fine-tuned network the way
it came; `export_adapter` writes low-rank updates or biases alone, for `peft`; `export_compact` a mask and the
head alone, tied to the hash of their base.
"""

import dataclasses
import importlib.resources
from typing import Any

from deltamask_jax.data.tokenization import Tokenization
from deltamask_jax.models import Model, Params
from deltamask_jax.pretrained.adapter import export_adapter
from deltamask_jax.pretrained.checkpoints import read, tokenizer
from deltamask_jax.pretrained.compact import export_compact, load_compact, params_hash
from deltamask_jax.pretrained.convert import convert
from deltamask_jax.pretrained.export import export_huggingface
from deltamask_jax.private_random import root_key

__all__ = [
    "load",
    "with_tokenizer",
    "export_huggingface",
    "export_adapter",
    "export_compact",
    "load_compact",
    "params_hash",
]

_SPARE_WORDS = 128  # rows of an embedding beyond its tokenizer's words, for round sizes
EMBEDDED = {"glyph_vit": "glyph_vit.safetensors"}  # checkpoint 'embedded'


def load(config: Any, model: Model) -> Params:
    """Parameters of `model` as `config` (fields checkpoint and revision) says, float32.

    `checkpoint` is '' (random, fixed key), 'embedded', a file, a directory or 'hf:org/name';
    `revision` pins a hub checkpoint. Position embeddings are resized to the model's image size.

    Raises:
        FileNotFoundError: nothing there, or not to be downloaded.
        ValueError: another family of networks, or tensors missing, unexpected or misshaped.
    """
    if not config.checkpoint:
        return model.init(root_key(0))
    if config.checkpoint != "embedded":
        return convert(read(config.checkpoint, config.revision), model)
    if model.name not in EMBEDDED:
        raise ValueError(f"no weights of {model.name} are embedded; set model.checkpoint, '' = random")
    asset = importlib.resources.files("deltamask_jax") / "assets" / EMBEDDED[model.name]
    with importlib.resources.as_file(asset) as path:
        return convert(read(str(path)), model)


def with_tokenizer(config: Any, model: Model) -> Model:
    """A model of texts with the tokenizer that lies beside its checkpoint (config as of `load`).

    Raises:
        FileNotFoundError: none is there, or it is not to be downloaded.
        ValueError: no checkpoint, a tokenizer that is damaged or of another model, or no library to read it.
    """
    if config.checkpoint in ("", "embedded"):
        raise ValueError(
            f"{model.name} needs a checkpoint, whose tokenizer reads the texts: set model.checkpoint"
        )
    prepared, words = model.preprocessing, model.architecture.vocabulary
    if not isinstance(prepared, Tokenization):
        raise ValueError(f"{model.name} reads no texts")
    prepared = dataclasses.replace(prepared, tokenizer=tokenizer(config.checkpoint, config.revision))
    # Embeddings may have some rows more than there are words.
    if not words - _SPARE_WORDS < prepared.vocabulary() <= words:
        raise ValueError(
            f"the tokenizer of {config.checkpoint} knows {prepared.vocabulary():,} words, "
            f"{model.name} {words:,}: choose the model it was trained with"
        )
    if (largest := prepared.largest()) >= words:
        raise ValueError(
            f"the tokenizer of {config.checkpoint} numbers a word {largest:,}, {model.name} has {words:,}: "
            "choose the model it was trained with"
        )
    if prepared.padding() not in (None, prepared.pad):
        raise ValueError(
            f"the tokenizer of {config.checkpoint} pads with word {prepared.padding()}, {model.name} with "
            f"{prepared.pad}: choose the model it was trained with"
        )
    return dataclasses.replace(model, preprocessing=prepared)
