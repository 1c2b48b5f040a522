"""``demo``, ``bench`` and ``check``: what they print, and that a wrong engine cannot pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jakiro.cli import session
from jakiro.engine.engine import Engine
from jakiro.sampling.process import NodeView
from jakiro.tree.token_tree import TokenTree
from jakiro.tree.verdict import Verdict
from jakiro.verify import Rule
from jakiro.verify.match import match
from tests.cli.conftest import Run


def gullible(tree: TokenTree, nodes: NodeView) -> Verdict:
    """A rule that emits the token next to the target's choice."""
    verdict = match(tree, nodes)
    return Verdict(verdict.path, verdict.num_accepted, (verdict.bonus + 1) % 30)


@pytest.fixture
def with_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine that drafts follows a wrong rule."""
    build = Engine.__init__

    def spoiled(self: Engine, target: Any, drafter: Any, rule: Rule, **rest: Any) -> None:
        is_plain = drafter.name == "none"
        build(self, target, drafter, rule if is_plain else Rule("lossy", "lossy", gullible), **rest)

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
    methods = {row["method"]: row for row in record["tasks"]["words"]}
    assert list(methods) == ["plain", "prompt_lookup", "prompt_lookup@chain:2", "transformers"]
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
    assert json.loads(result.stdout)["num_skipped"] == {"long": 1}


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
