"""From texts to the numbers of their words, by a checkpoint's own tokenizer (the `tokenizers` library)."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tokenization:
    """How a text becomes network input.

    Attributes:
        length: tokens of a text; longer ones are cut, shorter ones padded.
        pad: number of the word that pads.
        tokenizer: the checkpoint's tokenizer.json; '' where it is not known yet.
    """

    length: int
    pad: int
    tokenizer: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def dtype(self) -> Any:
        return np.int32

    def apply(self, texts: Sequence[str]) -> np.ndarray:
        """Tokenises texts: i32[n, length]."""
        encoded = _tokenizer(self.tokenizer, self.length).encode_batch(list(texts))
        words = np.full((len(encoded), self.length), self.pad, np.int32)
        for row, text in zip(words, encoded, strict=True):
            row[: len(text.ids)] = text.ids
        return words

    def vocabulary(self) -> int:
        """Words that the tokenizer knows.

        Raises:
            ValueError: its file is damaged, or the library is not installed.
        """
        return _tokenizer(self.tokenizer, self.length).get_vocab_size()

    def largest(self) -> int:
        """The largest number of a word; numbers may have gaps."""
        return max(_tokenizer(self.tokenizer, self.length).get_vocab().values(), default=0)

    def padding(self) -> int | None:
        """The number of the tokenizer's own padding word; None where it has none of the usual names."""
        tokenizer = _tokenizer(self.tokenizer, self.length)
        return next(filter(lambda at: at is not None, map(tokenizer.token_to_id, ("[PAD]", "<pad>"))), None)


@functools.lru_cache(maxsize=4)
def _tokenizer(text: str, length: int) -> Any:
    try:
        from tokenizers import Tokenizer  # an extra
    except ModuleNotFoundError:
        raise ValueError("texts need tokenizers: pip install 'deltamask_jax[text]'") from None
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"tokenizer.json is damaged or of another version: {error}") from None
    tokenizer.enable_truncation(length)
    tokenizer.no_padding()
    return tokenizer
