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


def test_a_message_beyond_half_of_the_context_is_not_kept(run: Run, target: str) -> None:
    asked = ["w1\n", "w1 " * 100 + "\n", "w2\n"]
    whole, short = (
        run("chat", "--target", target, *SETTINGS, stdin="".join(lines))
        for lines in (asked, asked[::2])
    )
    assert whole.exit_code == 0
    assert whole.stdout == short.stdout
    assert "reads 64 at most, half of the context" in " ".join(whole.stderr.split())
    assert "too long" not in short.stderr
