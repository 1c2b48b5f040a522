"""Wiring: the only place where target, drafter, rule and tokenizer meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from jakiro.drafters.base import Drafter
from jakiro.drafters.none import NoDrafter
from jakiro.engine.budget import Controller
from jakiro.engine.calibrate import measure
from jakiro.engine.costs import COSTS_VERSION, Costs
from jakiro.engine.engine import Engine
from jakiro.engine.limits import Limits
from jakiro.engine.policy import Fixed, Policy
from jakiro.engine.prompt import PromptTokenizer, encode
from jakiro.errors import ConfigError
from jakiro.hub.bundled import BUNDLED_TARGET, is_bundled, target_location
from jakiro.hub.costs import keep_costs, read_costs
from jakiro.hub.drafters import Source, of_model
from jakiro.hub.models import (
    first_line,
    load_model,
    second_model,
    tokenizer_beside,
)
from jakiro.sampling.nodes import AS_SAID, Sharpness
from jakiro.target.definitions import registry as definitions
from jakiro.target.definitions.base import Definition
from jakiro.target.machine import device_name
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.verify import find as find_rule

AUTO = "auto"


class _DeterministicScores:
    """Draft scores that ignore the noise: plain top-k trees at every temperature."""

    def scores(
        self,
        logits: Tensor,
        depth: int,
        ids: Tensor | None = None,
        sharpness: Sharpness = AS_SAID,
    ) -> Tensor:
        return (sharpness.logits * logits.float()).log_softmax(-1)


def load(  # noqa: PLR0913  the one call of a user, by keyword
    target: str | Path | PreTrainedModel = BUNDLED_TARGET,
    drafter: str | Path | PreTrainedModel | Drafter | Callable[[Target], Drafter] | None = None,
    *,
    drafter_options: Mapping[str, Any] | None = None,
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
            target (asked twice where costs are measured). A registered name wins over a directory
            called so. Trained drafters by name are the bundled ones and need the bundled target.
            None: the bundled Jakiro head for the bundled target, prompt lookup for any other.
        drafter_options: arguments of the drafter's class, for example ``{"window": 128}`` of a
            head; they go before what its checkpoint recommends. Of ``ARBITER+DRAFTER`` they are
            the drafter's.
        tokenizer: default: the one beside ``target``. A loaded model, or a directory without files
            of a tokenizer, has none: then it is needed for text prompts and stop strings, and
            prompts of token ids do without.
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
        compile: run target and drafter through ``torch.compile``, on a CPU with kernels for a few
            rows. There it takes a C++ compiler, and the weights once more in memory (of bfloat16
            numbers half of float32; those of heads are rounded to them). A handful of kinds of
            forward are compiled here and now, which takes a minute, seconds where another process
            did it before; what is not known here (several models, a GPU) when it first comes
            (``engine.target.compile_ms``).
        definition: what the target's law is, if not its own: a name or ``NAME:SETTING=VALUE,..``
            (docs/methods.md). What is promised of the target then holds of its redefinition.
        amateur: the second model of a definition that needs one, as a directory, a hub name or
            loaded; it shares the tokenizer of the target.

    Raises:
        UnknownName: there is no drafter, rule or definition of that name.
        ConfigError: ``tree``, ``rule`` and drafter do not fit each other, nor ``definition`` and
            ``amateur``, there is no compiler or the target cannot be compiled, the drafter has no
            such option, ``dtype``, ``device`` or ``max_batch_size`` is impossible, or the drafter
            has answers in flight in another engine and its costs are to be measured.
        CheckpointError: target or head is missing, or one of them or the tokenizer is damaged or
            incomplete.
        TargetRefused: the target, or a second model, cannot be driven losslessly, or has not what
            the definition reads.
        PairMismatch: the head was made for another target, a second model has another vocabulary,
            or the drafter knows tokens beforehand that the target has not.
    """
    if device is not None and device_map is not None:
        raise ConfigError("give device or device_map, not both")
    is_auto, plan = _plan(tree)
    found_rule = find_rule(rule)
    law = _definition(definition, amateur)
    if drafter is None:
        drafter = "jakiro" if is_bundled(target) else "prompt_lookup"
    # Found before the target is loaded, which may take minutes.
    Limits(max_batch_size)
    make = _maker(drafter, is_bundled(target), drafter_options)
    if isinstance(target, (str, Path)):
        location = target_location(target)
        wanted = _dtype(dtype, torch.float32 if is_bundled(target) else "auto")
        model = load_model(location, wanted, _device(device), device_map)
        if tokenizer is None:
            tokenizer = cast(PromptTokenizer | None, tokenizer_beside(location))
    else:  # a model, or an adapter of peft around one, which is none
        model = target
    wrapped = Target(model)
    if law is not None:
        wrapped = _redefined(wrapped, law, amateur, tokenizer)
    if compile:
        wrapped.compile("inductor")

    def anew() -> Drafter:
        drafter = make(wrapped, tokenizer)
        if compile:
            drafter.compile("inductor")
        return drafter

    made = anew()
    wrapped.meet(made.needs)
    policy: Callable[[TreePlan], Policy] = Fixed
    if is_auto and not isinstance(made, NoDrafter):
        options = {name: repr(value) for name, value in (drafter_options or {}).items()}
        made_so = {"definition": repr(law), "drafter_options": options, "compile": compile}
        costs, is_new = _costs(wrapped, made, plan, max_batch_size, made_so)
        policy = partial(Controller, costs=costs)
        if is_new:
            # Some drafters learn from what they draft, which were random tokens. The next one comes
            # when the weights of this one have gone.
            del made
            made = anew()
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


