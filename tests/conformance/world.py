"""The small world of the conformance suite: targets, drafters, prompts, settings, truths.

Everything is float64 and tiny. What plain decoding says is computed once per (family, setting,
row) by the oracle, which shares no code with the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel

from jakiro.drafters import registry
from jakiro.drafters.base import Drafter
from jakiro.drafters.feature import FeatureDrafter
from jakiro.engine.engine import Engine
from jakiro.errors import TargetRefused
from jakiro.sampling.params import SamplingParams
from jakiro.target.target import Target
from jakiro.tree.shapes import TreePlan
from jakiro.verify import find as find_rule
from tests.conformance.doubles import Beside
from tests.families import FAMILIES, llama_like
from tests.oracles.plain import Settings, generate

TREES = {
    "chain": TreePlan.chain(4),
    "static": TreePlan.static(
        ((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (1, 0, 0), (0, 0, 0, 0))
    ),
    "dynamic": TreePlan("dynamic", depth=4, width=3, budget=12),
}
SETTINGS = {
    "greedy": SamplingParams(),
    "top_p": SamplingParams(temperature=0.5, top_p=0.9),
    "penalised": SamplingParams(temperature=1.3, top_k=5, repetition_penalty=1.2),
    "biased": SamplingParams(temperature=0.8, min_p=0.05, logit_bias={3: 2.0, 11: -4.0, 30: 1.5}),
    "counted": SamplingParams(
        temperature=1.1, top_k=6, top_p=0.7, presence_penalty=1.5, frequency_penalty=0.8
    ),
}
ROWS = {1: (2, 0, 3), 3: (0, 1, 2, 3)}
"""Batch size and the rows that are asked: always more than fit, so that rows leave and join."""
SIZES = {
    "narrow": {
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 8,
        "expert_size": 12,
        "exit_layer": 1,
    },
    "wide": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "expert_size": 40, "exit_layer": 1},
}
"""Settings of untrained heads; a method takes those its config has."""
VARIANTS = {
    "decoupled": {"num_experts": 3, "branches": "decoupled", "contrast_levels": 0},
    "ahead": {"num_experts": 4, "branches": "sum", "contrast_levels": 2},
    "frequent": {"num_experts": 5, "branches": "decoupled", "draft_vocab_size": 41},
    "streams": {"reads": (0, 1)},
}
"""Kinds of the one-layer network, as ``jakiro/VARIANT``; otherwise wide, with two experts. Together
with the methods of one head: every number of experts from 1 to 5, of contrasts from 0 to 2, every
kind of branches, a draft vocabulary, and streams of lower layers."""
SIZES_OF_ALL = SIZES | {name: SIZES["wide"] | kind for name, kind in VARIANTS.items()}
SIMILAR = ("eagle1", "jakiro_star", "specdec_pp", "pearl", "sjd")
"""Methods that are another one with another tree, kind of head or end: tested like its variants."""
NARROW_MODEL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "max_position_embeddings": 40,
    "vocab_size": 72,
}
WITHIN = {"pearl": (Beside,)}
"""What is given to drafters with a process of their own, to do without it."""
PROMPT_LENGTHS = (9, 1, 26, 15, 5)
NUM_NEW = (44, 26, 37, 31, 40)
"""Per row, so that rows of a batch finish in different cycles."""


@cache
def target(family: str) -> Target:
    return Target(model(family))


@cache
def model(family: str) -> PreTrainedModel:
    return FAMILIES[family]()


@cache
def prompt(row: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(100 + row)
    return tuple(torch.randint(2, 60, (PROMPT_LENGTHS[row],), generator=generator).tolist())


def params(setting: str, row: int) -> SamplingParams:
    """The settings of one row: each has its own seed and length."""
    return replace(SETTINGS[setting], seed=17 + row, max_new_tokens=NUM_NEW[row])


@cache
def truth(family: str, setting: str, row: int) -> tuple[int, ...]:
    """What plain decoding answers, by the oracle."""
    return tuple(answer(model(family), prompt(row), params(setting, row)))


def answer(
    model: PreTrainedModel,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    eos_ids: Sequence[int] = (),
) -> list[int]:
    """The oracle, asked in the words of the package (stop strings left out)."""
    shared = {field.name for field in fields(Settings)} & {field.name for field in fields(params)}
    settings = {name: getattr(params, name) for name in shared}
    settings["seed"] = settings["seed"] or 0
    return generate(model, list(prompt_ids), eos_ids=(*eos_ids, *params.stop_token_ids), **settings)


def head(of: Target, method: str, size: str = "wide", std: float = 0.12) -> Any:
    """An untrained draft head for a target. ``std``: of its weights; narrow targets need more of it
    for experts that differ."""
    torch.manual_seed(5)
    entry = registry.find(method)
    config, network = entry.load_head()
    fit = {"method": method, "hidden_size": of.hidden_size, "vocab_size": of.vocab_size}
    fit |= entry.settings
    known = {field.name for field in fields(config)}
    settings = {k: v for k, v in (fit | SIZES_OF_ALL[size]).items() if k in known}
    if "draft_vocab_size" in settings:
        # Of a toy, too, some tokens are never drafted.
        settings["draft_vocab_size"] = min(settings["draft_vocab_size"], of.vocab_size - 1)
    if "reads" in settings:
        # The narrowest has a single layer.
        settings["reads"] = tuple(layer for layer in settings["reads"] if layer < of.num_layers)
    built = network(config(**settings))
    built.to(of.dtype)
    for parameter in built.parameters():
        if parameter.ndim > 1:
            # Far larger than at the start of a training: flat predictions make shallow trees.
            torch.nn.init.normal_(parameter, std=std)
    for ids in built.buffers():
        if ids.dtype == torch.int64:
            ids.copy_(torch.randperm(of.vocab_size)[: len(ids)].sort().values)
    return built


@cache
def draft_model(of: Target, size: str) -> Target:
    """A language model that is not quite the target: its own weights and noise (``wide``), or one
    small layer, whose context ends within the texts and which has padding rows (``narrow``)."""
    if size == "narrow":
        return Target(llama_like("Llama", **NARROW_MODEL)())
    model = deepcopy(of.model)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.5 * parameter.std(correction=0) * noise)
    return Target(model)


def drafter_cases() -> list[str]:
    """Every registered drafter, those made of a head in two sizes, as ``name/size``, variants of
    one, and every arbiter over one with a cache of its own."""
    over = [f"{name}+jakiro/wide" for name in registry.arbiters()]
    return [*trained_cases(), *variant_cases(), *untrained_cases(), *view_cases(), *over]


def trained_cases() -> list[str]:
    trained = [entry.name for entry in registry.ENTRIES.values() if entry.is_trained]
    return [f"{name}/{size}" for name in trained if name not in SIMILAR for size in SIZES]


def variant_cases() -> list[str]:
    return [*(f"{name}/wide" for name in SIMILAR), *(f"jakiro/{name}" for name in VARIANTS)]


def untrained_cases() -> list[str]:
    free = [entry.name for entry in registry.ENTRIES.values() if entry.made_of == "nothing"]
    return [name for name in free if name not in SIMILAR]


def view_cases() -> list[str]:
    """One mechanism under several names: where all drafters are asked, one of them answers."""
    return [entry.name for entry in registry.ENTRIES.values() if entry.made_of == "target"]


def kinds() -> list[str]:
    """``drafter_cases`` with, of the views, only two that remember something."""
    views = set(view_cases()) - {"swift", "double_sparsity"}
    return [case for case in drafter_cases() if case not in views]


@cache
def takes(case: str, family: str) -> bool:
    """Whether the drafter does not refuse the family, as views may that need parts of a kind."""
    if case not in view_cases():
        return True
    try:
        make_drafter(case, target(family))
    except TargetRefused:
        return False
    return True


def home(case: str) -> str:
    """The family on which a drafter is tested the most: llama, if it takes it."""
    return next(family for family in FAMILIES if takes(case, family))


def make_drafter(case: str, of: Target) -> Drafter:
    outer, _, inner = case.rpartition("+")
    name, _, size = inner.partition("/")
    entry = registry.find(name)
    made_of: dict[str, Callable[[], tuple[Any, ...]]] = {
        "nothing": tuple,
        "head": lambda: (head(of, name, size), of),
        "model": lambda: (draft_model(of, size), of),
        "model_head": lambda: (head(draft_model(of, size), name), draft_model(of, size), of),
        "target": lambda: (of,),
    }
    drafter: Drafter = entry.load()(*made_of[entry.made_of](), *WITHIN.get(name, ()))
    return registry.find(outer).load()(drafter) if outer else drafter


def make_feature_drafter(of: Target, case: str = "jakiro") -> FeatureDrafter:
    """Of a case of a one-layer network, ``name/size``; without a size wide."""
    method, _, size = case.partition("/")
    return FeatureDrafter(head(of, method, size or "wide"), of, sharpness=[(1.4, 1.2)])


def make_engine(
    of: Target, drafter: Drafter, plan: TreePlan | None = None, **kwargs: Any
) -> Engine:
    return Engine(of, drafter, kwargs.pop("rule", find_rule("match")), plan=plan, **kwargs)
