"""The packed view computes the same and leaves the model alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from jakiro.target import packed
from jakiro.target.packed import LEAST_ON_INTEL, PackedLinear, packed_view


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs the tests, a processor on which everything is packed."""
    monkeypatch.setattr(packed, "cpu_name", lambda: "AMD EPYC")


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def test_view_shares_parameters_and_computes_the_same() -> None:
    model = tiny()
    view = packed_view(model)
    ids = torch.randint(0, 64, (1, 12))
    with torch.inference_mode():
        wanted, found = model(ids).logits, view(ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    own = dict(model.named_parameters())
    assert all(parameter is own[name] for name, parameter in view.named_parameters())
    assert sum(type(module) is PackedLinear for module in view.modules()) == 15


def test_the_model_itself_is_untouched() -> None:
    model = tiny()
    before = [type(module) for module in model.modules()]
    view = packed_view(model)
    with torch.inference_mode():
        view(torch.randint(0, 64, (1, 5)), output_hidden_states=[-1])
    assert [type(module) for module in model.modules()] == before
    assert not any(module._forward_hooks for module in model.modules())


def test_gradients_take_the_usual_way() -> None:
    model = tiny()
    features = torch.randn(3, 32, requires_grad=True)
    packed_view(model).get_output_embeddings()(features).sum().backward()
    assert features.grad is not None and bool(features.grad.abs().sum() > 0)


def test_what_cannot_be_packed_stays_itself() -> None:
    double = tiny().double()
    assert packed_view(double) is double

    class Adapter(nn.Linear):
        pass

    mixed = nn.Sequential(Adapter(4, 4), nn.Linear(4, 4))
    view = packed_view(mixed)
    assert type(view[0]) is Adapter and type(view[1]) is PackedLinear


def test_intel_has_its_large_weights_packed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "cpu_name", lambda: "Intel(R) Xeon(R) Processor")
    model = tiny()
    assert packed_view(model) is model
    width = 1024
    view = packed_view(
        nn.Sequential(
            nn.Linear(width, LEAST_ON_INTEL // width), nn.Linear(width, LEAST_ON_INTEL // width - 1)
        )
    )
    assert [type(layer) for layer in view] == [PackedLinear, nn.Linear]
