"""Text grows at the same places whenever it is read, behind the prompt, in few short decodings."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from jakiro.drafters.none import NoDrafter
from jakiro.engine.detokenize import Detokenizer
from jakiro.engine.engine import Engine
from jakiro.sampling.params import SamplingParams
from jakiro.verify import find
from tests.engine.bytes_tokenizer import as_bytes, tokenizer
from tests.engine.script import Says, target

WORDS = ("▁The", "▁is", "▁Paris", "a", ":", "▁")


@cache
def fallback() -> Any:
    """As those of Llama 2: token i < 256 is byte i, words carry their space, and the first space of
    what is decoded is stripped."""
    names = [*(f"<0x{byte:02X}>" for byte in range(256)), "<s>", *WORDS]
    vocab = {name: index for index, name in enumerate(names)}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")


BEGIN = 256


def word(text: str) -> int:
    return 257 + WORDS.index(text)


class Counting:
    """A tokenizer of bytes that notes how much it is asked to decode."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def decode(self, ids: list[int], **kwargs: Any) -> str:
        self.sizes.append(len(ids))
        return str(tokenizer().decode(ids, **kwargs))


@pytest.mark.parametrize("stop", [(), ("zz",)])
@pytest.mark.parametrize("unit", [b"\xff", b"\xe2\x82", "\ufffd".encode(), "ä".encode(), b"a"])
def test_no_text_needs_more_than_a_few_short_decodings_a_token(
    unit: bytes, stop: tuple[str, ...]
) -> None:
    ids, counting = list(unit * 300), Counting()
    found = Detokenizer(counting, stop)
    for token in ids:
        found.push(token)
        assert found.num_safe <= len(found.text)
    found.finish()
    assert found.text == tokenizer().decode(ids)
    assert len(counting.sizes) <= 3 * len(ids)
    assert max(counting.sizes) <= 7


@settings(max_examples=60)
@given(st.binary(max_size=12), st.binary(max_size=6), st.sets(st.integers(0, 12)))
def test_broken_text_is_what_the_whole_is_decoded_to(
    answer: bytes, prompt: bytes, asked: set[int]
) -> None:
    """Of bytes that decode one by one, behind whole characters, whenever it is ``asked``."""
    prompt += b"."
    whole = tokenizer().decode(list(answer))
    found = Detokenizer(tokenizer(), prompt_ids=list(prompt))
    for count, token in enumerate(answer):
        found.push(token)
        if count in asked:
            assert whole.startswith(found.text)
    found.finish()
    assert found.text == whole


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([0xC3, 0xA9, 0xFF, 0xE6, 0xBC, 0xA2, word("a"), word("▁is")])),
    st.sets(st.integers(0, 20)),
)
def test_when_it_is_asked_for_changes_no_text(ids: list[int], asked: set[int]) -> None:
    """Of a decoder that shows no character among bytes of which one is broken."""
    texts = []
    for places in (range(0), range(len(ids)), asked):
        found, shown = Detokenizer(fallback()), ""
        for count, token in enumerate(ids):
            found.push(token)
            if count in places:
                assert found.text.startswith(shown)
                shown = found.text
        found.finish()
        texts.append(found.text)
    assert len(set(texts)) == 1


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ([BEGIN, word("▁The"), word("▁is")], " Paris"),
        ([BEGIN, word("▁The"), word("▁")], " Paris"),
        ([BEGIN, word("▁The"), *as_bytes("漢")], " Paris"),
        ([BEGIN, word("▁The"), word(":"), BEGIN], "Paris"),
        ([BEGIN], "Paris"),
    ],
    ids=["word", "space", "bytes", "special", "nothing"],
)
def test_an_answer_is_read_behind_its_prompt(prompt: list[int], text: str) -> None:
    """A space is shown between words, and not behind a special token."""
    script = [word("▁Paris"), word("a")]
    found = Engine(target(), NoDrafter(), find("match"), tokenizer=fallback())
    params = SamplingParams(max_new_tokens=2)
    (done,) = found.generate([prompt], params, processors=[Says(script, prompt)])
    assert (done.token_ids, done.text) == (script, text + "a")
