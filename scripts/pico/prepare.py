"""Train the tokenizer and turn the training text into token arrays.

``python scripts/pico/prepare.py --data DIR --out DIR`` reads ``DIR/text/*.jsonl`` and
``DIR/chat/*.jsonl`` and writes ``tokenizer/``, ``text.npy``, ``chat.npy`` (uint16, documents
shuffled and concatenated) and ``held_out.jsonl``, the one record in a hundred that training never
sees.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from corpus import ASSISTANT, BOS, CHAT_TEMPLATE, EOS, PAD, SPECIAL_TOKENS, USER, render, split
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Words with one leading space, single digits, runs of punctuation, runs of spaces kept whole so
# that Python indentation is one token.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\n+| +(?= )|\s+"


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of ``vocab_size`` tokens, special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in (BOS, EOS, PAD)],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """All texts as one uint16 array; the special tokens written in the text are recognised."""
    batch = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return np.concatenate([np.asarray(item.ids, dtype=np.uint16) for item in batch])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--held-out", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    text, text_held = split(sorted(args.data.glob("text/*.jsonl")), args.held_out, args.seed)
    chat, chat_held = split(sorted(args.data.glob("chat/*.jsonl")), args.held_out, args.seed)
    texts, chats = [render(r) for r in text], [render(r) for r in chat]

    bare = [document.replace(BOS, "").replace(EOS, "") for document in texts + chats]
    tokenizer = train_tokenizer(bare, args.vocab_size)
    tokenizer.save_pretrained(args.out / "tokenizer")
    assert tokenizer.convert_tokens_to_ids([USER, ASSISTANT]) == [4, 5]

    for name, documents in ("text", texts), ("chat", chats):
        tokens = encode(tokenizer, documents)
        np.save(args.out / f"{name}.npy", tokens)
        print(f"{name}: {len(documents)} documents, {len(tokens)} tokens")
    with (args.out / "held_out.jsonl").open("w", encoding="utf-8") as lines:
        for record in text_held + chat_held:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
