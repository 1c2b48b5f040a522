"""Wiring: the only place where target, drafter, rule and tokenizer meet."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from jakiro.drafters import registry
from jakiro.drafters.base import Drafter
from jakiro.engine.engine import Engine, PromptTokenizer
from jakiro.errors import CheckpointError, ConfigError, PairMismatch, UnknownName
from jakiro.hub import checkpoint
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.verify import find as find_rule

BUNDLED_TARGET = "pico"


class _DeterministicScores:
    """Draft scores that ignore the noise: plain top-k trees at every temperature."""

    def scores(self, logits: Tensor, depth: int) -> Tensor:
        return logits.float().log_softmax(-1)


def load(  # noqa: PLR0913  the one call of a user, by keyword
    target: str | Path | PreTrainedModel = BUNDLED_TARGET,
    drafter: str | Path | Drafter | None = None,
    *,
    tokenizer: PromptTokenizer | None = None,
    tree: TreePlan | str | None = None,
    rule: str = "match",
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    max_batch_size: int = 8,
    noise_aware: bool = True,
) -> Engine:
    """An engine for ``target`` and ``drafter``.

    Args:
        target: ``"pico"`` (the bundled model), a directory, a hub name, or a loaded model (one in
            a PEFT wrapper included).
        drafter: a registered name, a checkpoint directory, ``ARBITER+`` one of both, or a drafter
            that no other engine uses. A registered name wins over a directory called so. Trained
            drafters by name are the bundled ones and need the bundled target. None: the bundled
            Jakiro head for the bundled target, prompt lookup for any other.
        tokenizer: needed for text prompts where ``target`` is a loaded model.
        tree: a ``TreePlan`` or its text form, for example ``dynamic:5,8,16``.
        rule: what of a draft is kept; see ``jakiro list``.
        dtype: computing type of target and drafter; default: float32 for the bundled target,
            what the checkpoint says for others. A loaded model stays as it is.
        device, device_map: where a target that is loaded here goes.
        max_batch_size: requests decoded together; more wait.
        noise_aware: let drafts at T > 0 lean to where the sampling noise points (the text is the
            same either way).

    Raises:
        UnknownName: there is no drafter or rule of that name.
        ConfigError: ``tree``, ``dtype``, ``device`` or ``max_batch_size`` is impossible.
        CheckpointError: target, tokenizer or head is missing, damaged or incomplete.
        TargetRefused: the target cannot be driven losslessly.
        PairMismatch: the head was made for another target.
    """
    if device is not None and device_map is not None:
        raise ConfigError("give device or device_map, not both")
    plan = TreePlan.parse(tree) if isinstance(tree, str) else tree
    found_rule = find_rule(rule)
    is_bundled = _is_bundled(target)
    location = _bundled(BUNDLED_TARGET) if target == BUNDLED_TARGET else target
    if isinstance(location, (str, Path)):
        wanted = _dtype(dtype, torch.float32 if is_bundled else "auto")
        model = _load_model(location, wanted, _device(device), device_map)
        if tokenizer is None:
            tokenizer = _load_tokenizer(location)
    else:
        model = location
    wrapped = Target(model)
    chosen = drafter if drafter is not None else ("jakiro" if is_bundled else "prompt_lookup")
    return Engine(
        wrapped,
        chosen if isinstance(chosen, Drafter) else _load_drafter(chosen, wrapped, is_bundled),
        found_rule,
        plan=plan,
        tokenizer=tokenizer,
        eos_ids=eos_ids(wrapped.model, tokenizer),
        max_batch_size=max_batch_size,
        noise=None if noise_aware else _DeterministicScores(),
    )


def eos_ids(model: PreTrainedModel, tokenizer: Any = None) -> tuple[int, ...]:
    """The end tokens: of the generation config, else of the config, else of the tokenizer."""
    for source in (model.generation_config, model.config.get_text_config(), tokenizer):
        found = getattr(source, "eos_token_id", None)
        if found is not None:
            return tuple(found) if isinstance(found, (list, tuple)) else (int(found),)
    return ()


def _is_bundled(target: str | Path | PreTrainedModel) -> bool:
    """By name, or loaded from the package's own directory before."""
    if isinstance(target, PreTrainedModel):
        return bool(target.name_or_path == str(_bundled(BUNDLED_TARGET)))
    return target == BUNDLED_TARGET


