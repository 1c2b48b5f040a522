"""Every drafter by name. A new method is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from jakiro.errors import UnknownName


class HeadPaths(NamedTuple):
    """Where the config (a dataclass) and the network (built from it alone) of a head are, as
    ``module:class``; ``settings``: what the method fixes of the config, unless told otherwise."""

    config: str
    network: str
    settings: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Entry:
    """``path`` is ``module:class``. ``made_of`` says what the class is called with: ``nothing``; a
    ``head``, the network of a checkpoint made for its target, whose classes ``head`` names, and
    the target; a ``model``, a causal language model of its own, and the target; a ``model_head``,
    a head made for such a model, the model and the target; or the ``target`` alone, of which it
    drafts with a cheaper view. What is made of a model drives any: ``NAME+DIRECTORY``. ``learner``:
    the class of ``jakiro.train`` that trains it. An *arbiter* may also stand over another drafter,
    ``NAME+OTHER``, and is then called with it. ``memory``: what it keeps besides the target.
    ``page``: its page in docs, if that is not ``drafters/NAME.md``."""

    name: str
    path: str
    summary: str
    made_of: Literal["nothing", "head", "model", "model_head", "target"] = "nothing"
    head: HeadPaths | None = None
    learner: str | None = None
    is_arbiter: bool = False
    memory: str = "the text"
    page: str | None = None

    def __post_init__(self) -> None:
        assert (self.made_of in ("head", "model_head")) == (self.head is not None)

    @property
    def is_trained(self) -> bool:
        """Whether it needs a checkpoint."""
        return self.made_of in ("head", "model", "model_head")

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the method fixes of the config of its head, unless told otherwise."""
        return self.head.settings if self.head is not None else {}

    def load(self) -> type:
        """The class, imported now and not before."""
        return _imported(self.path)

    def load_head(self) -> tuple[type, type]:
        """The classes of config and network of a ``head``, imported now."""
        assert self.head is not None, f"{self.name} is not made of a head"
        return _imported(self.head.config), _imported(self.head.network)

    def load_learner(self) -> type:
        """The class that trains it, imported now."""
        assert self.learner is not None, f"{self.name} cannot be trained"
        return _imported(self.learner)


def _imported(path: str) -> type:
    module, _, name = path.partition(":")
    loaded: type = getattr(import_module(module), name)
    return loaded


def _layer(
    name: str, summary: str, path: str = "jakiro.drafters.feature:FeatureDrafter", **settings: Any
) -> Entry:
    """A method that drafts with the one-layer network; ``settings`` are those of its config."""
    head = HeadPaths("jakiro.drafters.nn:HeadConfig", "jakiro.drafters.nn:DraftHead", settings)
    learner, memory = "jakiro.train.feature_head:FeatureHead", "the head and one layer's KV"
    return Entry(
        name, path, summary, "head", head, learner, memory=memory, page="drafters/jakiro.md"
    )


def _view(name: str, kind: str, summary: str, memory: str = "nothing") -> Entry:
    """A method that drafts with a view of the target, the class ``kind`` in a file of its name."""
    return Entry(name, f"jakiro.drafters.{name}:{kind}", summary, "target", memory=memory)


