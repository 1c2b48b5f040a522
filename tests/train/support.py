"""Builders of the fixtures, importable by the processes that tests start."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from jakiro.target.target import Target
from jakiro.train.samples import Piece, Samples, stored

VOCABULARY = 40
WORDS = [f"w{number}" for number in range(VOCABULARY - 4)]
SPECIALS = ["<end>", "<user>", "<assistant>", "<system>"]
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} "
    "{% if message.role == 'assistant' %}<end> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tiny_target(dtype: torch.dtype = torch.float32) -> Target:
    """Two Llama layers with random weights large enough to have opinions."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.3,
        eos_token_id=VOCABULARY - 4,
    )
    return Target(LlamaForCausalLM(config).to(dtype).eval())


def word_tokenizer(template: str = TEMPLATE) -> Any:
    """One token per word."""
    vocabulary = {word: place for place, word in enumerate([*WORDS, *SPECIALS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<end>",
        additional_special_tokens=SPECIALS[1:],
        chat_template=template,
    )


def samples_of(count: int, length: int) -> Samples:
    """Random token sequences of two lengths, with loss on all but the first four tokens."""
    generator = torch.Generator().manual_seed(0)
    pieces = []
    for number in range(count):
        own = length - 5 * (number % 2)
        ids = torch.randint(VOCABULARY, (own,), generator=generator).tolist()
        pieces.append((ids, [False] * 4 + [True] * (own - 4)))
    return samples_from(pieces)


def samples_from(pieces: Iterable[Piece]) -> Samples:
    """Samples whose files are mapped and already gone."""
    with TemporaryDirectory() as directory:
        return stored(lambda: pieces, Path(directory), "test")
