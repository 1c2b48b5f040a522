"""Wiring: the only place where target, drafter, rule and tokenizer meet."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jakiro.drafters import registry
from jakiro.drafters.base import Drafter
from jakiro.engine.budget import Controller
from jakiro.engine.calibrate import measure
from jakiro.engine.costs import COSTS_VERSION, Costs
from jakiro.engine.engine import Engine
from jakiro.engine.policy import Fixed, Policy
from jakiro.engine.prompt import PromptTokenizer, encode
from jakiro.errors import CheckpointError, ConfigError, PairMismatch, UnknownName
from jakiro.hub import checkpoint
from jakiro.hub.costs import keep_costs, read_costs
from jakiro.hub.machine import device_name
from jakiro.hub.models import (
    check_vocabularies,
    first_line,
    load_model,
    load_tokenizer,
    tokenizer_beside,
)
from jakiro.target.definitions import registry as definitions
from jakiro.target.definitions.base import Definition
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.verify import find as find_rule

BUNDLED_TARGET = "pico"
AUTO = "auto"


class _DeterministicScores:
    """Draft scores that ignore the noise: plain top-k trees at every temperature."""

    def scores(self, logits: Tensor, depth: int, ids: Tensor | None = None) -> Tensor:
        return logits.float().log_softmax(-1)


def load(  # noqa: PLR0913  the one call of a user, by keyword
    target: str | Path | PreTrainedModel = BUNDLED_TARGET,
    drafter: str | Path | PreTrainedModel | Drafter | Callable[[Target], Drafter] | None = None,
    *,
    tokenizer: PromptTokenizer | None = None,
    tree: TreePlan | str | None = None,
    rule: str = "match",
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    max_batch_size: int = 8,
    noise_aware: bool = True,
    compile: bool = False,
    definition: str | Definition | None = None,
    amateur: str | Path | PreTrainedModel | None = None,
) -> Engine:
    """An engine for ``target`` and ``drafter``.

    Args:
        target: ``"pico"`` (the bundled model), a directory, a hub name, or a loaded model (one in
            a PEFT wrapper included).
        drafter: a registered name; a directory with a head of any trained method or with a causal
            language model of the same tokenizer; such a model, loaded; ``ARBITER+`` a name or
            directory; a drafter that no other engine uses; or a function that makes one of the
            target. A registered name wins over a directory called so. Trained drafters by name are
            the bundled ones and need the bundled target. None: the bundled Jakiro head for the
            bundled target, prompt lookup for any other.
        tokenizer: needed for text prompts where ``target`` is a loaded model.
        tree: a ``TreePlan`` or its text form, for example ``dynamic:5,8,16``. ``auto``: in every
            cycle as much of the drafter's own tree as pays on this machine, nothing where drafting
            does not pay; ``auto:dynamic:6,8,32``: as much of that one. The first load of a pair
            measures the machine for some seconds; the result is kept (docs/controller.md).
        rule: what of a draft is kept; see ``jakiro list``. Rules other than ``match`` do not
            promise the tokens of plain decoding when sampling, see docs/rules.md.
        dtype: computing type of target and drafter; default: float32 for the bundled target,
            what the checkpoint says for others. A loaded model stays as it is.
        device, device_map: where a target that is loaded here goes.
        max_batch_size: requests decoded together; more wait.
        noise_aware: let drafts at T > 0 lean to where the sampling noise points (the text is the
            same either way).
        compile: run target and drafter through ``torch.compile``, trees padded to few sizes. Each
            size takes seconds to minutes when it first comes (``engine.target.compile_ms``).
        definition: what the target's law is, if not its own: a name or ``NAME:SETTING=VALUE,..``
            (docs/methods.md). What is promised of the target then holds of its redefinition.
        amateur: the second model of a definition that needs one, as a directory, a hub name or
            loaded; it shares the tokenizer of the target.

    Raises:
        UnknownName: there is no drafter, rule or definition of that name.
        ConfigError: ``tree``, ``rule`` and drafter do not fit each other, nor ``definition`` and
            ``amateur``, or ``dtype``, ``device`` or ``max_batch_size`` is impossible.
        CheckpointError: target, tokenizer or head is missing, damaged or incomplete.
        TargetRefused: the target, or a second model, cannot be driven losslessly, or has not what
            the definition reads.
        PairMismatch: the head was made for another target, or a second model has another
            vocabulary.
    """
    if device is not None and device_map is not None:
        raise ConfigError("give device or device_map, not both")
    is_auto, plan = _plan(tree)
    found_rule = find_rule(rule)
    law = _definition(definition, amateur)
    is_bundled = _is_bundled(target)
    chosen = drafter if drafter is not None else ("jakiro" if is_bundled else "prompt_lookup")
    # Found before the target is loaded, which may take minutes.
    source = _find_drafter(chosen, is_bundled) if isinstance(chosen, (str, Path)) else None
    location = target if isinstance(target, PreTrainedModel) else target_location(target)
    if isinstance(location, (str, Path)):
        wanted = _dtype(dtype, torch.float32 if is_bundled else "auto")
        model = load_model(location, wanted, _device(device), device_map)
        if tokenizer is None:
            tokenizer = cast(PromptTokenizer, load_tokenizer(location))
    else:
        model = location
    wrapped = Target(model)
    if law is not None:
        wrapped = _redefined(wrapped, law, amateur, tokenizer)
    if source is not None:
        made = _load_drafter(source, wrapped, tokenizer)
    elif isinstance(chosen, Drafter):
        made = chosen
    elif callable(chosen) and not isinstance(chosen, nn.Module):
        made = chosen(wrapped)
    else:
        made = _draft_model(cast(PreTrainedModel, chosen), wrapped, (None, tokenizer))
    if compile:
        wrapped.compile("inductor")
        made.compile("inductor")
    policy = _controller(wrapped, made, plan, max_batch_size, repr(law)) if is_auto else Fixed
    return Engine(
        wrapped,
        made,
        found_rule,
        plan=plan,
        tokenizer=tokenizer,
        eos_ids=eos_ids(wrapped.model, tokenizer),
        max_batch_size=max_batch_size,
        noise=None if noise_aware else _DeterministicScores(),
        policy=policy,
    )


def usable_drafters(target: str | Path | PreTrainedModel) -> list[str]:
    """The names that ``load`` takes as drafter of ``target``, whatever it is: those that need
    nothing, and with the bundled target those that have a bundled checkpoint."""
    bundled = _is_bundled(target)
    return [
        entry.name
        for entry in registry.ENTRIES.values()
        if entry.made_of == "nothing" or (bundled and bundled_drafter(entry.name).is_dir())
    ]


def eos_ids(model: PreTrainedModel, tokenizer: Any = None) -> tuple[int, ...]:
    """The end tokens: of the generation config, else of the config, else of the tokenizer."""
    for source in (model.generation_config, model.config.get_text_config(), tokenizer):
        found = getattr(source, "eos_token_id", None)
        if found is not None:
            return tuple(found) if isinstance(found, (list, tuple)) else (int(found),)
    return ()


def _plan(tree: TreePlan | str | None) -> tuple[bool, TreePlan | None]:
    """Whether a controller chooses within the plan, and the plan; None: the drafter's."""
    if not isinstance(tree, str):
        return False, tree
    is_auto = tree.partition(":")[0] == AUTO
    text = tree.removeprefix(AUTO).removeprefix(":") if is_auto else tree
    return is_auto, TreePlan.parse(text) if text or not is_auto else None


