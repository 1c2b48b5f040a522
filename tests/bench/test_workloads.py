from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jakiro.bench.workloads import load_tasks, plain_text, shipped
from jakiro.errors import DataError, UnknownName


def write(path: Path, *records: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize("name", ["humaneval", "gsm8k"])
def test_the_shipped_sets_have_eighty_questions(name: str) -> None:
    (task,) = load_tasks([name])
    assert task.name == name
    assert len(task.prompts) == len({plain_text(prompt) for prompt in task.prompts}) == 80
    assert all(not isinstance(prompt, str) for prompt in task.prompts)


def test_the_shipped_names() -> None:
    assert shipped() == ["demo", "gsm8k", "humaneval", "random"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"turns": ["first", "second"]}, [{"role": "user", "content": "first"}]),
        ({"question": "why?"}, [{"role": "user", "content": "why?"}]),
        ({"prompt": "def f("}, "def f("),
        ({"text": "Once"}, "Once"),
        (
            {
                "messages": [
                    {"role": "system", "content": "be brief"},
                    {"role": "user", "content": "hi", "id": 3},
                    {"role": "assistant", "content": "hello"},
                ]
            },
            [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        ),
        ({"text": "unused", "turns": ["used"]}, [{"role": "user", "content": "used"}]),
    ],
)
def test_fields(tmp_path: Path, record: Any, expected: Any) -> None:
    (task,) = load_tasks([write(tmp_path / "mine.jsonl", record)])
    assert task.name == "mine"
    assert task.prompts == (expected,)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object, got list"),
        ('{"answer": "x"}', "line 2: no prompt; expected one of the fields messages, turns"),
        ('{"turns": []}', "line 2: field 'turns' holds no prompt"),
        ('{"question": 3}', "line 2: field 'question' holds no prompt: 3"),
        ('{"text": "  "}', "line 2: field 'text' holds no prompt"),
        ('{"messages": [{"role": "user"}]}', "line 2: field 'messages' holds no prompt"),
        ('{"messages": [{"role": "system", "content": "x"}]}', "field 'messages' holds no prompt"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        load_tasks([str(path)])
    assert message in str(caught.value)
    assert "bad.jsonl" in str(caught.value)


def test_a_line_separator_inside_a_prompt_is_text(tmp_path: Path) -> None:
    path = tmp_path / "unicode.jsonl"
    path.write_text('{"text": "one\u2028two"}\n', "utf-8")
    assert load_tasks([str(path)])[0].prompts == ("one\u2028two",)


def test_a_directory_is_a_set_of_tasks(tmp_path: Path) -> None:
    for name in ("sum", "qa"):
        write(tmp_path / name / "question.jsonl", {"turns": [name]}, {"turns": ["more"]})
    tasks = load_tasks([str(tmp_path)], limit=1)
    assert [(task.name, len(task.prompts)) for task in tasks] == [("qa", 1), ("sum", 1)]
    (alone,) = load_tasks([str(tmp_path / "qa" / "question.jsonl")])
    assert (alone.name, len(alone.prompts)) == ("qa", 2)


def test_sources_that_are_no_tasks(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"unknown task 'humanevil'; known: .*humaneval"):
        load_tasks(["humanevil"])
    with pytest.raises(DataError, match="expected files"):
        load_tasks([str(tmp_path)])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no prompt"):
        load_tasks([str(tmp_path / "empty.jsonl")])
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot read"):
        load_tasks([str(tmp_path / "binary.jsonl")])


def test_bare_text_of_a_conversation() -> None:
    conversation = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert plain_text(conversation) == "a\n\nb"
