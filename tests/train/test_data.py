"""From files to batches: what is marked, what is refused, what is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jakiro.errors import DataError
from jakiro.train.data import Record, Records, tokenise
from tests.train.support import TEMPLATE, word_tokenizer

CHAT = [
    {"role": "user", "content": "w1 w2"},
    {"role": "assistant", "content": "w3 w4"},
    {"role": "user", "content": "w5"},
    {"role": "assistant", "content": "w6"},
]


def marked(tokenizer: Any, record: Record, length: int = 64) -> list[tuple[str, str]]:
    """Per sample its text and the words that carry loss."""
    samples = tokenise([record], tokenizer, length)
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
        list(tokenise([Record("here", CHAT)], word_tokenizer(refusing), 64))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", 'needs either "messages" or "text"'),
        ('{"prompt": "x"}', 'needs either "messages" or "text"'),
        ('{"text": ""}', "non-empty string"),
        ('{"text": 3}', "non-empty string"),
        ('{"messages": "x"}', "must be a list"),
        ('{"messages": [{"role": "user"}]}', "must be a list"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no assistant message"),
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


def test_records_keep_their_order_and_place(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": CHAT, "source": "x"}) + '\n{"text": "w1"}\n')
    first, second = Records([path])
    assert first.messages == CHAT
    assert second.text == "w1"
    assert second.place == f"{path}, line 2"
