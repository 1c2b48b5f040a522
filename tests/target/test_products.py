"""Linear layers of compiled forwards: the products of ``nn.Linear``, by the way that is meant."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

from jakiro.target import packed
from jakiro.target.packed import packed_view
from jakiro.target.products import MOST_SUMMED, FewRowsLinear, for_few_rows, multiplying

# The compiler imports what torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BACKEND = os.environ.get("JAKIRO_COMPILE_BACKEND", "eager")


class Pair(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(24, 40, dtype=dtype)
        self.second = nn.Linear(40, 16, bias=False, dtype=dtype)

    def forward(self, states: Tensor) -> Tensor:
        return self.second(self.first(states))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs the tests, a processor on which everything is packed."""
    monkeypatch.setattr(packed, "cpu_name", lambda: "AMD EPYC")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 1), (1, 4), (3, 5)], ids=str)
@torch.no_grad()
def test_products_are_those_of_linear_layers(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    pair = Pair(dtype)
    view, layers = for_few_rows(packed_view(pair))
    assert len(layers) == (2 if dtype == torch.float32 else 0)
    states = torch.randn(*shape, 24, dtype=dtype)
    run = torch.compile(view.forward, backend=BACKEND, dynamic=False)
    used = []
    for layer in layers:
        layer.blockwise = lambda input, layer=layer: (  # type: ignore[method-assign]
            used.append(layer) or type(layer).blockwise(layer, input)
        )
    with multiplying(layers):
        found = run(states)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(found, pair(states), atol=tolerance, rtol=tolerance)
    # Rows that are few are summed in the graph; of more, packed layers are called.
    is_few = shape[0] * shape[1] <= MOST_SUMMED
    assert used == ([] if is_few else layers)


def test_the_module_itself_stays_what_it_is() -> None:
    pair = Pair(torch.float32)
    view, _ = for_few_rows(packed_view(pair))
    assert type(pair.first) is type(pair.second) is nn.Linear
    assert type(view.first) is FewRowsLinear
    assert view.first.weight is pair.first.weight


def test_layers_of_other_kinds_are_left_alone() -> None:
    class Odd(nn.Linear):
        pass

    module = nn.Sequential(Odd(4, 4), nn.Linear(4, 4, dtype=torch.bfloat16))
    view, layers = for_few_rows(module)
    assert [type(each) for each in view] == [Odd, nn.Linear]
    assert not layers
