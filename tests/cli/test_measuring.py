"""``demo``, ``bench``, ``reproduce`` and ``check``: what they print, and that a wrong engine cannot
pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jakiro.bench import grid
from jakiro.cli import session
from jakiro.engine.engine import Engine
from jakiro.errors import RowFailed
from jakiro.sampling.process import NodeView
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify import Rule
from jakiro.verify.match import match
from tests.cli.conftest import Run


def gullible(tree: TokenTree, nodes: NodeView) -> Verdict:
    """A rule that emits the token next to the target's choice."""
    verdict = match(tree, nodes)
    return Verdict(verdict.paths, [(bonus + 1) % 30 for bonus in verdict.bonuses])


@pytest.fixture
def with_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine that drafts follows a wrong rule that claims to be exact."""
    build = Engine.__init__

    def spoiled(self: Engine, target: Any, drafter: Any, rule: Rule, **rest: Any) -> None:
        is_plain = drafter.name == "none"
        build(self, target, drafter, rule if is_plain else Rule("match", "exact", gullible), **rest)

    monkeypatch.setattr(Engine, "__init__", spoiled)


def test_check_finds_equal_texts(run: Run, target: str, prompts: str) -> None:
    arguments = ("--target", target, "--task", prompts, "-n", "16", "--json")
    result = run("check", *arguments)
    record = json.loads(result.stdout)
    assert result.exit_code == 0
    assert record["num_bugs"] == 0
    assert len(record["cells"]) == 5 * 2 * 3
    assert {cell["outcome"] for cell in record["cells"]} <= {"equal", "near-tie"}


@pytest.mark.usefixtures("with_a_bug")
def test_check_names_the_first_difference_of_a_bug(run: Run, target: str, prompts: str) -> None:
    result = run("check", "--target", target, "--task", prompts, "-n", "16")
    assert result.exit_code == 1
    assert "First difference (bug): greedy, drafted and plain, prompt 0, token 1" in (
        result.stdout.replace("\n", " ")
    )


def test_bench_measures_every_method_on_every_prompt(
    run: Run, target: str, prompts: str, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    arguments = ["--target", target, "--task", prompts, "-n", "12", "--ignore-eos", "--json"]
    chosen = ["-m", "prompt_lookup", "-m", "prompt_lookup@chain:2", "--transformers"]
    result = run("bench", *arguments, *chosen, "--out", str(out))
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert json.loads((out / "report.json").read_text("utf-8")) == record
    (cell,) = record["cells"]
    assert (cell["task"], cell["temperature"], cell["batch_size"]) == ("words", 0.0, 1)
    methods = {row["method"]: row for row in cell["methods"]}
    ours = ["plain", "prompt_lookup", "prompt_lookup@chain:2"]
    assert list(methods) == [*ours, "transformers", "transformers prompt_lookup"]
    assert {row["num_tokens"] for row in methods.values()} == {2 * 12}
    assert {row["equality"]["num_bugs"] for row in methods.values()} == {0}
    assert methods["plain"]["speedup"]["median"] == 1
    assert (out / "speedup.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("with_a_bug")
def test_bench_fails_where_a_text_differs(run: Run, target: str, prompts: str) -> None:
    result = run("bench", "--target", target, "--task", prompts, "-n", "12")
    assert result.exit_code == 1
    assert "BUGS" in result.stdout


def test_bench_counts_prompts_that_do_not_fit(run: Run, target: str, tmp_path: Path) -> None:
    task = tmp_path / "long.jsonl"
    task.write_text('{"prompt": "w1 w2"}\n' + json.dumps({"prompt": "w1 " * 150}) + "\n")
    result = run("bench", "--target", target, "--task", str(task), "-n", "4", "--json")
    assert [cell["num_skipped"] for cell in json.loads(result.stdout)["cells"]] == [1]


@pytest.fixture
def suite(target: str, prompts: str, tmp_path: Path) -> tuple[str, ...]:
    """Arguments of a run over two temperatures and batch sizes with a head that is not at hand."""
    path = tmp_path / "suite.toml"
    path.write_text(
        'tasks = ["words", "music"]\ntemperatures = [0.0, 1.0]\n'
        '[[rows]]\nname = "chain"\ndrafter = "prompt_lookup"\ntree = "chain:2"\n'
        '[[rows]]\nname = "better"\ndrafter = "head-of-next-year"\n'
    )
    batches = ("--batch", "1", "--batch", "2")
    return ("bench", "--target", target, "--suite", str(path), "--task", prompts, *batches)


def test_a_suite_is_measured_as_far_as_it_is_at_hand(run: Run, suite: tuple[str, ...]) -> None:
    result = run(*suite, "-n", "8", "-m", "own=prompt_lookup,noise_aware=false", "--json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert "no checkpoint 'head-of-next-year'" in record["not_measured"]["better"]
    assert "not at hand" in record["not_measured"]["music"]
    places = [(cell["temperature"], cell["batch_size"]) for cell in record["cells"]]
    assert places == [(0.0, 1), (0.0, 2), (1.0, 1), (1.0, 2)]
    for cell in record["cells"]:
        assert [row["method"] for row in cell["methods"]] == ["plain", "chain", "own"]
        assert len({row["output_sha256"] for row in cell["methods"]}) == 1
    digests = [cell["methods"][0]["output_sha256"] for cell in record["cells"]]
    assert digests[0] == digests[1] != digests[2] == digests[3]


def test_a_suite_without_any_task_at_hand_is_refused(run: Run, target: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text('tasks = ["elsewhere"]\n')
    result = run("bench", "--target", target, "--suite", str(path))
    assert result.exit_code == 2
    assert "none of the tasks is at hand; give their prompts with --task" in result.stderr


def test_a_row_given_by_hand_has_to_be_there(run: Run, suite: tuple[str, ...]) -> None:
    result = run(*suite, "-m", "x=head-of-last-year")
    assert result.exit_code == 2
    assert "unknown drafter 'head-of-last-year'" in result.stderr


def test_an_interrupted_suite_goes_on(
    run: Run, suite: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = (*suite, "-n", "8", "--out", str(out))
    summarise = grid.summarise
    calls: list[int] = []

    def killed(*given: Any) -> Any:
        calls.append(0)
        if len(calls) == 3:
            raise RowFailed("killed")
        return summarise(*given)

    monkeypatch.setattr(grid, "summarise", killed)
    assert run(*arguments).exit_code == 1
    half = json.loads((out / "report.json").read_text("utf-8"))
    assert len(half["cells"]) == 2
    result = run(*arguments)
    assert result.exit_code == 0
    assert "2 cells" in result.stderr
    whole = json.loads((out / "report.json").read_text("utf-8"))
    assert whole["cells"][:2] == half["cells"], "finished cells must stay as they were measured"
    assert len(whole["cells"]) == 4
    assert len(calls) == 5
    refused = run(*suite, "-n", "9", "--out", str(out))
    assert refused.exit_code == 2
    assert "max_new_tokens is 9 and was 8" in refused.stderr


def test_a_report_is_reproduced(
    run: Run, suite: tuple[str, ...], prompts: str, tmp_path: Path
) -> None:
    assert run(*suite, "-n", "8", "--out", str(tmp_path / "out")).exit_code == 0
    path = tmp_path / "out" / "report.json"
    again = ("reproduce", str(path), "--task", prompts, "--json")
    result = run(*again)
    assert result.exit_code == 0
    findings = json.loads(result.stdout)["findings"]
    assert {each["method"] for each in findings} == {"plain", "chain"}
    assert len({tuple(each["place"]) for each in findings}) == 4
    assert all(each["is_equal"] for each in findings if each["quantity"] != "speedup")
    itself = run(*again, "--out", str(path.parent))
    assert itself.exit_code == 2
    assert "holds the report itself" in itself.stderr

    record = json.loads(path.read_text("utf-8"))
    first, _, rest = record["cells"][0]["texts"][0].partition(" ")
    record["cells"][0]["texts"][0] = f"{(int(first) + 1) % 30} {rest}"
    path.write_text(json.dumps(record))
    result = run(*again)
    assert result.exit_code == 1
    failures = [each for each in json.loads(result.stdout)["findings"] if each["is_failure"]]
    assert [(each["quantity"], each["method"]) for each in failures] == [("text 0", "plain")]
    assert "bug: token 0" in failures[0]["detail"]

    record["settings"]["target_sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    refused = run(*again)
    assert refused.exit_code == 1
    assert "the target is not the one that was measured" in refused.stderr


def test_bench_says_where_it_cannot_write(
    run: Run, target: str, prompts: str, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file, not a directory")
    arguments = ("--target", target, "--task", prompts, "-n", "4")
    result = run("bench", *arguments, "--out", str(tmp_path / "taken"))
    assert result.exit_code == 1
    assert "cannot write the report" in result.stderr


def test_demo_shows_equal_texts(run: Run, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.OUT, "width", 200, raising=False)
    result = run("demo", "--target", target, "-n", "6")
    assert result.exit_code == 0
    assert "texts are equal, in 5 alternations" in result.stdout
    assert "Speedup of prompt_lookup over plain decoding: median" in result.stdout


@pytest.mark.usefixtures("with_a_bug")
def test_demo_fails_where_a_text_differs(run: Run, target: str) -> None:
    result = run("demo", "--target", target, "-n", "6", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["differing_prompts"]
