"""What commands do around an engine: load it, read prompts for it, print what it did.

Nothing here imports ``torch`` before it is needed.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jakiro.errors import ConfigError

if TYPE_CHECKING:
    from jakiro.engine.engine import Engine
    from jakiro.engine.prompt import Prompt
    from jakiro.engine.request import Completion
    from jakiro.engine.stats import Stats

# Names, paths and texts are shown as they are: what looks like markup in them is none.
_AS_IT_IS: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}

NOTES = Console(stderr=True, **_AS_IT_IS)
"""Everything that is not the result: progress, tables, remarks."""

OUT = Console(**_AS_IT_IS)

THREADS_PER_CORE = 4
"""More are no use, and with too many the process dies."""


def open_engine(
    target: str,
    drafter: str | None,
    *,
    tree: str | None = None,
    rule: str = "match",
    dtype: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    compile: bool = False,
    max_batch_size: int = 8,
    definition: str | None = None,
    amateur: str | None = None,
) -> Engine:
    """Load a pair with a tokenizer, with a sign of life on standard error.

    Raises:
        ConfigError: ``threads`` are more than this machine can use.
        CheckpointError: there is no tokenizer beside the target.
        And what ``load`` raises.
    """
    most = THREADS_PER_CORE * (os.cpu_count() or 1)
    if threads is not None and not 1 <= threads <= most:
        raise ConfigError(
            f"threads must be 1 to {most} ({THREADS_PER_CORE} per core of this machine), got "
            f"{threads}; leave --threads out for one per core"
        )
    with NOTES.status(Text(f"loading {target}")):
        import torch

        import jakiro
        from jakiro.hub.bundled import target_location
        from jakiro.hub.models import check_tokenizer

        check_tokenizer(target_location(target))
        if threads is not None:
            torch.set_num_threads(threads)
        is_spread = device == "auto"
        return jakiro.load(
            target,
            drafter,
            tree=tree,
            rule=rule,
            dtype=dtype,
            device=None if is_spread else device,
            device_map="auto" if is_spread else None,
            max_batch_size=max_batch_size,
            compile=compile,
            definition=definition,
            amateur=amateur,
        )


def plain(engine: Engine) -> Engine:
    """Plain decoding by the target of ``engine``: compiled if that is."""
    from jakiro.drafters.none import NoDrafter
    from jakiro.engine.engine import Engine
    from jakiro.verify import find

    ends = tuple(engine.eos_ids)
    rule = find("match")
    return Engine(engine.target, NoDrafter(), rule, tokenizer=engine.tokenizer, eos_ids=ends)


def has_chat_template(engine: Engine) -> bool:
    return bool(getattr(engine.tokenizer, "chat_template", None))


def as_prompt(engine: Engine, messages: list[dict[str, str]], is_chat: bool | None) -> Prompt:
    """A conversation as such or as bare text: as asked, or by whether there is a template.

    Raises:
        ConfigError: a template is asked for and there is none.
    """
    if is_chat and not has_chat_template(engine):
        raise ConfigError("the tokenizer has no chat template; leave out --chat or use --raw")
    if is_chat or (is_chat is None and has_chat_template(engine)):
        return messages
    from jakiro.bench.workloads import plain_text

    return plain_text(messages)


def stats_record(stats: Stats) -> dict[str, Any]:
    """All counts, times and derived figures as plain data."""
    derived = {"tau": stats.tau, "alpha": stats.alpha, "outside_share": stats.outside_share}
    return asdict(stats) | derived


def completion_record(completion: Completion) -> dict[str, Any]:
    """A completion as plain data."""
    return asdict(completion) | {"stats": stats_record(completion.stats)}


def print_stats(stats: Stats, engine: Engine) -> None:
    """A small table on standard error."""
    table = Table(show_header=False, box=None, pad_edge=False)
    wall_ms = stats.prefill_ms + stats.cycle_ms
    rate = 1e3 * stats.num_emitted / wall_ms if wall_ms else 0.0
    cycles = max(stats.cycle_ms, 1e-9)
    table.add_row("tokens", f"{stats.num_emitted} in {wall_ms / 1e3:.2f} s ({rate:.1f} per s)")
    table.add_row("verify forwards", str(stats.num_forwards))
    table.add_row("τ", f"{stats.tau:.2f}")
    table.add_row(
        "α by depth", " ".join(f"{rate:.2f}" for rate in stats.alpha) or "nothing drafted"
    )
    table.add_row(
        "cycles",
        f"draft {stats.draft_ms / cycles:.0%}, verify {stats.verify_ms / cycles:.0%}, "
        f"outside {stats.outside_share:.1%}",
    )
    table.add_row("tree", engine.policy.explain())
    NOTES.print(table)