def _bundled(name: str) -> Path:
    """Directory of a model inside the package."""
    return Path(str(files("jakiro") / "models" / name))


def _dtype(given: str | torch.dtype | None, default: str | torch.dtype) -> str | torch.dtype:
    if not isinstance(given, str):
        return default if given is None else given
    found = getattr(torch, given, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"unknown dtype {given!r}; use float32, bfloat16, float16 or float64")
    return found


def _device(given: str | torch.device | None) -> torch.device | None:
    """A device that this machine has."""
    if given is None:
        return None
    try:
        return torch.empty(0, device=given).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"cannot use the device {str(given)!r}: {_first_line(error)}; use cpu, or cuda where "
            "torch finds a GPU"
        ) from error


def _load_model(
    location: str | Path,
    dtype: str | torch.dtype,
    device: torch.device | None,
    device_map: str | dict[str, Any] | None,
) -> PreTrainedModel:
    """A causal LM in evaluation mode from a directory or the hub."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=dtype,
            device_map=device_map,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot load a causal language model from {str(location)!r}: {_first_line(error)}. "
            "Give a directory with config.json and weights, a hub name, or "
            f"{BUNDLED_TARGET!r}"
        ) from error
    model, report = loaded
    shapes = (f"{name} has shape {list(is_)}" for name, is_, _ in report["mismatched_keys"])
    if wrong := sorted([*(f"{name} is missing" for name in report["missing_keys"]), *shapes]):
        raise CheckpointError(
            f"{len(wrong)} tensors in {str(location)!r} do not fit its config, the first: "
            f"{wrong[0]}; copy or save the model again"
        )
    placed: PreTrainedModel = model if device is None else model.to(device)
    return placed


def _load_tokenizer(location: str | Path) -> PromptTokenizer:
    try:
        return cast(PromptTokenizer, AutoTokenizer.from_pretrained(location))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"cannot load the tokenizer of {str(location)!r}: {_first_line(error)}. Save one "
            "beside the weights, or give load(tokenizer=...)"
        ) from error


def _first_line(error: BaseException) -> str:
    """What an error of a library says first; more lines are advice about other things."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _load_drafter(chosen: str | Path, target: Target, is_bundled: bool) -> Drafter:
    """A drafter by registered name or from a checkpoint directory."""
    name = str(chosen)
    is_name = isinstance(chosen, str) and chosen in registry.names()
    if not is_name and Path(chosen).is_dir():
        return _head(Path(chosen), target)
    outer, plus, inner = name.partition("+")
    if plus:
        over: Drafter = registry.find_arbiter(outer).load()(
            _load_drafter(inner, target, is_bundled)
        )
        return over
    try:
        entry = registry.find(name)
    except UnknownName as error:
        raise UnknownName("drafter", name, [*registry.names(), "a directory"]) from error
    if not entry.is_trained:
        drafter: Drafter = entry.load()()
        return drafter
    advice = f"(jakiro train --method {name} --target ...) and give its directory"
    if not is_bundled:
        raise PairMismatch(
            f"the bundled {name!r} head was trained for the bundled target {BUNDLED_TARGET!r}; "
            f"train one for yours {advice}"
        )
    directory = _bundled(f"{BUNDLED_TARGET}-{name}")
    if not directory.is_dir():
        raise CheckpointError(f"no {name!r} checkpoint is bundled; train one {advice}")
    return _head(directory, target)


def _head(directory: Path, target: Target) -> Drafter:
    """The drafter of a head's checkpoint, with the tree its notes recommend for that target."""
    head = checkpoint.load(directory, target.fingerprint())
    kind = registry.find(head.config.method).load()
    drafter: Drafter = kind(head.to(device=target.device, dtype=target.dtype), target)
    tree = checkpoint.read_config(directory).get("notes", {}).get("tree")
    if tree is not None:
        drafter.plan = TreePlan.parse(tree)
    return drafter
