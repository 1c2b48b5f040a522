"""The target's own answers: turn by turn, resumable, tied to their data."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jakiro.drafters.none import NoDrafter
from jakiro.engine.engine import Engine
from jakiro.errors import ConfigError, DataError
from jakiro.sampling.params import SamplingParams
from jakiro.target.target import Target
from jakiro.train.data import Message, Record
from jakiro.train.regenerate import answered, regenerate
from jakiro.verify import find
from tests.train.support import VOCABULARY, word_tokenizer

PARAMS = SamplingParams(max_new_tokens=6, temperature=1.0, seed=5)


def conversation(*turns: str) -> list[Message]:
    return [
        {"role": ("user", "assistant")[place % 2], "content": turn}
        for place, turn in enumerate(turns)
    ]


RECORDS = [
    Record("a:1", conversation("w1 w2", "w3", "w4", "w5")),
    Record("a:2", text="w1 w2 w3"),
    Record("a:3", conversation("w6", "w7")),
    Record("a:4", conversation("w6", "w7")),
]


@pytest.fixture
def engine(target: Target, tokenizer: Any) -> Engine:
    return Engine(
        target, NoDrafter(), find("match"), tokenizer=tokenizer, eos_ids=range(VOCABULARY - 8)
    )


def test_every_answer_is_the_targets_own(engine: Engine, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    path = tmp_path / "answers.jsonl"
    answered = list(regenerate(engine, RECORDS, path, PARAMS, lambda *done: told.append(done)))
    assert [record.place for record in answered] == ["a:1", "a:2", "a:3", "a:4"]
    assert answered[1] == RECORDS[1]
    assert told[0] == (0, 3)
    assert told[-1] == (3, 3)
    messages = answered[0].messages
    assert messages is not None
    assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
    for seed, record in zip((5, 6, 7), (answered[0], answered[2], answered[3]), strict=True):
        assert record.messages is not None
        for place in range(1, len(record.messages), 2):
            params = SamplingParams(max_new_tokens=6, temperature=1.0, seed=seed)
            (alone,) = engine.generate([record.messages[:place]], [params])
            assert record.messages[place]["content"] == alone.text
    # The same prompt twice is answered with other noise.
    assert answered[2].messages != answered[3].messages


def test_all_turns_are_answered_while_answers_end(engine: Engine, tmp_path: Path) -> None:
    params = SamplingParams(max_new_tokens=1, seed=0, stop_token_ids=tuple(range(VOCABULARY)))
    (first, *_) = regenerate(engine, RECORDS, tmp_path / "answers.jsonl", params)
    assert first.messages is not None
    assert [m["content"] for m in first.messages[::2]] == ["w1 w2", "w4"]
    assert len(first.messages) == 4


def test_a_prompt_past_the_context_ends_its_conversation(engine: Engine, tmp_path: Path) -> None:
    long = " ".join(["w1"] * 200)
    records = [
        Record("a:1", conversation(long, "w2")),
        Record("a:2", conversation("w6", "w7", long, "w8")),
    ]
    answered = list(regenerate(engine, records, tmp_path / "answers.jsonl", PARAMS))
    assert [record.place for record in answered] == ["a:2"]
    assert answered[0].messages is not None
    assert [m["role"] for m in answered[0].messages] == ["user", "assistant"]


def test_answers_in_place_are_not_generated_again(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers.jsonl"
    whole = list(regenerate(engine, RECORDS, path, PARAMS))
    lines = path.read_text().splitlines(keepends=True)
    # A kill after two conversations, in the middle of the third line.
    path.write_text("".join(lines[:2]) + lines[2][:15])
    asked: list[int] = []
    generate = engine.generate

    def counted(prompts: Any, params: Any) -> Any:
        asked.append(len(prompts))
        return generate(prompts, params)

    monkeypatch.setattr(engine, "generate", counted)
    assert list(regenerate(engine, RECORDS, path, PARAMS)) == whole
    assert asked == [1]
    assert path.read_text() == "".join(lines)


def test_answers_to_other_data_are_refused(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"place": "b:1", "messages": []}) + "\n")
    with pytest.raises(ConfigError, match=r"line 1 answers b:1 of other data"):
        list(regenerate(engine, RECORDS, path, PARAMS))
    path.write_text("nonsense\n")
    with pytest.raises(DataError, match="line 1 is damaged"):
        list(regenerate(engine, RECORDS, path, PARAMS))


def test_answers_to_other_settings_are_not_gone_on_from(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    list(regenerate(engine, RECORDS, path, PARAMS))
    kept = path.read_bytes()
    changed = [replace(RECORDS[0], messages=conversation("w2 w2", "w3")), *RECORDS[1:]]
    for records, params in ((RECORDS, replace(PARAMS, max_new_tokens=3)), (changed, PARAMS)):
        with pytest.raises(
            ConfigError, match="line 1 answers a:1 of other data, to other settings"
        ):
            regenerate(engine, records, path, params)
    assert path.read_bytes() == kept


def test_answers_in_place_are_left_as_they_are(engine: Engine, tmp_path: Path) -> None:
    """Under another spelling of the data's place, too; a file that changes is tokenised again."""
    path = tmp_path / "answers.jsonl"
    list(regenerate(engine, RECORDS, path, PARAMS))
    os.utime(path, (1, 1))
    elsewhere = [replace(record, place=f"./{record.place}") for record in RECORDS]
    assert len(list(regenerate(engine, elsewhere, path, PARAMS))) == len(RECORDS)
    assert path.stat().st_mtime == 1


def test_answers_of_two_runs_in_one_file_are_refused(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    regenerate(engine, RECORDS[:3], path, PARAMS)
    first = path.read_text()
    for both in (first + first, first[: first.index("\n") + 1]):
        path.write_text(both)
        with pytest.raises((ConfigError, DataError), match=r"line [23] (answers a:1|is damaged)"):
            list(answered(engine, [*RECORDS[:3], RECORDS[3]], path, PARAMS))


def test_what_opens_a_conversation_is_kept(engine: Engine, tmp_path: Path) -> None:
    greeting = {"role": "assistant", "content": "w9"}
    records = [
        Record("a:1", [greeting, *conversation("w6", "w7")]),
        Record("a:2", [greeting, *conversation(" ".join(["w1"] * 200), "w2")]),
    ]
    (only,) = regenerate(engine, records, tmp_path / "answers.jsonl", PARAMS)
    assert only.place == "a:1"
    assert only.messages is not None
    assert only.messages[:2] == [greeting, *conversation("w6")]
    assert [m["role"] for m in only.messages[2:]] == ["assistant"]
    (alone,) = engine.generate([only.messages[:2]], [PARAMS])
    assert only.messages[2]["content"] == alone.text


def test_prompts_that_cannot_be_encoded_name_their_record(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers.jsonl"
    records = [RECORDS[2], Record("a:9", conversation("w30", "w1"))]
    monkeypatch.setattr(engine.target, "vocab_size", 20)
    monkeypatch.setattr(engine, "tokenizer", word_tokenizer("{{ messages[0].content }}"))
    with pytest.raises(DataError, match="a:9: token id 30 is not in the vocabulary"):
        regenerate(engine, records, path, PARAMS)
    refusing = "{{ raise_exception('no talk') }}"
    monkeypatch.setattr(engine, "tokenizer", word_tokenizer(refusing))
    with pytest.raises(DataError, match=r"a:3: the chat template refuses the .*: no talk"):
        regenerate(engine, records, path, PARAMS)