def _controller(
    target: Target, drafter: Drafter, plan: TreePlan | None, max_batch_size: int, law: str
) -> Callable[[TreePlan], Policy]:
    """A controller with the costs of this pair on this machine, measured unless they are known."""
    key = {
        "target": target.fingerprint(),
        "dtype": str(target.dtype),
        "device": device_name(target.device),
        "threads": torch.get_num_threads(),
        "versions": {"costs": COSTS_VERSION, "torch": str(torch.__version__)},
        "drafter": {"name": drafter.name, "num_parameters": drafter.num_parameters},
        "plan": str(plan or drafter.plan),
        "max_batch_size": max_batch_size,
        "definition": law,
        "num_parameters": target.num_parameters,
    }
    try:
        costs = Costs.from_json(read_costs(key) or {})
    except (KeyError, TypeError, ValueError):
        costs = measure(target, drafter, plan, max_batch_size=max_batch_size)
        keep_costs(key, costs.to_json())
    return lambda limits: Controller(limits, costs)


def _is_bundled(target: str | Path | PreTrainedModel) -> bool:
    """By name, or loaded from the package's own directory before."""
    if isinstance(target, PreTrainedModel):
        return bool(target.name_or_path == str(_bundled(BUNDLED_TARGET)))
    return target == BUNDLED_TARGET


def target_location(target: str | Path) -> str | Path:
    """Where a target is read from: of the bundled one's name its directory, else ``target``."""
    return _bundled(BUNDLED_TARGET) if target == BUNDLED_TARGET else target


def _bundled(name: str) -> Path:
    """Directory of a model inside the package."""
    return Path(str(files("jakiro") / "models" / name))


def bundled_drafter(name: str) -> Path:
    """Where the drafter of the bundled target is, if there is one."""
    return _bundled(f"{BUNDLED_TARGET}-{name}")


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
            f"cannot use the device {str(given)!r}: {first_line(error)}; use cpu, or cuda where "
            "torch finds a GPU"
        ) from error


class _Source(NamedTuple):
    """What a drafter will be made of: a method without a checkpoint or the directory of one, and
    the arbiters over it, the outermost first."""

    inner: registry.Entry | Path
    arbiters: tuple[registry.Entry, ...] = ()


