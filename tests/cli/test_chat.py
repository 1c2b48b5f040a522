from __future__ import annotations

import jakiro
from tests.cli.conftest import Run

SETTINGS = ("-n", "6", "-T", "0", "--top-p", "1")


def test_a_conversation_keeps_its_history(run: Run, target: str) -> None:
    engine = jakiro.load(target, "none")
    params = jakiro.SamplingParams(max_new_tokens=6)
    messages = [{"role": "user", "content": "w1"}]
    first = engine.generate([messages], params)[0].text
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "w2"}]
    second = engine.generate([messages], params)[0].text
    result = run("chat", "--target", target, *SETTINGS, stdin="w1\nw2\n")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [first, second]


def test_reset_forgets(run: Run, target: str) -> None:
    result = run("chat", "--target", target, *SETTINGS, stdin="w1\n/reset\nw1\n/exit\nw1\n")
    first, second = result.stdout.splitlines()
    assert first == second


def test_statistics_on_request(run: Run, target: str) -> None:
    result = run("chat", "--target", target, *SETTINGS, stdin="w1\n/stats\n")
    assert "verify forwards" in result.stderr


def test_old_exchanges_make_room(run: Run, target: str) -> None:
    """The context holds 128 tokens; ten turns of twenty words each go on nevertheless."""
    turns = "".join("w1 " * 20 + "\n" for _ in range(10))
    result = run("chat", "--target", target, *SETTINGS, stdin=turns)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 10


def test_a_message_beyond_the_context_is_a_failure(run: Run, target: str) -> None:
    result = run("chat", "--target", target, *SETTINGS, stdin="w1 " * 100 + "\n")
    assert result.exit_code == 1
    assert "too long" in result.stderr
