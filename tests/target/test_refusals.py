"""What cannot be a target, and why; what the probe finds out, and that it leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import jakiro.target.target as target_module
from jakiro.cache.mask import Window
from jakiro.errors import ConfigError, TargetRefused
from jakiro.target.features import FeatureSpec
from jakiro.target.target import Target
from jakiro.tree.token_tree import TokenTree
from tests.families import FAMILIES, build

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA: dict[str, Any] = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 2}
VISION = hf.CLIPVisionConfig(
    hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    image_size=28, patch_size=14,
)  # fmt: skip


def _qwen3_next() -> hf.PreTrainedModel:
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    kinds = ["linear_attention", "full_attention"]
    config = hf.Qwen3NextConfig(
        **LLAMA, **experts, shared_expert_intermediate_size=16, head_dim=8, layer_types=kinds
    )
    return hf.Qwen3NextForCausalLM(config).eval()


def _gemma3_multimodal() -> hf.PreTrainedModel:
    text = hf.Gemma3TextConfig(**LLAMA, head_dim=8, layer_types=["full_attention"] * 2)
    vision = hf.SiglipVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return hf.Gemma3ForConditionalGeneration(config).eval()


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "bloom": (
        lambda: hf.BloomForCausalLM(
            hf.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
        ).eval(),
        r"\(bloom\) uses ALiBi",
    ),
    "mpt": (
        lambda: hf.MptForCausalLM(
            hf.MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4)
        ).eval(),
        r"\(mpt\) uses ALiBi",
    ),
    "falcon with alibi": (
        lambda: hf.FalconForCausalLM(hf.FalconConfig(**SIZES, alibi=True)).eval(),
        r"\(falcon\) uses ALiBi",
    ),
    "mamba": (
        lambda: hf.MambaForCausalLM(
            hf.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
        ).eval(),
        r"\(mamba\) keeps a recurrent",
    ),
    "qwen3_next": (_qwen3_next, r"\(qwen3_next\) keeps a recurrent .*linear_attention"),
    "t5": (
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
        ).eval(),
        r"\(t5\) is an encoder-decoder",
    ),
    "llava": (
        lambda: hf.LlavaForConditionalGeneration(
            hf.LlavaConfig(text_config=hf.LlamaConfig(**LLAMA), vision_config=VISION)
        ).eval(),
        r"\(llava\) is a multimodal wrapper; load only its text model.*\(llama\)",
    ),
    "gemma3 with images": (_gemma3_multimodal, r"multimodal wrapper.*\(gemma3_text\)"),
    "no head": (lambda: hf.LlamaModel(hf.LlamaConfig(**LLAMA)).eval(), "not a causal language"),
    "masked": (
        lambda: hf.BertForMaskedLM(hf.BertConfig(**SIZES, intermediate_size=32)).eval(),
        "not a causal language",
    ),
    "no transformer": (lambda: nn.Linear(2, 2), "PreTrainedModel, got Linear"),
    "training": (lambda: FAMILIES["llama"]().train(), r"in training mode.*call model.eval\(\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(TargetRefused, match=reason):
        Target(make())


def test_weights_that_are_no_numbers_are_told_from_a_strange_attention() -> None:
    model = build(hf.LlamaForCausalLM, hf.LlamaConfig(**LLAMA))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(TargetRefused, match=r"\(llama\) gives logits that are NaN.* in float64"):
        Target(model)


def test_a_part_in_training_mode_is_named() -> None:
    model = FAMILIES["llama"]()
    model.model.layers[1].mlp.train()
    with pytest.raises(TargetRefused, match=r"training mode \(model\.layers\.1\.mlp"):
        Target(model)


class NoReadyMasks(hf.LlamaForCausalLM):
    """As some models do: only 2-D attention masks are understood."""

    def forward(self, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError("attention_mask must be 2-D")
        return super().forward(*args, attention_mask=attention_mask, **kwargs)


class NoMasks(NoReadyMasks):
    """Neither ready masks nor another attention implementation."""

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("this model has one attention")


class Remembers(hf.LlamaForCausalLM):
    """Keeps state where no cache can roll it back."""

    calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        self.calls += 1
        out.logits = out.logits + self.calls * torch.arange(out.logits.shape[-1])
        return out


class Sharpens(hf.LlamaForCausalLM):
    """Does something to its logits that no config tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = 2 * out.logits
        return out


class HidesStates(hf.LlamaForCausalLM):
    def forward(self, *args: Any, output_hidden_states: Any = None, **kwargs: Any) -> Any:
        if output_hidden_states:
            raise ValueError("hidden states are a secret")
        return super().forward(*args, **kwargs)


def strange(kind: type[hf.PreTrainedModel]) -> Target:
    return Target(build(kind, hf.LlamaConfig(**LLAMA)))


