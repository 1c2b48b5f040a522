"""``jakiro train``: a draft head for any target."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from jakiro.cli.options import DataOption, DeviceOption
from jakiro.cli.session import NOTES
from jakiro.drafters.registry import trainable

if TYPE_CHECKING:
    from jakiro.train.trainer import Progress as Step


class Branches(StrEnum):
    """The gated sum, the experts' mixture, or their proposals in turn."""

    sum = "sum"
    decoupled = "decoupled"
    union = "union"


class Share(StrEnum):
    """Its weight in the gate, what it explains, or all for the best at that."""

    gate = "gate"
    responsibility = "responsibility"
    best = "best"


class Optimizer(StrEnum):
    """What changes the weights; see ``TrainConfig``."""

    adamw = "adamw"
    muon = "muon"


class Precision(StrEnum):
    """Computing type of a training run; the head's own weights are always float32."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def train(
    target: Annotated[str, typer.Option(help="Target: a directory or a hub name.")],
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Directory for the head; an earlier run goes on.")],
    method: Annotated[
        str, typer.Option(help=f"What to train: {', '.join(trainable())}.")
    ] = "jakiro",
    regenerate: Annotated[
        bool, typer.Option(help="Let the target answer the conversations itself first.")
    ] = False,
    temperature: Annotated[
        float, typer.Option(help="Temperature of the regenerated answers.")
    ] = 0.0,
    max_new_tokens: Annotated[
        int, typer.Option(help="Longest regenerated answer, in tokens.")
    ] = 512,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 20.0,
    steps: Annotated[int | None, typer.Option(help="Steps, instead of epochs.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Padded tokens per step.")] = 8192,
    length: Annotated[int, typer.Option(help="Longest sample, in tokens.")] = 2048,
    optimizer: Annotated[
        Optimizer, typer.Option(help="muon: for the matrices; AdamW for the rest.")
    ] = Optimizer.adamw,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 9e-5,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 2000,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 1e-3,
    clip_value: Annotated[float, typer.Option(help="Largest gradient element.")] = 0.5,
    noise: Annotated[float, typer.Option(help="Noise on input features at 512 tokens.")] = 0.2,
    feature_weight: Annotated[float, typer.Option(help="Weight of the feature loss.")] = 1.0,
    token_weight: Annotated[float, typer.Option(help="Weight of the token loss.")] = 0.1,
    second_branch: Annotated[float, typer.Option(help="Weight of the second branch.")] = 0.5,
    unroll: Annotated[int, typer.Option(help="Levels trained on own predictions.")] = 1,
    start: Annotated[
        Path | None, typer.Option(help="Head whose weights to start from, not from random ones.")
    ] = None,
    expert_size: Annotated[
        int | None, typer.Option(help="Inner width of an expert (default: the target's MLP).")
    ] = None,
    heads: Annotated[int, typer.Option(help="one-shot heads: tokens guessed ahead.")] = 4,
    blocks: Annotated[int, typer.Option(help="one-shot heads: residual blocks of each head.")] = 1,
    own_head: Annotated[
        bool,
        typer.Option(
            "--own-head/--shared-head",
            help="one-shot heads: a language model head of its own per head.",
        ),
    ] = True,
    tree_nodes: Annotated[
        int, typer.Option(help="one-shot heads: nodes of the tree that the checkpoint recommends.")
    ] = 63,
    layers: Annotated[int, typer.Option(help="draft model: layers; early exit: layers below.")] = 2,
    hidden_size: Annotated[
        int | None, typer.Option(help="draft model: width (default: the target's).")
    ] = None,
    mlp_size: Annotated[
        int | None, typer.Option(help="draft model: inner width (default: the target's).")
    ] = None,
    draft_model: Annotated[
        Path | None,
        typer.Option(help="acceptance head: directory of the draft model that it is for."),
    ] = None,
    label_temperature: Annotated[
        float,
        typer.Option(help="acceptance head: temperature of the drafts it learns; 0: greedy ones."),
    ] = 1.0,
    threshold: Annotated[
        float,
        typer.Option(help="acceptance head: probability of a rejection that ends a draft."),
    ] = 0.3,
    num_experts: Annotated[
        int | None, typer.Option(help="Experts of a mixture (default: as the method says).")
    ] = None,
    active_experts: Annotated[
        int | None, typer.Option(help="Experts that the gate picks (default: as the method says).")
    ] = None,
    contrast_levels: Annotated[
        int | None, typer.Option(help="Last levels without a forward: 0, 1 or 2.")
    ] = None,
    contrast_strength: Annotated[
        float | None, typer.Option(help="Factor of what a contrast subtracts (default: 1).")
    ] = None,
    branches: Annotated[
        Branches | None, typer.Option(help="What a node's children come from.")
    ] = None,
    draft_vocab: Annotated[
        int | None, typer.Option(help="Score only so many tokens, the most frequent of the data.")
    ] = None,
    read: Annotated[
        list[int] | None,
        typer.Option(help="A layer of the target whose stream is read, too; may be repeated."),
    ] = None,
    balance: Annotated[float, typer.Option(help="Weight of uneven use of the experts.")] = 0.0,
    diversity: Annotated[
        float, typer.Option(help="Weight of the likeness of decoupled experts.")
    ] = 0.0,
    expert_share: Annotated[
        Share, typer.Option(help="What decides how much each decoupled expert's feature counts.")
    ] = Share.responsibility,
    precision: Annotated[Precision, typer.Option(help="Computing type.")] = Precision.bfloat16,
    target_int8: Annotated[bool, typer.Option(help="Layers of the target in int8.")] = False,
    accumulate: Annotated[int, typer.Option(help="Parts a step is computed in.")] = 1,
    recompute: Annotated[
        bool, typer.Option(help="Compute forwards again in the backward, to save memory.")
    ] = False,
    shard: Annotated[
        bool, typer.Option(help="Spread the network over the processes of torchrun.")
    ] = False,
    compile: Annotated[
        bool, typer.Option(help="Compile what the loss does with logits; needs a C++ compiler.")
    ] = False,
    device: DeviceOption = None,
    save_every: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 500,
    held_out: Annotated[int, typer.Option(help="Samples kept aside for evaluation.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of initialisation, order and noise.")] = 0,
) -> None:
    """Train a draft head for a target.

    The head, a history, its curves and the state to go on from are written to the output
    directory at every checkpoint. Run the same command again to continue a stopped run.
    """
    from jakiro.sampling.params import SamplingParams
    from jakiro.train.config import (
        AcceptanceOptions,
        HeadOptions,
        LossOptions,
        ModelOptions,
        OneShotOptions,
        TrainConfig,
        Work,
    )
    from jakiro.train.run import Reports
    from jakiro.train.run import train as run
    from jakiro.train.trainer import STATE_FILE

    config = TrainConfig(
        method=method,
        head=HeadOptions(
            expert_size,
            num_experts,
            active_experts,
            contrast_levels,
            contrast_strength,
            None if branches is None else branches.value,
            draft_vocab,
            None if read is None else tuple(read),
        ),
        loss=LossOptions(
            feature_weight, token_weight, second_branch, balance, diversity, expert_share.value
        ),
        one_shot=OneShotOptions(heads, blocks, own_head, tree_nodes=tree_nodes),
        model=ModelOptions(layers, hidden_size, mlp_size),
        acceptance=AcceptanceOptions(
            None if draft_model is None else str(draft_model),
            temperature=label_temperature,
            threshold=threshold,
        ),
        epochs=epochs,
        steps=steps,
        batch_tokens=batch_tokens,
        length=length,
        optimizer=optimizer.value,
        lr=lr,
        warmup=warmup,
        weight_decay=weight_decay,
        clip_value=clip_value,
        noise=noise,
        unroll=unroll,
        start=None if start is None else str(start),
        seed=seed,
        save_every=save_every,
        held_out=held_out,
        precision=precision.value,
        target_int8=target_int8,
    )
    work = Work(
        accumulate=accumulate, recompute=recompute, shard=shard, compile=compile, device=device
    )
    answers = (
        SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        if regenerate
        else None
    )
    is_first = os.environ.get("RANK", "0") == "0"
    with Progress(*_COLUMNS, console=NOTES, disable=not is_first) as bar:
        reports = Reports(*_reports(bar, regenerate))
        try:
            run(target, data, out, config, answers, reports, work)
        except KeyboardInterrupt:
            NOTES.print(
                f"Stopped. The last checkpoint is in {out}; the same command goes on from it."
                if (out / STATE_FILE).exists()
                else "Stopped before the first checkpoint; the same command starts again."
            )
            raise typer.Exit(130) from None
    if is_first:
        typer.echo(out)


_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("{task.fields[values]}"),
)


def _reports(
    bar: Progress, regenerate: bool
) -> tuple[Callable[[int, int], None], Callable[[object], None], Callable[[Step], None]]:
    """What shows answers, cost and steps."""
    answering = bar.add_task("answering", total=None, values="", visible=regenerate)
    training = bar.add_task("training", total=None, values="", visible=not regenerate)

    def report_answers(done: int, total: int) -> None:
        bar.update(answering, completed=done, total=total)

    def report_cost(cost: object) -> None:
        bar.console.print(str(cost), soft_wrap=True)

    def report_step(step: Step) -> None:
        values = (
            f"loss {step.loss:.4f}  τ {step.readings['tau']:.2f}  "
            f"{_pace(step.tokens_per_s, step.seconds_left)}"
        )
        bar.update(training, completed=step.step, total=step.num_steps, values=values, visible=True)

    return report_answers, report_cost, report_step


def _pace(tokens_per_s: float | None, seconds_left: float | None) -> str:
    if tokens_per_s is None or seconds_left is None:
        return "warming up"
    minutes, seconds = divmod(round(seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{tokens_per_s:.0f} tokens/s  {hours}:{minutes:02}:{seconds:02} left"
