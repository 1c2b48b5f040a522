"""The draft network against the tensors of the original modules, and its algebra."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

from jakiro.drafters.fused import fused_view
from jakiro.drafters.nn import DraftHead, HeadConfig
from jakiro.drafters.registry import find
from jakiro.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden" / "jakiro"


def golden(name: str) -> tuple[DraftHead, dict[str, Tensor]]:
    sizes = json.loads((GOLDEN / f"{name}.json").read_text())
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    head = DraftHead(
        HeadConfig(
            method="jakiro",
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=sizes["num_key_value_heads"],
            head_dim=hidden // heads,
            expert_size=hidden,
            vocab_size=sizes["vocab_size"],
            rope_theta=sizes["rope_theta"],
            rms_norm_eps=sizes["rms_norm_eps"],
            fc_bias=sizes["fc_bias"],
        )
    )
    weights = {
        key.removeprefix("weights."): tensor
        for key, tensor in tensors.items()
        if key.startswith("weights.") and "embed_tokens" not in key
    }
    head.load_state_dict(weights, strict=True)
    return head.eval(), tensors


def golden_inputs(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    ids = tensors["input_ids"][:, 1:]
    embeddings = tensors["weights.embed_tokens.weight"][ids]
    return embeddings, tensors["features"], torch.arange(ids.shape[1])[None]


@pytest.mark.parametrize("name", ["mha", "gqa"])
def test_both_branches_match_the_original(name: str) -> None:
    head, tensors = golden(name)
    with torch.no_grad():
        out = head(*golden_inputs(tensors), contrasts=1)
    lm_head = tensors["lm_head.weight"]
    torch.testing.assert_close(out.next, tensors["branch1"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.ahead[0], tensors["branch2"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.next @ lm_head.T, tensors["logits1"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.ahead[0] @ lm_head.T, tensors["logits2"], atol=1e-5, rtol=0)


class AppendCache:
    """The smallest thing the protocol allows."""

    def __init__(self) -> None:
        self.rows: list[tuple[Tensor, Tensor]] = []

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        self.rows.append((keys, values))
        every_key, every_value = zip(*self.rows, strict=True)
        return torch.cat(every_key, 2), torch.cat(every_value, 2)


def test_rows_fed_one_by_one_over_a_cache_equal_one_causal_forward() -> None:
    head, tensors = golden("gqa")
    embeddings, features, positions = golden_inputs(tensors)
    cache = AppendCache()
    with torch.no_grad():
        for i in range(positions.shape[1]):
            row = slice(i, i + 1)
            mask = torch.zeros(1, 1, 1, i + 1)
            out = head(embeddings[:, row], features[:, row], positions[:, row], mask, cache, 1)
            torch.testing.assert_close(out.next[:, 0], tensors["branch1"][:, i])
            torch.testing.assert_close(out.ahead[0][:, 0], tensors["branch2"][:, i])


def test_a_forward_over_history_needs_a_mask() -> None:
    head, tensors = golden("gqa")
    embeddings, features, positions = golden_inputs(tensors)
    cache = AppendCache()
    head(embeddings, features, positions, None, cache)
    with pytest.raises(ValueError, match="need a mask"):
        head(embeddings, features, positions, None, cache)


def test_padding_in_a_batch_changes_nothing() -> None:
    head, tensors = golden("mha")
    embeddings, features, positions = golden_inputs(tensors)
    length, padding, garbage = positions.shape[1], 4, 50.0
    alone = head(embeddings, features, positions, contrasts=1)

    def pad(tensor: Tensor, side: str) -> Tensor:
        filler = torch.full((1, padding, *tensor.shape[2:]), garbage).to(tensor.dtype)
        return torch.cat([filler, tensor] if side == "left" else [tensor, filler], 1)

    left, right = ([pad(t, side) for t in (embeddings, features)] for side in ("left", "right"))
    batch = [torch.cat(pair) for pair in zip(left, right, strict=True)]
    total = length + padding
    attend = torch.ones(total, total, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    attend[0, :, padding:, :padding] = False
    mask = torch.zeros(attend.shape).masked_fill(~attend, float("-inf"))
    places = torch.stack([(torch.arange(total) - padding).clamp_min(0), torch.arange(total)])
    out = head(*batch, places, mask, contrasts=1)
    for whole, part in zip((out.next, *out.ahead), (alone.next, *alone.ahead), strict=True):
        torch.testing.assert_close(whole[0, padding:], part[0])
        torch.testing.assert_close(whole[1, :length], part[0])


def twin_heads() -> tuple[DraftHead, DraftHead, tuple[Tensor, Tensor, Tensor]]:
    """A two-expert head whose experts are equal, and the one-expert head with that expert."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
    one, two = (
        DraftHead(
            HeadConfig(method, **sizes, expert_size=24, vocab_size=11, **find(method).settings)
        ).double()
        for method in ("eagle2", "jakiro")
    )
    shared = dict(one.state_dict())
    for name in ("gate_proj", "up_proj", "down_proj"):
        weight = shared.pop(f"layers.0.mlp.{name}.weight")
        for expert in range(2):
            shared[f"layers.0.mlp_moe.experts.{expert}.{name}.weight"] = weight
    shared["layers.0.mlp_moe.gate.weight"] = torch.randn(4, 16, dtype=torch.float64)
    two.load_state_dict(shared, strict=True)
    inputs = torch.randn(2, 2, 5, 16, dtype=torch.float64)
    return one, two, (inputs[0], inputs[1], torch.arange(5).expand(2, 5))


