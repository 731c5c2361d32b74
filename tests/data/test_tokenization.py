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
    assert (prepared.vocabulary(), prepared.largest()) == (7, 6)


def test_texts_however_odd_are_as_long_as_all_others():
    texts = ["", "😀👩‍👩‍👧", "שלום good مرحبا", "good\u202e\u0000bad", "x" * 100_000, "good " * 20_000]
    words = Tokenization(6, 0, TOKENIZER).apply(texts)
    assert words.tolist()[2:] == [
        [2, 1, 4, 1, 3, 0], [2, 4, 1, 5, 3, 0], [2, 1, 3, 0, 0, 0], [2, 4, 4, 4, 4, 3]
    ]  # fmt: skip
    assert (words[:, 0] == 2).all() and words.shape == (6, 6)


def test_the_padding_word_is_known_by_its_usual_names():
    assert Tokenization(6, 0, TOKENIZER).padding() == 0
    assert Tokenization(6, 0, TOKENIZER.replace('"[PAD]": 0', '"<pad>": 7')).padding() == 7
    assert Tokenization(6, 0, TOKENIZER.replace("[PAD]", "other")).padding() is None


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