def test_a_model_that_takes_no_ready_mask_gets_a_registered_one() -> None:
    subject = strange(NoReadyMasks)
    assert subject.route == "registered"
    assert subject.model.config._attn_implementation == "sdpa"


def test_a_model_that_takes_no_mask_at_all_gets_chains() -> None:
    subject = strange(NoMasks)
    assert subject.route == "chain"
    cache = subject.new_cache()
    subject.prefill([1, 2, 3], cache, cache.admit())
    tokens, valid = torch.tensor([[4, 5, 6]]), torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(ConfigError, match="can only check chains"):
        subject.verify(TokenTree(tokens, torch.tensor([[-1, 0, 0]]), valid), cache)
    subject.verify(TokenTree(tokens, torch.tensor([[-1, 0, 1]]), valid), cache)


def test_gpt_neo_has_a_window_behind_its_mask() -> None:
    config = hf.GPTNeoConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=4,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=64,
    )  # fmt: skip
    assert Target(build(hf.GPTNeoForCausalLM, config)).route == "chain"


def test_a_model_with_hidden_state_is_refused() -> None:
    with pytest.raises(TargetRefused, match=r"mask: the logits are off by .*chain: the logits are"):
        strange(Remembers)


def test_features_that_do_not_make_the_logits_are_refused() -> None:
    subject = strange(Sharpens)
    assert subject.route == "mask"
    with pytest.raises(TargetRefused, match=r"llama: its head does not .*prompt_lookup"):
        subject.check_features()


def test_features_that_cannot_be_read_are_refused() -> None:
    subject = strange(HidesStates)
    with pytest.raises(TargetRefused, match="hidden states are a secret"):
        subject.check_features()


def test_features_of_an_ordinary_model_are_fine() -> None:
    strange(hf.LlamaForCausalLM).check_features()


@pytest.mark.parametrize("layer", [-1, 2])
def test_streams_of_layers_that_are_not_there_are_refused(layer: int) -> None:
    subject = strange(hf.LlamaForCausalLM)
    assert subject.num_layers == 2
    subject.check_features(FeatureSpec(True, (0, 1)))
    with pytest.raises(ConfigError, match=f"layers 0 to 1 of this target, not at 1, {layer}"):
        subject.check_features(FeatureSpec(True, (1, layer)))


@pytest.mark.parametrize("size", [8, 4096])
@pytest.mark.parametrize(("error", "route"), [(0, "mask"), (1, "registered"), (-1, "registered")])
def test_a_misread_window_is_noticed(
    size: int, error: int, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small windows show in the logits, large ones in the masks of ``transformers``; then the
    model's own windows are used instead."""
    model = build(hf.MistralForCausalLM, hf.MistralConfig(**LLAMA, sliding_window=size))
    read = {"sliding_attention": Window(size + error)}
    monkeypatch.setattr(target_module, "windows", lambda config: read)
    assert Target(model).route == route


def test_large_windows_of_several_layer_types_are_read_right() -> None:
    kinds = ["sliding_attention", "full_attention"]
    config = hf.Gemma3TextConfig(**LLAMA, head_dim=8, sliding_window=512, layer_types=kinds)
    subject = Target(build(hf.Gemma3ForCausalLM, config))
    assert subject.route == "mask"
    assert subject.windows == {"sliding_attention": Window(512), "full_attention": None}


def test_the_probe_is_short_even_for_large_windows() -> None:
    model = build(hf.MistralForCausalLM, hf.MistralConfig(**LLAMA, sliding_window=4096))
    shapes: list[torch.Size] = []
    hook = model.model.embed_tokens.register_forward_pre_hook(
        lambda module, args: shapes.append(args[0].shape)
    )
    Target(model)
    hook.remove()
    assert len(shapes) == 7
    assert sum(shape.numel() for shape in shapes) < 400


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_probe_leaves_no_trace(name: str) -> None:
    model = FAMILIES[name]()
    config, state = model.config.to_dict(), deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    Target(model)
    assert model.config.to_dict() == config
    assert not any(part.training for part in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "mistral", "mixtral"])
def test_lower_precisions_pass_the_probe(name: str, dtype: torch.dtype) -> None:
    subject = Target(FAMILIES[name]().to(dtype))
    assert (subject.route, subject.feature_refusal, subject.dtype) == ("mask", None, dtype)


def test_keys_and_values_of_different_sizes() -> None:
    """Multi-head latent attention: keys of 12, values of 8."""
    config = hf.DeepseekV3Config(
        **LLAMA | {"num_key_value_heads": 4}, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
        qk_nope_head_dim=8, v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, first_k_dense_replace=1, n_group=1, topk_group=1,
    )  # fmt: skip
    subject = Target(build(hf.DeepseekV3ForCausalLM, config))
    assert (subject.route, subject.feature_refusal) == ("mask", None)
