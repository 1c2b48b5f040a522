from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from typer import Typer
from typer.main import get_command

from jakiro.bench.suites import Row, Suite, load_suite, suite_names
from jakiro.cli.train import train
from jakiro.drafters.registry import ENTRIES
from jakiro.errors import ConfigError, DataError, JakiroError, UnknownName
from jakiro.tree.shapes import TreePlan


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("jakiro", Row("jakiro", "jakiro")),
        ("jakiro@chain:3", Row("jakiro@chain:3", "jakiro", "chain:3")),
        ("wide=heads/w", Row("wide", "heads/w")),
        (
            "flat=jakiro@dynamic:5,6,16,noise_aware=false",
            Row("flat", "jakiro", "dynamic:5,6,16", noise_aware=False),
        ),
        (
            "a b=x,noise_aware=true,rule=match",
            Row("a b", "x"),
        ),
        (
            "x,noise_aware=false",
            Row("x,noise_aware=false", "x", noise_aware=False),
        ),
        ("c=none,compile=true", Row("c", "none", compile=True)),
    ],
)
def test_a_row_on_one_line(text: str, row: Row) -> None:
    assert Row.parse(text) == row


@pytest.mark.parametrize("text", ["", "=x", "a=", "@chain:2", "x,noise_aware=maybe", "x,compile=1"])
def test_what_is_no_row(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot read the method"):
        Row.parse(text)


@pytest.mark.parametrize("name", ["plain", "transformers"])
def test_some_names_are_taken(name: str) -> None:
    with pytest.raises(ConfigError, match="is taken"):
        Row.parse(f"{name}=jakiro")


def test_a_suite_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'tasks = ["demo"]\ntemperatures = [0, 0.5]\n'
        '[[rows]]\nname = "a"\ndrafter = "prompt_lookup"\nnoise_aware = false\n'
        "options = { max_ngram = 2 }\n"
    )
    assert load_suite(str(path)) == Suite(
        ("demo",),
        (0.0, 0.5),
        (Row("a", "prompt_lookup", noise_aware=False, options={"max_ngram": 2}),),
    )


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("tasks = ", DataError, "is not TOML"),
        (
            "task = ['demo']",
            DataError,
            "unknown entries task; known: tasks, temperatures, rows, batch",
        ),
        ("tasks = 'demo'", DataError, "mine.toml, tasks: expected"),
        ("tasks = [1]", DataError, "tasks 1: expected"),
        ("temperatures = []", ConfigError, "at least one temperature"),
        ("tasks = ['a', 'a']", ConfigError, "the task 'a' is given twice"),
        ("[[rows]]\nname = 'a'", DataError, "rows 1 lacks the entries drafter"),
        (
            "[[rows]]\nname = 'a'\ndrafter = 'x'\n[[rows]]\nname = 'a'\ndrafter = 'y'",
            ConfigError,
            "the method 'a' is given twice",
        ),
    ],
)
def test_a_bad_suite_says_where(
    text: str, error: type[JakiroError], named: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(error, match=named):
        load_suite(str(path))


def test_an_unknown_suite_lists_the_known() -> None:
    known = r"a TOML file, ablation, adversarial, auto, heads, methods"
    with pytest.raises(UnknownName, match=known):
        load_suite("papers")


@pytest.mark.parametrize("name", suite_names())
def test_the_suites_of_the_package_can_be_read(name: str) -> None:
    suite = load_suite(name)
    assert 0.0 in suite.temperatures
    assert "humaneval" in suite.tasks
    for row in suite.rows:
        tree = (row.tree or "auto").removeprefix("auto:")
        assert tree == "auto" or TreePlan.parse(tree)


def test_the_suite_of_methods_has_all_that_need_no_training() -> None:
    """But plain decoding, which every suite has, and what the bundled target is not made for."""
    free = {entry.name for entry in ENTRIES.values() if not entry.is_trained}
    assert free - {"none", "fewer_experts"} <= {row.drafter for row in load_suite("methods").rows}


def test_every_trained_head_of_a_suite_is_at_hand_or_has_a_recipe() -> None:
    """In ``heads``; in ``scripts/pico/head.sh``, in options that ``jakiro train`` has."""
    root = Path(__file__).parents[2]
    script = root / "scripts" / "pico" / "head.sh"
    listed = subprocess.run(["bash", str(script)], check=True, capture_output=True, text=True)
    recipes = dict(line.split(": ") for line in listed.stdout.splitlines())
    rows = [row for name in ("paper", "ablation", "heads") for row in load_suite(name).rows]
    free = {entry.name for entry in ENTRIES.values() if not entry.is_trained}
    at_hand = {directory.name for directory in (root / "heads").iterdir()}
    assert {row.drafter for row in rows} - free - at_hand <= recipes.keys()
    app = Typer()
    app.command()(train)
    known = {option for each in get_command(app).params for option in each.opts}
    for recipe in recipes.values():
        assert {word for word in recipe.split() if word.startswith("--")} <= known
