"""Attention of a few rows by the kernel in C++, beside that of the library."""

from __future__ import annotations

import pytest
import torch

from jakiro.cache.deferred import mix
from jakiro.errors import ConfigError
from jakiro.kernels.build import check_compiler, load

# The compiler imports what torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def kernel() -> None:
    try:
        check_compiler()
    except ConfigError as error:
        pytest.skip(str(error))
    load("attention")


def a_case(
    sizes: tuple[int, int, int, int, int, int], dtype: torch.dtype, masks: int | None = None
) -> Case:
    """Queries as projections leave them, keys and values as a cache does, a mask under which each
    row sees something. Sizes: batch, heads, kv_heads, rows, slots, dim."""
    batch, heads, groups, rows, slots, dim = sizes
    torch.manual_seed(0)
    queries = torch.randn(batch, rows, heads, dim, dtype=dtype).transpose(1, 2)
    keys, values = torch.randn(2, batch, groups, 400, dim, dtype=dtype)[..., :slots, :].unbind()
    mask = torch.zeros(masks or batch, 1, rows, slots, dtype=dtype)
    mask[torch.rand(mask.shape) < 0.4] = torch.finfo(dtype).min
    mask[..., 0] = 0
    return queries, keys, values, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 4, 2, 1, 1, 64),
        (1, 4, 2, 13, 201, 64),
        (3, 4, 4, 5, 77, 32),
        (2, 8, 1, 3, 40, 128),
        (1, 4, 2, 40, 50, 64),
        # What the library does: heads that fill no vector.
        (1, 2, 2, 3, 10, 12),
    ],
    ids=str,
)
@pytest.mark.parametrize("masks", [None, 1], ids=["a mask each", "one mask"])
def test_attention_is_that_of_the_library(
    dtype: torch.dtype, sizes: tuple[int, int, int, int, int, int], masks: int | None
) -> None:
    case = a_case(sizes, dtype, masks)
    found = torch.ops.jakiro.mix(*case, 0.2)
    batch, heads, _, rows, _, dim = sizes
    assert found.shape == (batch, rows, heads, dim)
    assert found.is_contiguous()
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 0.02}[dtype]
    expected = mix(*case, 0.2).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


KEPT = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("dtype", KEPT, ids=str)
def test_a_row_is_the_same_among_any_others(dtype: torch.dtype) -> None:
    """To the last bit."""
    queries, keys, values, mask = a_case((1, 4, 2, 20, 150, 64), dtype)
    alone = torch.cat(
        [
            torch.ops.jakiro.mix(queries[:, :, [row]], keys, values, mask[:, :, [row]], 0.125)
            for row in range(20)
        ],
        1,
    )
    for count in range(1, 21):
        some = queries[:, :, :count], keys, values, mask[:, :, :count]
        assert torch.equal(torch.ops.jakiro.mix(*some, 0.125), alone[:, :count])


@pytest.mark.parametrize("dtype", KEPT, ids=str)
def test_what_is_hidden_changes_nothing(dtype: torch.dtype) -> None:
    """To the last bit, wherever it lies: as if it were not there."""
    queries, keys, values, mask = a_case((1, 4, 2, 5, 90, 64), dtype)
    mask[:] = mask[:, :, :1]
    seen = mask[0, 0, 0] == 0
    alone = keys[:, :, seen], values[:, :, seen], mask[..., seen]
    wanted = torch.ops.jakiro.mix(queries, *alone, 0.125)
    for _ in range(2):
        assert torch.equal(torch.ops.jakiro.mix(queries, keys, values, mask, 0.125), wanted)
        keys[:, :, ~seen], values[:, :, ~seen] = 7.0, -3.0
