"""Linear layers in panels: the products of ``nn.Linear``, whatever the rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jakiro.errors import ConfigError
from jakiro.kernels import build
from jakiro.target import compiled
from jakiro.target.compiled import for_compiling
from jakiro.target.packed import packed_view
from jakiro.target.panels import JoinProducts, PanelLinear, all_in_panels

# The compiler imports what torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def panel_view(module: nn.Module, is_rounded: bool = False) -> nn.Module:
    try:
        return for_compiling(module, "inductor", is_rounded=is_rounded)
    except ConfigError as error:
        pytest.skip(str(error))


def a_linear(inputs: int, outputs: int, dtype: torch.dtype, is_half: bool) -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=outputs % 2 == 0, dtype=dtype)
    if is_half:
        linear.weight.data = linear.weight.data.bfloat16().to(dtype)
    return linear


TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-15, torch.bfloat16: 4e-3}


@pytest.mark.parametrize("outputs", [1, 31, 32, 100], ids=str)
@pytest.mark.parametrize(
    ("dtype", "is_half", "inputs", "kept"),
    [
        (torch.float32, False, 24, torch.float32),
        (torch.float32, True, 24, torch.bfloat16),
        (torch.float32, True, 23, torch.float32),
        (torch.float64, False, 23, torch.float64),
        (torch.float64, True, 24, torch.float64),
        (torch.bfloat16, True, 24, torch.bfloat16),
    ],
    ids=["float32", "float32 of bfloat16", "odd", "float64", "float64 of bfloat16", "bfloat16"],
)
@torch.no_grad()
def test_products_are_those_of_linear_layers(
    outputs: int, dtype: torch.dtype, is_half: bool, inputs: int, kept: torch.dtype
) -> None:
    linear = a_linear(inputs, outputs, dtype, is_half)
    (panel,) = panel_view(nn.Sequential(linear))
    assert isinstance(panel, PanelLinear)
    assert panel.panels.dtype == kept
    tolerance = TOLERANCE[dtype]

    def check(states: Tensor) -> None:
        # Of bfloat16 the library may round in between.
        bias = None if linear.bias is None else linear.bias.double()
        wanted = F.linear(states.double(), linear.weight.double(), bias)
        found = panel(states)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=10 * tolerance)

    for shape in [(inputs,), (0, inputs), (1, inputs), (2, 5, inputs), (3, 17, inputs)]:
        check(torch.randn(shape, dtype=dtype))
    # States that lie otherwise.
    check(torch.randn(inputs, 7, dtype=dtype).T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("is_half", [False, True], ids=["as they are", "of bfloat16"])
@torch.no_grad()
def test_a_row_is_the_same_among_any_others(dtype: torch.dtype, is_half: bool) -> None:
    """To the last bit: rows are divided otherwise when there are more of them."""
    linear = a_linear(300, 70, dtype, is_half)
    (panel,) = panel_view(nn.Sequential(linear))
    states = torch.randn(40, 300, dtype=dtype)
    alone = torch.cat([panel(row[None]) for row in states])
    for count in range(1, 41):
        assert torch.equal(panel(states[:count]), alone[:count])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@torch.no_grad()
def test_what_drafts_alone_depend_on_is_rounded(dtype: torch.dtype) -> None:
    linear, states = a_linear(24, 40, dtype, is_half=False), torch.randn(3, 24, dtype=dtype)
    (panel,) = panel_view(nn.Sequential(linear), is_rounded=True)
    rounded = linear.weight.bfloat16().to(dtype) if dtype == torch.float32 else linear.weight
    torch.testing.assert_close(panel(states), F.linear(states, rounded, linear.bias))
    assert not torch.equal(rounded, linear.weight) or dtype == torch.float64


def test_the_module_itself_stays_what_it_is() -> None:
    pair = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, dtype=torch.float64))
    view = panel_view(packed_view(pair))
    assert [type(each) for each in pair] == [nn.Linear] * 2
    assert [type(each) for each in view] == [PanelLinear] * 2
    assert view[0].weight is pair[0].weight
    assert not any(hasattr(each, "blocked") for each in view), "one layout is enough"
    assert list(view.state_dict()) == list(pair.state_dict())


def test_layers_of_other_kinds_are_left_alone() -> None:
    class Odd(nn.Linear):
        pass

    others = nn.Linear(4, 4, dtype=torch.float16), nn.Linear(3, 4, dtype=torch.bfloat16)
    module = nn.Sequential(nn.Linear(4, 4), Odd(4, 4), *others)
    view = panel_view(module)
    assert [type(each) for each in view] == [PanelLinear, Odd, nn.Linear, nn.Linear]
    assert not all_in_panels(view)
    assert not any(all_in_panels(each) for each in view[1:])
    assert all_in_panels(nn.Sequential(view[0], nn.Embedding(3, 4), nn.LayerNorm(4)))


class Block(nn.Module):
    """Three layers that read the same states, one that reads others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = a_linear(24, 40, torch.float32, False), nn.Linear(24, 33)
        self.third, self.outer = nn.Linear(24, 40, bias=False), nn.Linear(40, 24)

    def forward(self, states: Tensor) -> Tensor:
        inner = self.first(states) * self.third(states)
        return self.outer(inner) + self.second(states).sum(-1, keepdim=True)  # type: ignore[no-any-return]


@torch.no_grad()
def test_products_of_the_same_states_are_one_call() -> None:
    block = Block()
    view = panel_view(block)
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        JoinProducts()(graph.graph)
        graph.graph.lint()
        graph.recompile()
        calls = graph.graph.find_nodes(op="call_function", target=torch.ops.jakiro.product.default)
        seen.append([node.args[2] for node in calls])
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    run = torch.compile(view, backend=aot_autograd(fw_compiler=backend), dynamic=False)
    states = torch.randn(2, 7, 24)
    torch.testing.assert_close(run(states), block(states))
    assert seen == [[[40, 40, 33], [24]]]


def test_a_missing_compiler_is_said_at_once() -> None:
    import torch._inductor.config as settings

    with (
        settings.patch({"cpp.cxx": "no-such-compiler"}),
        pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"),
    ):
        compiled.for_compiling(nn.Sequential(nn.Linear(4, 4)), "inductor")


def test_a_compiler_that_cannot_build_a_kernel_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.codecache import CppCodeCache
    from torch._inductor.exc import CppCompileError

    def fail(*args: object, **kwargs: object) -> None:
        raise CppCompileError(["cc"], "no vectors here")

    monkeypatch.setattr(CppCodeCache, "load", fail)
    with pytest.raises(ConfigError, match=r"could not build product\.cpp"):
        build.load.__wrapped__("product")
