"""``jakiro serve``: the OpenAI API over HTTP."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from jakiro.cli import options


def serve(
    target: options.TargetOption = "pico",
    drafter: options.DrafterOption = None,
    tree: options.TreeOption = "auto",
    rule: options.RuleOption = "match",
    dtype: options.DtypeOption = None,
    device: options.DeviceOption = None,
    threads: options.ThreadsOption = None,
    compile: options.CompileOption = False,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is every network of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    served_model_name: Annotated[
        str | None, typer.Option(help="Name that clients use. Default: the target's.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="JAKIRO_API_KEY",
            help="Key that clients must send. Rather set the variable: others see arguments.",
        ),
    ] = None,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Answers made at once.")] = 8,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Answers that may wait; more are told to come again.")
    ] = 64,
    prefill_chunk: Annotated[
        int, typer.Option(min=1, help="Prompt tokens read per cycle beside running answers.")
    ] = 512,
    kv_tokens: Annotated[
        int | None, typer.Option(min=1, help="Slots of the cache at most. Default: no limit.")
    ] = None,
    prefix_mb: Annotated[
        int, typer.Option(min=0, help="Memory for beginnings that later requests may share.")
    ] = 256,
    max_open: Annotated[
        int, typer.Option(min=1, help="Answers on their way, those being given up included.")
    ] = 256,
    deadline_s: Annotated[
        float | None, typer.Option(help="Seconds after which an answer ends with what there is.")
    ] = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt. Default: what there is room for.")
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Longest request.")] = 1 << 20,
    grace_s: Annotated[
        float, typer.Option(min=0, help="Seconds that running answers get after SIGTERM.")
    ] = 20.0,
) -> None:
    """Serve a model to clients of the OpenAI API."""
    from jakiro.cli import session
    from jakiro.errors import ConfigError

    try:
        from jakiro.serve.server import serve as run
        from jakiro.serve.settings import Settings
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the server needs {error.name}; install the extra: pip install 'jakiro[serve]'"
        ) from error
    from jakiro.engine.scheduler import Scheduler

    settings = Settings(
        model_name=served_model_name or os.path.basename(os.path.abspath(target)),
        api_key=api_key,
        max_body_bytes=max_body_bytes,
        max_prompt_tokens=max_prompt_tokens,
        max_open=max_open,
        deadline_s=deadline_s,
    )
    engine = session.open_engine(
        target,
        drafter,
        tree=tree,
        rule=rule,
        dtype=dtype,
        device=device,
        threads=threads,
        compile=compile,
        max_batch_size=max_batch_size,
    )
    place = f"http://{host}:{port}"
    note = f"{settings.model_name} at {place}/v1, a page at {place}/ (Ctrl-C ends)"
    run(
        Scheduler(
            engine,
            max_waiting=max_waiting,
            prefill_chunk=prefill_chunk,
            kv_tokens=kv_tokens,
            prefix_bytes=prefix_mb << 20,
        ),
        settings,
        host=host,
        port=port,
        grace_s=grace_s,
        announce=lambda: session.NOTES.print(note),
    )