def eos_ids(model: PreTrainedModel, tokenizer: Any = None) -> tuple[int, ...]:
    """The end tokens: of the generation config, else of the config, else of the tokenizer."""
    for source in (model.generation_config, model.config.get_text_config(), tokenizer):
        found = getattr(source, "eos_token_id", None)
        if found is not None:
            return tuple(found) if isinstance(found, (list, tuple)) else (int(found),)
    return ()


def _maker(
    given: str | Path | PreTrainedModel | Drafter | Callable[[Target], Drafter],
    is_bundled_target: bool,
    options: Mapping[str, Any] | None,
) -> Callable[[Target, PromptTokenizer | None], Drafter]:
    """What makes the drafter that is asked for, once its target is there."""
    if isinstance(given, (str, Path)):
        source = Source.find(given, is_bundled_target)
        return lambda target, tokenizer: source.load(target, tokenizer, options)
    if isinstance(given, nn.Module) or not (isinstance(given, Drafter) or callable(given)):
        model = cast(PreTrainedModel, given)  # what is none is refused by name
        return lambda target, tokenizer: of_model(model, target, (None, tokenizer), options)
    if options:
        raise ConfigError("give drafter_options to the drafter itself where it is made outside")
    return lambda target, _: given if isinstance(given, Drafter) else given(target)


def _plan(tree: TreePlan | str | None) -> tuple[bool, TreePlan | None]:
    """Whether a controller chooses within the plan, and the plan; None: the drafter's."""
    if tree is None or isinstance(tree, TreePlan):
        return False, tree
    if not isinstance(tree, str):
        raise ConfigError(f"tree must be a TreePlan, its text form or None, got {tree!r}")
    is_auto = tree.partition(":")[0] == AUTO
    text = tree.removeprefix(AUTO).removeprefix(":") if is_auto else tree
    return is_auto, TreePlan.parse(text) if text or not is_auto else None


def _costs(
    target: Target,
    drafter: Drafter,
    plan: TreePlan | None,
    max_batch_size: int,
    made_so: dict[str, Any],
) -> tuple[Costs, bool]:
    """The costs of this pair on this machine, and whether they had to be measured; ``made_so``: how
    the pair was made, as plain data."""
    key = {
        "target": target.fingerprint(),
        "dtype": str(target.dtype),
        "device": device_name(target.device),
        "threads": torch.get_num_threads(),
        "versions": {"costs": COSTS_VERSION, "torch": str(torch.__version__)},
        "drafter": {"name": drafter.name, "num_parameters": drafter.num_parameters},
        "plan": str(plan or drafter.plan),
        "max_batch_size": max_batch_size,
        "num_parameters": target.num_parameters,
        **made_so,
    }
    try:
        return Costs.from_json(read_costs(key) or {}), False
    except (KeyError, TypeError, ValueError):
        drafter.check_free()
    costs = measure(target, drafter, plan, max_batch_size=max_batch_size)
    keep_costs(key, costs.to_json())
    return costs, True


def _dtype(given: str | torch.dtype | None, default: str | torch.dtype) -> str | torch.dtype:
    if given is None:
        return default
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"unknown dtype {given!r}; use float32, bfloat16, float16 or float64")
    return found


def _device(given: str | torch.device | None) -> torch.device | None:
    """A device that this machine has."""
    if given is None:
        return None
    try:
        return torch.empty(0, device=given).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ConfigError(
            f"cannot use the device {str(given)!r}: {first_line(error)}; use cpu, or cuda where "
            "torch finds a GPU"
        ) from error


def _definition(given: str | Definition | None, amateur: object) -> Definition | None:
    """The definition asked for, if it has the amateur it needs and no other."""
    found = definitions.find(given) if isinstance(given, str) else given
    if found is not None and not isinstance(found, Definition):
        raise ConfigError(f"definition must be a name, a Definition or None, got {found!r}")
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
        own = tokenizer_beside(location)
        second = second_model(model, target, (own, tokenizer), "the amateur")
    elif amateur is not None:
        second = second_model(amateur, target, (None, tokenizer), "the amateur")
    return definition.redefine(target, second, lambda text: encode(tokenizer, text, {}))