def test_a_layer_with_biases_is_a_qwen2_layer_without_its_first_norm() -> None:
    torch.manual_seed(0)
    config = HeadConfig("eagle2", 32, 4, 2, 8, 48, 40, qkv_bias=True, **find("eagle2").settings)
    head = DraftHead(config).double()
    sizes = Qwen2Config(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        attn_implementation="eager",
    )
    layer = Qwen2DecoderLayer(sizes, 0).double()
    layer.input_layernorm = torch.nn.Identity()
    layer.load_state_dict(head.layers[0].state_dict(), strict=True)
    states, positions = torch.randn(1, 7, 32, dtype=torch.float64), torch.arange(7)[None]
    hidden = torch.full((7, 7), float("-inf"), dtype=torch.float64).triu(1)[None, None]
    with torch.no_grad():
        expected = layer(
            states, hidden, position_embeddings=Qwen2RotaryEmbedding(sizes)(states, positions)
        )
        found = head.layers[0](states, positions, None, None, 0).next
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_equal_experts_are_one_expert() -> None:
    one, two, inputs = twin_heads()
    torch.testing.assert_close(two(*inputs).next, one(*inputs).next)
    assert one(*inputs).ahead == ()


def gate(head: DraftHead) -> Tensor:
    return head.get_parameter("layers.0.mlp_moe.gate.weight").data


def test_a_gate_that_is_sure_leaves_one_expert() -> None:
    one, two, inputs = twin_heads()
    other = two.get_parameter("layers.0.mlp_moe.experts.1.down_proj.weight")
    other.data = torch.randn_like(other)
    alone = [one(*inputs).next]
    one.get_parameter("layers.0.mlp.down_proj.weight").data = other.data
    alone.append(one(*inputs).next)
    # Without a bias in the gate, the sign of a projection decides which expert a row gets.
    sure = 1e4 * torch.randn(16, dtype=torch.float64)
    chosen = []
    for sign in (1.0, -1.0):
        gate(two)[0], gate(two)[1] = sign * sure, -sign * sure
        out = two(*inputs).next
        chosen.append(torch.stack([torch.isclose(out, each).all(-1) for each in alone]))
    assert (chosen[0].sum(0) == 1).all()
    assert torch.equal(chosen[0], chosen[1].flip(0))


def test_the_difference_of_equal_halves_is_the_residual_alone() -> None:
    _, two, inputs = twin_heads()
    gate(two)[2:] = 0.0
    zeroed = {name: tensor.clone() for name, tensor in two.state_dict().items()}
    for expert in range(2):
        zeroed[f"layers.0.mlp_moe.experts.{expert}.down_proj.weight"].zero_()
    residual = DraftHead(two.config).double()
    residual.load_state_dict(zeroed)
    torch.testing.assert_close(two(*inputs, contrasts=1).ahead[0], residual(*inputs).next)