def _find_drafter(chosen: str | Path, is_bundled: bool) -> _Source:
    """What a registered name or a directory stands for."""
    name = str(chosen)
    entry = registry.ENTRIES.get(name) if isinstance(chosen, str) else None
    if entry is None and name and Path(chosen).is_dir():
        return _Source(Path(chosen))
    outer, plus, inner = name.partition("+")
    if plus and outer in registry.arbiters():
        found = _find_drafter(inner, is_bundled)
        return found._replace(arbiters=(registry.find(outer), *found.arbiters))
    if entry is None:
        over = (f"{arbiter}+ one of these" for arbiter in registry.arbiters())
        raise UnknownName("drafter", name, [*registry.names(), "a directory", *over])
    if not entry.is_trained:
        return _Source(entry)
    advice = f"(jakiro train --method {name} --target ...) and give its directory"
    if not is_bundled:
        raise PairMismatch(
            f"the bundled {name!r} was trained for the bundled target {BUNDLED_TARGET!r}; train "
            f"one for yours {advice}"
        )
    directory = bundled_drafter(name)
    if not directory.is_dir():
        raise CheckpointError(f"no {name!r} is bundled; train one {advice}")
    return _Source(directory)


def _load_drafter(source: _Source, target: Target, tokenizer: PromptTokenizer | None) -> Drafter:
    drafter: Drafter = (
        _from_directory(source.inner, target, tokenizer)
        if isinstance(source.inner, Path)
        else source.inner.load()(*([target] if source.inner.made_of == "target" else []))
    )
    for entry in reversed(source.arbiters):
        drafter = entry.load()(drafter)
    return drafter


def _from_directory(directory: Path, target: Target, tokenizer: PromptTokenizer | None) -> Drafter:
    """The drafter whose checkpoint this is, with the tree and the options its notes recommend."""
    if checkpoint.holds_model(directory):
        model = load_model(directory, target.dtype, target.device)
        return _draft_model(model, target, (tokenizer_beside(directory), tokenizer))
    head = checkpoint.load(directory, target.fingerprint())
    kind = registry.find(head.config.method).load()
    notes = checkpoint.read_config(directory).get("notes", {})
    options = notes.get("options", {})
    try:
        drafter: Drafter = kind(
            head.to(device=target.device, dtype=target.dtype), target, **options
        )
    except TypeError as error:
        raise CheckpointError(
            f"{directory / checkpoint.CONFIG_FILE} recommends options that "
            f"{head.config.method} does not have: {options} ({error})"
        ) from error
    if "tree" in notes:
        drafter.plan = TreePlan.parse(notes["tree"])
    return drafter


def _draft_model(
    model: PreTrainedModel, target: Target, tokenizers: tuple[object, object]
) -> Drafter:
    """A language model as drafter; ``tokenizers``: its own and that of the target, or None."""
    wrapped = _second(model, target, tokenizers, "the draft model")
    drafter: Drafter = registry.of_models().load()(wrapped, target)
    return drafter


def _second(
    model: PreTrainedModel, target: Target, tokenizers: tuple[object, object], role: str
) -> Target:
    """A language model that reads and speaks as the target does, beside it."""
    wrapped, what = Target(model), f"{role} {model.name_or_path or type(model).__name__!r}"
    if wrapped.device != target.device:
        raise ConfigError(
            f"{what} is on {wrapped.device} and the target on {target.device}; "
            "move one to the other"
        )
    sizes = (wrapped.vocab_size, target.vocab_size)
    check_vocabularies((sizes[0], tokenizers[0]), (sizes[1], tokenizers[1]), what)
    return wrapped


def _definition(given: str | Definition | None, amateur: object) -> Definition | None:
    """The definition asked for, if it has the amateur it needs and no other."""
    found = definitions.find(given) if isinstance(given, str) else given
    if found is None and amateur is not None:
        raise ConfigError("an amateur is of no use without a definition; give one that needs it")
    if found is not None and found.needs_amateur != (amateur is not None):
        advice = "give amateur=" if found.needs_amateur else "leave out amateur"
        needs = "needs a second model" if found.needs_amateur else "takes no second model"
        raise ConfigError(f"the definition {found.name} {needs}; {advice}")
    return found


def _redefined(
    target: Target,
    definition: Definition,
    amateur: str | Path | PreTrainedModel | None,
    tokenizer: PromptTokenizer | None,
) -> Target:
    """``target`` with the law of ``definition``."""
    second = None
    if isinstance(amateur, (str, Path)):
        location = target_location(amateur)
        model = load_model(location, target.dtype, target.device)
        is_here = Path(location).is_dir()
        own = tokenizer_beside(Path(location)) if is_here else load_tokenizer(location)
        second = _second(model, target, (own, tokenizer), "the amateur")
    elif amateur is not None:
        second = _second(amateur, target, (None, tokenizer), "the amateur")
    return definition.redefine(target, second, lambda text: encode(tokenizer, text, {}))
