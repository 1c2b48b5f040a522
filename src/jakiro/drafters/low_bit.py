"""The target with its weights in few bits drafts: one array of 8-bit integers, of which fewer bits
are nested, as in Double Rounding (arXiv 2502.01199; here nothing is trained)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jakiro.drafters.self_drafter import SelfDrafter
from jakiro.errors import ConfigError, TargetRefused
from jakiro.target.target import Target
from jakiro.target.view import View, name_of

_FAST = (torch.float32, torch.bfloat16)


class LowBit(SelfDrafter):
    """Drafts with every linear layer in ``bits`` bits, a scale per output.

    Costs one byte per weight. Linear layers of other classes than ``nn.Linear`` (GPT-2's, stacked
    experts) stay as they are. Raises ``TargetRefused`` where none can be rounded, ``ConfigError``.
    """

    name = "low_bit"

    def __init__(self, target: Target, bits: int = 8) -> None:
        if not 2 <= bits <= 8:
            raise ConfigError(f"bits must be from 2 to 8, got {bits}")
        names = [name for name, module in target.model.named_modules() if _can_round(module)]
        if not names:
            raise TargetRefused(
                f"{name_of(target)} has no plain linear layer with float weights to round; give "
                "the target unquantised, or use another drafter"
            )
        super().__init__(View(target, dict.fromkeys(names, _rounded_to(bits))))


def _can_round(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or type(module.weight.data) is not Tensor:
        return False
    return module.weight.dtype.is_floating_point and module.weight.dtype.itemsize > 1


def nested_codes(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes [out, in] int8 and scale [out, 1] with ``weight`` about ``codes * scale``.

    The 8-bit code is ``round(weight / scale)``, that of ``bits`` bits its rounding to a multiple of
    ``2 ** (8 - bits)``: both are views of one array.
    """
    scale = weight.abs().amax(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny) / 127
    codes = (weight / scale).round()
    step, most = 2 ** (8 - bits), 2 ** (bits - 1)
    nested = (codes / step).round().clamp(-most, most - 1) * step
    return nested.to(torch.int8), scale


class _RoundedLinear(nn.Linear):
    """Reads its integer codes; the parameters of the layer it shares are not read, but the bias."""

    codes: Tensor
    scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor
        if input.device.type == "cpu" and input.dtype in _FAST:
            # The kernel wants one 16-bit type; a draft can bear the rounding of activations.
            rows = input.reshape(-1, self.in_features).bfloat16()
            out = torch.ops.aten._weight_int8pack_mm(rows, self.codes, self.scale)
            out = out.to(input.dtype).view(*input.shape[:-1], self.out_features)
        else:
            # Scaled before they are summed: sums of codes would leave the range of float16.
            weight = self.codes.to(input.dtype) * self.scale[:, None].to(input.dtype)
            out = F.linear(input, weight)
        return out if self.bias is None else out + self.bias


def _rounded_to(bits: int) -> Callable[[nn.Module], None]:
    def change(module: nn.Module) -> None:
        assert isinstance(module, nn.Linear)
        codes, scale = nested_codes(module.weight.detach(), bits)
        is_fast = codes.device.type == "cpu" and module.weight.dtype in _FAST
        module.__class__ = _RoundedLinear
        module.__dict__["codes"] = codes
        module.__dict__["scale"] = scale[:, 0].to(torch.bfloat16 if is_fast else scale.dtype)

    return change