def test_the_larger_gate_decides_the_sign_and_a_tie_is_minus() -> None:
    _, two, inputs = twin_heads()
    second = two.get_parameter("layers.0.mlp_moe.experts.1.down_proj.weight")
    second.data.zero_()
    plus = two(*inputs, contrasts=1)
    rows = gate(two)[2:].clone()
    zero = DraftHead(two.config).double()
    zero.load_state_dict(two.state_dict())
    zero.get_parameter("layers.0.mlp_moe.experts.0.down_proj.weight").data.zero_()
    residual = zero(*inputs).next
    gate(two)[2:] = 0.0
    tie = two(*inputs, contrasts=1).ahead[0]
    gate(two)[:2] = 0.0
    half = two(*inputs).next - residual
    torch.testing.assert_close(tie, residual - half)

    gate(two)[2:] = rows
    signs = torch.sign(((plus.ahead[0] - residual) * half).sum(-1))
    gate(two)[2], gate(two)[3] = rows[1].clone(), rows[0].clone()
    swapped = two(*inputs, contrasts=1).ahead[0]
    assert torch.equal(torch.sign(((swapped - residual) * half).sum(-1)), -signs)
    assert set(signs.flatten().tolist()) == {1.0, -1.0}


PUBLISHED = [
    # hidden, heads, kv heads, fc bias, parameters with two experts of width hidden
    (4096, 32, 32, True, 201_351_168),
    (5120, 40, 40, True, 314_603_520),
    (6656, 52, 52, True, 531_667_968),
    (4096, 32, 8, False, 176_181_248),
    (8192, 64, 8, True, 687_915_008),
]