_ONE_EXPERT: dict[str, Any] = {"num_experts": 1, "active_experts": 1, "contrast_levels": 0}
ENTRIES = {
    entry.name: entry
    for entry in (
        _layer("jakiro", "one layer, two experts: sum and contrast"),
        _layer(
            "jakiro_star",
            "one layer, two experts that propose in turn; static tree",
            "jakiro.drafters.jakiro_star:JakiroStar",
            contrast_levels=0,
            activation="gelu",
            branches="union",
        ),
        _layer(
            "eagle1",
            "one layer on the last feature, static tree",
            "jakiro.drafters.eagle1:Eagle1",
            **_ONE_EXPERT,
        ),
        _layer("eagle2", "one layer on the last feature, dynamic tree", **_ONE_EXPERT),
        Entry(
            "medusa",
            "jakiro.drafters.medusa:Medusa",
            "heads that each guess one token ahead, static tree",
            "head",
            HeadPaths("jakiro.drafters.medusa:MedusaConfig", "jakiro.drafters.medusa:MedusaHeads"),
            "jakiro.train.medusa:MedusaLearner",
            memory="the heads",
        ),
        Entry(
            "kangaroo",
            "jakiro.drafters.kangaroo:Kangaroo",
            "the first layers of the target under a trained adapter, as long as it is sure",
            "head",
            HeadPaths("jakiro.drafters.kangaroo:AdapterConfig", "jakiro.drafters.kangaroo:Adapter"),
            "jakiro.train.kangaroo:AdapterLearner",
            memory="the adapter and one layer's KV",
        ),
        Entry(
            "draft_model",
            "jakiro.drafters.draft_model:DraftModel",
            "a small language model of the same tokenizer",
            "model",
            learner="jakiro.train.draft_model:Distillation",
            memory="the model and its KV",
        ),
        Entry(
            "pearl",
            "jakiro.drafters.pearl:Pearl",
            "a draft model in a process of its own, which writes while the target verifies",
            "model",
            memory="the model twice, and its KV",
        ),
        Entry(
            "specdec_pp",
            "jakiro.drafters.specdec_pp:SpecDecPP",
            "a draft model that stops where a head expects a rejection",
            "model_head",
            HeadPaths(
                "jakiro.drafters.specdec_pp:AcceptanceConfig",
                "jakiro.drafters.specdec_pp:AcceptanceHead",
            ),
            "jakiro.train.acceptance:AcceptanceLearner",
            memory="the model, its KV and a head",
        ),
        Entry("prompt_lookup", "jakiro.drafters.prompt_lookup:PromptLookup", "n-grams of the text"),
        Entry(
            "suffix_automaton",
            "jakiro.drafters.suffix_automaton:SuffixAutomaton",
            "longest repeated suffix; over another drafter: suffix_automaton+OTHER",
            is_arbiter=True,
            memory="an automaton of the text",
        ),
        Entry(
            "token_recycling",
            "jakiro.drafters.token_recycling:TokenRecycling",
            "what the target found likely after a token before",
            memory="8 ids per known token",
        ),
        Entry("copy", "jakiro.drafters.copy:Copy", "the prompt itself, for answers that edit it"),
        Entry(
            "aded",
            "jakiro.drafters.aded:Aded",
            "trigrams of the text, searched best first",
            memory="trigrams of the text",
        ),
        Entry(
            "lookahead",
            "jakiro.drafters.lookahead:Lookahead",
            "n-grams the target makes in auxiliary nodes of its own forward",
            memory="n-grams",
        ),
        Entry(
            "jacobi",
            "jakiro.drafters.jacobi:Jacobi",
            "the target's last guesses, iterated",
            memory="one guess per node",
        ),
        Entry(
            "sjd",
            "jakiro.drafters.sjd:Sjd",
            "guesses drawn from the target's last laws, iterated; for image tokens",
            memory="one law per node",
        ),
        _view("layer_skip", "LayerSkip", "the target without every second layer"),
        _view(
            "swift", "Swift", "the target without the layers that a search while it runs leaves out"
        ),
        _view(
            "token_skip",
            "TokenSkip",
            "the target without the MLPs that are expected to change a token little",
        ),
        _view("early_exit", "EarlyExit", "the first half of the target, as long as it is sure"),
        _view(
            "sparse_kv", "SparseKV", "the target on the first and last tokens, for long contexts"
        ),
        _view(
            "duo_attention",
            "DuoAttention",
            "the target with most of the text in half of its heads, for long contexts",
        ),
        _view(
            "double_sparsity",
            "DoubleSparsity",
            "the target on the tokens that a few channels of their keys promise, for long contexts",
            memory="an eighth of the keys",
        ),
        _view(
            "low_bit",
            "LowBit",
            "the target with its weights rounded to 8 bits or fewer",
            memory="a byte per weight",
        ),
        _view("fewer_experts", "FewerExperts", "a mixture of experts that takes half as many"),
        Entry(
            "none",
            "jakiro.drafters.none:NoDrafter",
            "plain decoding, the baseline",
            memory="nothing",
            page="losslessness.md",
        ),
    )
}


def names() -> list[str]:
    """All registered names."""
    return list(ENTRIES)


def trainable() -> list[str]:
    """The names that ``jakiro train`` takes."""
    return [entry.name for entry in ENTRIES.values() if entry.learner is not None]


def drivers() -> list[str]:
    """The names that drive a language model of their own."""
    return [entry.name for entry in ENTRIES.values() if entry.made_of == "model"]


def of_models() -> Entry:
    """The entry that drives a language model unless another is asked for."""
    return find(drivers()[0])


def find(name: str) -> Entry:
    """The entry called ``name``; ``UnknownName`` if there is none."""
    if name not in ENTRIES:
        raise UnknownName("drafter", name, names())
    return ENTRIES[name]


def arbiters() -> list[str]:
    """The names that may stand over another drafter."""
    return [entry.name for entry in ENTRIES.values() if entry.is_arbiter]
