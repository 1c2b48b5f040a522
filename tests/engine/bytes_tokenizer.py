"""A byte-level tokenizer: token i < 256 is byte i, two tokens are words, one is special."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

END, FIRST_WORD = 256, 257
WORDS = ("hello", "llo w", " wor", "ld", "\n\n", "stop", "STO", "P!")


def _letters() -> dict[int, str]:
    """The visible stand-in of every byte in byte-level vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    hidden = (byte for byte in range(256) if byte not in table)
    return table | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


@cache
def tokenizer() -> Any:
    """A fast tokenizer of ``transformers``; text is encoded byte by byte."""
    letters = _letters()
    assert set(letters.values()) == set(ByteLevel.alphabet())
    vocab = {letters[byte]: byte for byte in range(256)} | {"<end>": END}
    for index, word in enumerate(WORDS):
        vocab["".join(letters[byte] for byte in word.encode())] = FIRST_WORD + index
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>")


def word(text: str) -> int:
    """The token of one of ``WORDS``."""
    return FIRST_WORD + WORDS.index(text)


def as_bytes(text: str) -> list[int]:
    return list(text.encode())
