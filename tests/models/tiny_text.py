"""A checkpoint of a tiny text encoder with its tokenizer, and a table that it can learn, as files."""

from pathlib import Path

import jax

from deltamask_jax import models, pretrained
from deltamask_jax.models.bert import BertConfig
from tests.data.test_tokenization import TOKENIZER

TINY = BertConfig("bert", 16, 2, 2, 32, vocabulary=8, positions=16, pooling="mean")


def write(folder: Path) -> None:
    """`folder/checkpoint` and `folder/reviews.csv`."""
    model = models.from_architecture(TINY, name="tiny_bert", max_length=6, trained_blocks=1)
    pretrained.export_huggingface(folder / "checkpoint", model, model.init(jax.random.key(0)))
    (folder / "checkpoint" / "tokenizer.json").write_text(TOKENIZER)
    lines = ["text,label,who,split"]
    for i in range(60):
        text, label = ("good " * (1 + i % 4), "yes") if i % 2 else ("not " * (i % 3) + "bad", "no")
        lines.append(f"{text.strip()},{label},u{i % 5},{'test' if i > 39 else 'train'}")
    (folder / "reviews.csv").write_text("\n".join(lines) + "\n")
