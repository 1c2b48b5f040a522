"""Options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jakiro.tree.shapes import FORMS

TargetOption = Annotated[
    str,
    typer.Option("--target", "-t", help="Target: pico (bundled), a directory or a hub name."),
]
DrafterOption = Annotated[
    str | None,
    typer.Option(
        "--drafter",
        "-d",
        help="Drafter: a name (see jakiro list), a checkpoint directory, or ARBITER+DRAFTER. "
        "Default: the bundled head for the bundled target, prompt_lookup for others.",
    ),
]
TreeOption = Annotated[
    str | None,
    typer.Option(help=f"Tree: {FORMS}; auto: what pays."),
]
RuleOption = Annotated[
    str,
    typer.Option(help="What of a draft is kept (see jakiro list); match gives the plain text."),
]
DefinitionOption = Annotated[
    str | None,
    typer.Option(
        help="What the target's law is, if not its own: NAME or NAME:SETTING=VALUE,.. (see jakiro "
        "list). The text is then that of plain decoding with this law."
    ),
]
AmateurOption = Annotated[
    str | None,
    typer.Option(help="Directory or hub name of the second model of a definition."),
]
DtypeOption = Annotated[
    str | None, typer.Option(help="Computing type: float32, bfloat16, float16 or float64.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help='Device of the target, for example cpu or cuda; "auto" spreads.')
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of torch, four per core at most.")
]
CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile target and drafter: a minute or two before the first answer, "
        "then faster. Needs a C++ compiler on a CPU.",
    ),
]
ChatOption = Annotated[
    bool | None,
    typer.Option("--chat/--raw", help="Apply the chat template or not. Default: if there is one."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
TaskOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Prompts: a shipped set (humaneval, gsm8k, demo), a JSONL file or a directory of "
        "TASK/question.jsonl. May be repeated."
    ),
]
DataOption = Annotated[
    list[Path],
    typer.Option(help='JSONL of {"messages": [...]} or {"text": ...}; may be repeated.'),
]
HeadsOption = Annotated[
    Path | None,
    typer.Option(help="Directory of checkpoint directories, each called like its method."),
]
OutOption = Annotated[
    Path | None,
    typer.Option(help="Directory for JSON, tables and chart; a run that stopped goes on there."),
]
MaxNewTokensOption = Annotated[int, typer.Option("--max-new-tokens", "-n", help="Longest answer.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", "-T", help="0 is greedy.")]
TopKOption = Annotated[int, typer.Option(help="Keep the k best tokens; 0 is off.")]
TopPOption = Annotated[float, typer.Option(help="Keep this much probability; 1 is off.")]
MinPOption = Annotated[float, typer.Option(help="Keep tokens this likely next to the best.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of sampling. Default: drawn.")]
FixedSeedOption = Annotated[int, typer.Option(help="Seed of the first prompt's sampling.")]
RepetitionPenaltyOption = Annotated[float, typer.Option(help="1 is off.")]