@pytest.mark.parametrize(("hidden", "heads", "kv_heads", "bias", "expected"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(
    hidden: int, heads: int, kv_heads: int, bias: bool, expected: int
) -> None:
    config = HeadConfig("jakiro", hidden, heads, kv_heads, 128, hidden, 32000, fc_bias=bias)
    with torch.device("meta"):
        head = DraftHead(config)
    assert sum(parameter.numel() for parameter in head.parameters()) == expected


def test_bfloat16_keeps_the_rotary_frequencies_and_is_the_type_of_all_features() -> None:
    head, tensors = golden("gqa")
    embeddings, features, positions = golden_inputs(tensors)
    far = positions + 100_000
    wide = head(embeddings, features, far).next
    inputs = embeddings.bfloat16(), features.bfloat16(), far
    narrow = head.to(torch.bfloat16)(*inputs, contrasts=1)
    error = (narrow.next.float() - wide).norm() / wide.norm()
    assert error < 0.02
    # The LM head, which is as narrow, takes nothing else.
    assert [each.dtype for each in (narrow.next, *narrow.ahead)] == [torch.bfloat16] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 0}, "num_experts must be at least 1"),
        ({"active_experts": 3}, "active_experts must lie between 1 and 2 with 2 experts"),
        ({"contrast_levels": 3}, "contrast_levels must lie between 0 and 2"),
        ({"num_experts": 1, "active_experts": 1}, "contrast_levels must lie between 0 and 0"),
        ({"draft_vocab_size": 8}, "draft_vocab_size must lie between 1 and 7"),
        ({"contrast_strength": -1.0}, "contrast_strength must be finite and not negative"),
        ({"activation": "relu"}, "activation must be swiglu or gelu"),
        ({"branches": "both"}, "branches must be sum or decoupled"),
        ({"num_kv_heads": 3}, "multiple of num_kv_heads"),
        ({"head_dim": 5}, "even"),
        ({"expert_size": 0}, "expert_size must be at least 1"),
    ],
)
def test_impossible_sizes_are_named(change: dict[str, object], message: str) -> None:
    sizes = {"hidden_size": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
    arguments = {"method": "jakiro", **sizes, "expert_size": 8, "vocab_size": 7, **change}
    with pytest.raises(ConfigError, match=message):
        HeadConfig(**arguments)  # type: ignore[arg-type]


def test_streams_count_with_the_target_s_own_features_and_begin_as_nothing() -> None:
    sizes = {"hidden_size": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4}
    config = HeadConfig("jakiro", **sizes, expert_size=8, vocab_size=7)
    torch.manual_seed(0)
    plain = DraftHead(config)
    torch.manual_seed(0)
    head = DraftHead(replace(config, reads=(0, 3)))
    embeddings, features, low, high = torch.randn(4, 2, 5, 16).unbind()
    where = torch.arange(5)[None]

    def with_streams(*streams: Tensor) -> Tensor:
        return head(embeddings, torch.cat([*streams, features], -1), where).next

    expected = plain(embeddings, features, where).next
    torch.testing.assert_close(with_streams(low, high), expected)
    torch.nn.init.normal_(head.streams.proj.weight)
    assert not torch.allclose(with_streams(low, high), expected)
    torch.testing.assert_close(head(embeddings, features, where).next, expected)
    # The size of a stream says nothing, which layer it is of does.
    torch.testing.assert_close(with_streams(30 * low, high), with_streams(low, high))
    assert not torch.allclose(with_streams(high, low), with_streams(low, high))


def test_one_expert_has_no_second_branch() -> None:
    one, _, inputs = twin_heads()
    with pytest.raises(ConfigError, match="has 0 contrastive branches, 1 were asked for"):
        one(*inputs, contrasts=1)


def mixture_head(**settings: Any) -> tuple[DraftHead, tuple[Tensor, Tensor, Tensor]]:
    torch.manual_seed(3)
    config = HeadConfig("jakiro", 16, 4, 2, 4, expert_size=24, vocab_size=11, **settings)
    inputs = torch.randn(2, 2, 5, 16, dtype=torch.float64)
    return DraftHead(config).double(), (inputs[0], inputs[1], torch.arange(5).expand(2, 5))


KINDS = [
    {},
    {"contrast_levels": 2},
    {"num_experts": 4, "contrast_levels": 2},
    {"num_experts": 5, "active_experts": 3, "contrast_strength": 0.4},
    {"num_experts": 3, "branches": "decoupled"},
    {"activation": "gelu", "branches": "union", "contrast_levels": 0},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@torch.no_grad()
def test_mixtures_follow_their_formula_pair_by_pair(kind: dict[str, Any]) -> None:
    """Top-K by the first gate, softmax within it; a contrast adds its largest, subtracts the rest.
    The stacked form for drafting says the same."""
    head, inputs = mixture_head(**kind)
    contrasts = head.config.contrast_levels
    seen: list[tuple[Tensor, Tensor]] = []
    moe: Any = head.layers[0].mlp_moe  # type: ignore[union-attr]
    hook = moe.register_forward_pre_hook(lambda _, given: seen.append(given[:2]))
    out, fused = head(*inputs, contrasts=contrasts), fused_view(head)(*inputs, contrasts=contrasts)
    hook.remove()
    residual, normed = seen[0]
    for row, pair in [(0, 0), (1, 4), (0, 3)]:
        gates = moe.gate(normed[row, pair]).view(1 + contrasts, -1)
        chosen = gates[0].argsort(descending=True)[: head.config.active_experts].tolist()
        outputs = {j: moe.experts[j](normed[row, pair]) for j in chosen}
        for branch, feature in enumerate((out.next, *out.ahead)):
            shares = gates[branch, chosen].softmax(0).tolist()
            largest = max(chosen, key=lambda j: float(gates[branch, j]))
            expected = residual[row, pair].clone()
            for j, share in zip(chosen, shares, strict=True):
                sign = 1.0 if branch == 0 or j == largest else -head.config.contrast_strength
                expected += sign * share * outputs[j]
            torch.testing.assert_close(feature[row, pair], expected)
        if out.experts is not None:
            features, weights = (part[row, pair] for part in out.experts)
            torch.testing.assert_close(weights.sum(), torch.ones((), dtype=torch.float64))
            apart = [residual[row, pair] + outputs[j] for j in sorted(chosen)]
            assert {tuple(f.tolist()) for f in features.detach().round(decimals=6)} == {
                tuple(f.tolist()) for f in torch.stack(apart).detach().round(decimals=6)
            }
    for one, other in zip((out.next, *out.ahead), (fused.next, *fused.ahead), strict=True):
        torch.testing.assert_close(one, other)
    if out.experts is not None and fused.experts is not None:
        torch.testing.assert_close(out.experts.features, fused.experts.features)
    # Without its contrasts, the sum is made in another way.
    alone = fused_view(head)(*inputs)
    assert alone.ahead == () and alone.gates is not None and out.gates is not None
    torch.testing.assert_close((alone.next, alone.gates), (out.next, out.gates))


def test_the_stacked_form_takes_the_place_of_all_experts() -> None:
    head, inputs = mixture_head(num_experts=3)
    view = fused_view(head)
    assert [name for name, _ in view.named_parameters() if ".experts." in name] == []
    assert fused_view(view)(*inputs).next.equal(view(*inputs).next)
    assert sum(".experts." in name for name in head.state_dict()) == 9
