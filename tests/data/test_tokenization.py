"""Texts become the numbers that their checkpoint's tokenizer gives, cut and padded to one length."""

import json
import sys

import numpy as np
import pytest

from deltamask_jax.data.tokenization import Tokenization

WORDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4, "bad": 5, "not": 6}
TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"},
    }
)


def test_texts_are_cut_and_padded():
    prepared = Tokenization(6, 0, TOKENIZER)
    words = prepared.apply(["Not bad", "", "good good good good good good", "what"])
    assert words.dtype == np.int32 and words.shape == (4, *prepared.shape)
    assert words.tolist() == [
        [2, 6, 5, 3, 0, 0], [2, 3, 0, 0, 0, 0], [2, 4, 4, 4, 4, 3], [2, 1, 3, 0, 0, 0]
    ]  # fmt: skip
    assert prepared.vocabulary() == 7


def test_a_damaged_tokenizer_is_named():
    with pytest.raises(ValueError, match="tokenizer.json is damaged"):
        Tokenization(6, 0, "{").vocabulary()


def test_padding_of_the_file_does_not_matter():
    padding = {
        "strategy": {"Fixed": 9},
        "direction": "Left",
        "pad_id": 5,
        "pad_type_id": 0,
        "pad_token": "bad",
    }
    padded = json.dumps(json.loads(TOKENIZER) | {"padding": padding | {"pad_to_multiple_of": None}})
    assert Tokenization(4, 0, padded).apply(["good"]).tolist() == [[2, 4, 3, 0]]


def test_without_the_library_a_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install 'deltamask_jax\[text\]'$"):
        Tokenization(7, 0, TOKENIZER).vocabulary()
