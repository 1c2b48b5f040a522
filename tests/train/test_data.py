"""From files to batches: what is marked, what is refused, what is drawn."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from jakiro.errors import DataError
from jakiro.train.data import Record, Records, tokenise
from tests.train.support import TEMPLATE, VOCABULARY, word_tokenizer

CHAT = [
    {"role": "user", "content": "w1 w2"},
    {"role": "assistant", "content": "w3 w4"},
    {"role": "user", "content": "w5"},
    {"role": "assistant", "content": "w6"},
]


def marked(tokenizer: Any, record: Record, length: int = 64) -> list[tuple[str, str]]:
    """Per sample its text and the words that carry loss."""
    samples = tokenise([record], tokenizer, length, VOCABULARY)
    return [
        (
            " ".join(tokenizer.convert_ids_to_tokens(ids)),
            " ".join(
                tokenizer.convert_ids_to_tokens([i for i, m in zip(ids, marks, strict=True) if m])
            ),
        )
        for ids, marks in samples
    ]


def test_the_assistant_and_its_end_carry_loss(tokenizer: Any) -> None:
    whole = "<user> w1 w2 <assistant> w3 w4 <end> <user> w5 <assistant> w6 <end>"
    assert marked(tokenizer, Record("", CHAT)) == [(whole, "w3 w4 <end> w6 <end>")]


def test_a_long_conversation_is_cropped_and_a_text_cut_into_windows(tokenizer: Any) -> None:
    assert marked(tokenizer, Record("", CHAT), 6) == [("<user> w1 w2 <assistant> w3 w4", "w3 w4")]
    assert marked(tokenizer, Record("", CHAT), 4) == []
    windows = marked(tokenizer, Record("", text="w1 w2 w3 w4 w5 w6 w7"), 4)
    assert windows == [("w1 w2 w3 w4", "w1 w2 w3 w4"), ("w5 w6 w7", "w5 w6 w7")]


def test_a_template_that_rewrites_old_turns_gives_a_sample_per_turn() -> None:
    # The last answer is shown with a word of thought that earlier ones lose.
    thoughtful = TEMPLATE.replace(
        "{{ message.content }} ",
        "{% if message.role == 'assistant' and loop.last %}w9 {% endif %}{{ message.content }} ",
    )
    assert marked(word_tokenizer(thoughtful), Record("", CHAT)) == [
        ("<user> w1 w2 <assistant> w9 w3 w4 <end>", "w9 w3 w4 <end>"),
        (
            "<user> w1 w2 <assistant> w3 w4 <end> <user> w5 <assistant> w9 w6 <end>",
            "w9 w6 <end>",
        ),
    ]


def test_a_template_that_refuses_is_a_data_error() -> None:
    refusing = "{{ raise_exception('no system role') }}"
    with pytest.raises(DataError, match=r"here: the chat template refuses it \(no system role\)"):
        list(tokenise([Record("here", CHAT)], word_tokenizer(refusing), 64, VOCABULARY))


def test_what_opens_a_conversation_carries_no_loss(tokenizer: Any) -> None:
    whole = "<assistant> w9 <end> <user> w1 w2 <assistant> w3 w4 <end>"
    opened = [{"role": "assistant", "content": "w9"}, *CHAT[:2]]
    assert marked(tokenizer, Record("", opened)) == [(whole, "w3 w4 <end>")]


@pytest.mark.parametrize("record", [Record("here", CHAT), Record("here", text="w1 w2 w30")])
def test_a_token_past_the_vocabulary_is_a_data_error(tokenizer: Any, record: Record) -> None:
    top = max(ids for sample, _ in tokenise([record], tokenizer, 64, VOCABULARY) for ids in sample)
    assert list(tokenise([record], tokenizer, 64, top + 1))
    message = rf"here: token id {top} is not in the vocabulary of the target \(0 to {top - 1}\)"
    with pytest.raises(DataError, match=message):
        list(tokenise([record], tokenizer, 64, top))


def test_a_tokenizer_that_refuses_is_a_data_error() -> None:
    def refuse(text: str, **settings: bool) -> None:
        raise TypeError("no such word")

    with pytest.raises(DataError, match=r"here: the tokenizer refuses it \(no such word\)"):
        list(tokenise([Record("here", text="w1 w2 w3")], refuse, 64, VOCABULARY))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", 'needs either "messages" or "text"'),
        ('{"prompt": "x"}', 'needs either "messages" or "text"'),
        ('{"text": ""}', "non-empty string"),
        ('{"text": 3}', "non-empty string"),
        ('{"messages": "x"}', "must be a list"),
        ('{"messages": [{"role": "user"}]}', "must be a list"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no assistant message"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "no assistant message"),
        (r'{"text": "x \ud83d y"}', r"'\\ud83d' is half of a character"),
        (
            r'{"messages": [{"role": "user", "content": "\ude00"}, '
            r'{"role": "assistant", "content": "x"}]}',
            r"'\\ude00' is half of a character",
        ),
    ],
)
def test_bad_lines_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=f"data.jsonl, line 3: .*{message}"):
        list(Records([path]))


def test_unreadable_files_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        list(Records([tmp_path / "missing.jsonl"]))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"binary\.jsonl"):
        list(Records([tmp_path / "binary.jsonl"]))


def test_what_cannot_be_read_twice_is_refused() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    with pytest.raises(DataError, match=f"/dev/fd/{reading} is no regular file"):
        list(Records([Path(f"/dev/fd/{reading}")]))
    os.close(reading)


def test_characters_spelled_in_two_halves_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(r'{"text": "\ud83d\ude00", "source": "\ud83d"}')
    assert [record.text for record in Records([path])] == ["\N{GRINNING FACE}"]


def test_records_keep_their_order_and_place(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": CHAT, "source": "x"}) + '\n{"text": "w1"}\n')
    first, second = Records([path])
    assert first.messages == CHAT
    assert second.text == "w1"
    assert second.place == f"{path}, line 2"
