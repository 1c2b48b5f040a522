"""Streams: what is shown, when, and that it adds up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jakiro.engine.detokenize import REPLACEMENT, Detokenizer
from jakiro.engine.stream import Chunk
from jakiro.errors import ConfigError, RowFailed
from jakiro.sampling.params import SamplingParams
from tests.conformance import world
from tests.conformance.doubles import PoisonedTarget
from tests.conformance.guided import Guided
from tests.engine.bytes_tokenizer import END, WORDS, as_bytes, tokenizer, word
from tests.engine.script import PROMPT, Says, engine

TEXT = "naïve 🙂 größe — 漢字 done"


def streamed(script: list[int], depth: int, params: SamplingParams) -> list[Chunk]:
    return list(engine(script, depth).stream(PROMPT, params, processors=[Says(script)]))


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 6])
def test_chunks_add_up_and_never_show_half_a_character(depth: int) -> None:
    script = [*as_bytes(TEXT), END]
    chunks = streamed(script, depth, SamplingParams(max_new_tokens=64))
    assert "".join(chunk.text for chunk in chunks) == TEXT
    assert REPLACEMENT not in "".join(chunk.text for chunk in chunks)
    assert [token for chunk in chunks for token in chunk.token_ids] == script
    *others, last = chunks
    assert all(chunk.completion is None for chunk in others)
    assert last.completion is not None
    assert (last.completion.text, last.completion.finish_reason) == (TEXT, "stop")
    # Text comes as early as it can: at the end of a block only an unfinished character waits.
    shown, given_ids = "", list[int]()
    for chunk in chunks:
        shown += chunk.text
        given_ids += chunk.token_ids
        read = bytes(t for t in given_ids if t != END).decode("utf-8", errors="ignore")
        assert shown == read


@pytest.mark.parametrize("depth", [0, 1, 2, 6])
def test_no_part_of_a_stop_string_is_ever_shown(depth: int) -> None:
    text, stop = "see STO or STOP! and more", "STOP!"
    chunks = streamed(as_bytes(text), depth, SamplingParams(max_new_tokens=24, stop=(stop,)))
    shown = ""
    for chunk in chunks:
        shown += chunk.text
        assert "see STO or ".startswith(shown)
    assert shown == "see STO or "
    assert chunks[-1].completion is not None
    assert chunks[-1].completion.text == shown


def test_a_stop_string_that_never_completes_is_shown_in_the_end() -> None:
    script = as_bytes("so STO")
    chunks = streamed(script, 2, SamplingParams(max_new_tokens=6, stop=("STOP!",)))
    assert "".join(chunk.text for chunk in chunks) == "so STO"
    assert "".join(chunk.text for chunk in chunks[:-1]) == "so "


def test_an_answer_that_ends_within_a_character_shows_a_replacement() -> None:
    script = as_bytes("ok 🙂")
    chunks = streamed(script, 0, SamplingParams(max_new_tokens=5))
    assert "".join(chunk.text for chunk in chunks) == "ok " + REPLACEMENT
    assert chunks[-1].completion is not None
    assert chunks[-1].completion.text == "ok " + REPLACEMENT


def test_streams_of_one_engine_may_be_read_in_turn() -> None:
    target = world.target("llama")
    texts = [[*world.prompt(row), *world.truth("llama", "top_p", row)] for row in range(3)]
    guided = Guided(world.make_feature_drafter(target), texts)
    shared = world.make_engine(target, guided, world.TREES["dynamic"])
    streams = [
        shared.stream(list(world.prompt(row)), world.params("top_p", row)) for row in range(3)
    ]
    tokens: list[list[int]] = [[], [], []]
    unread = set(range(3))
    while unread:
        for row in sorted(unread):
            chunk = next(streams[row], None)
            if chunk is None:
                unread.discard(row)
            else:
                tokens[row] += chunk.token_ids
    assert tokens == [list(world.truth("llama", "top_p", row)) for row in range(3)]


def test_closing_a_stream_cancels_its_request_only() -> None:
    target = world.target("llama")
    texts = [[*world.prompt(row), *world.truth("llama", "greedy", row)] for row in range(2)]
    shared = world.make_engine(target, Guided(world.make_feature_drafter(target), texts))
    closed = shared.stream(list(world.prompt(0)), world.params("greedy", 0))
    other = shared.stream(list(world.prompt(1)), world.params("greedy", 1))
    next(closed)
    first = next(other)
    closed.close()
    rest = [token for chunk in other for token in chunk.token_ids]
    assert [*first.token_ids, *rest] == list(world.truth("llama", "greedy", 1))
    assert shared.stats.num_prefills == 2
    assert shared.step() is False, "nothing is left running"


def test_a_closed_stream_leaves_at_once() -> None:
    target = world.target("llama")
    drafter = world.make_feature_drafter(target)
    found = world.make_engine(target, drafter)
    closed = found.stream(list(world.prompt(0)), world.params("greedy", 0))
    next(closed)
    assert drafter.holder is not None
    closed.close()
    assert (found.num_rows, found.num_cached, drafter.holder) == (0, 0, None)


@pytest.mark.parametrize("length", [0, 4])
def test_a_stream_closed_within_a_step_leaves_with_it(length: int) -> None:
    """The second row, whose prompt is fed or which is decoded, closes the first."""
    target = world.target("llama")
    found = world.make_engine(target, world.make_feature_drafter(target))
    closed = found.stream(list(world.prompt(0)), world.params("greedy", 0))
    next(closed)

    def closing(ids: Tensor, logits: Tensor) -> Tensor:
        if ids.shape[1] >= len(world.prompt(1)) + length:
            closed.close()
        return logits

    (done,) = found.generate(
        [list(world.prompt(1))], world.params("greedy", 1), processors=[closing]
    )
    assert done.token_ids == list(world.truth("llama", "greedy", 1))
    assert found.num_rows == 0


def test_a_failed_stream_raises_after_what_was_good() -> None:
    target = PoisonedTarget(world.model("llama")).poison(row=0, when=2)
    failing = world.make_engine(target, world.make_drafter("none", target))
    stream = failing.stream(list(world.prompt(0)), world.params("greedy", 0))
    good = [token for _ in range(2) for token in next(stream).token_ids]
    with pytest.raises(RowFailed, match="NaN"):
        next(stream)
    assert good == list(world.truth("llama", "greedy", 0)[:2])


def test_text_prompts_and_stops_need_a_tokenizer() -> None:
    bare = world.make_engine(world.target("llama"), world.make_drafter("none", None))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tokenizer"):
        bare.generate([[3]], SamplingParams(stop=("x",)))


# -- the detokenizer alone ---------------------------------------------------------------------

PIECES = st.one_of(
    st.sampled_from([[word(text)] for text in WORDS]),
    st.text("aSTOP!é🙂", min_size=1, max_size=3).map(as_bytes),
)


@settings(max_examples=60)
@given(
    st.lists(PIECES, max_size=8),
    st.lists(st.sampled_from(["STOP!", "OP", "lo", "\n\n", "é🙂", "!"]), max_size=2, unique=True),
)
def test_detokenizer_equals_decoding_the_whole(pieces: list[list[int]], stops: list[str]) -> None:
    ids = [token for piece in pieces for token in piece]
    found, shown = Detokenizer(tokenizer(), stops), ""
    for count, token in enumerate(ids, start=1):
        found.push(token)
        whole = tokenizer().decode(ids[:count])
        safe = found.text[: found.num_safe]
        assert safe.startswith(shown), "what was shown is never taken back"
        shown = safe
        assert all(stop not in shown for stop in stops)
        complete = [whole.find(stop) for stop in stops if stop in whole]
        assert found.is_stopped == bool(complete)
        if complete:
            assert found.text == whole[: min(complete)]
            break
    else:
        found.finish()
        assert found.text == tokenizer().decode(ids)


def test_completion_text_is_the_decoded_tokens() -> None:
    script = [word("hello"), word(" wor"), word("ld"), END]
    (done,) = engine(script).generate(
        ["Hi"], replace(SamplingParams(), max_new_tokens=9), processors=[Says(script)]
    )
    assert done.prompt_ids == PROMPT
    assert done.text == "hello world"
