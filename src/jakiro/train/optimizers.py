"""What changes the weights of a network that is trained."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from jakiro.train.config import TrainConfig


def optimizers(module: nn.Module, config: TrainConfig, vocab_size: int) -> list[Optimizer]:
    """AdamW for the weights of ``module``; with Muon (K. Jordan, 2024) for its matrices but those
    from or to the ``vocab_size`` tokens, and AdamW for the rest. Muon's updates are scaled to the
    size of AdamW's (arXiv 2502.16982, section 2.2), so one learning rate serves both."""
    matrices = _matrices(module, config, vocab_size)
    taken = {id(each) for each in matrices}
    rest = [each for each in module.parameters() if id(each) not in taken]
    lr, decay = config.lr, config.weight_decay
    found: list[Optimizer] = []
    if rest:
        found.append(AdamW(rest, lr, config.betas, weight_decay=decay, fused=True))
    if matrices:
        found.append(Muon(matrices, lr, decay, adjust_lr_fn="match_rms_adamw"))
    return found


def state_bytes(module: nn.Module, config: TrainConfig, vocab_size: int) -> int:
    """What gradients and moments take: two moments of a weight for AdamW, one for Muon."""
    weights = sum(each.nbytes for each in module.parameters())
    return 3 * weights - sum(each.nbytes for each in _matrices(module, config, vocab_size))


def _matrices(module: nn.Module, config: TrainConfig, vocab_size: int) -> list[nn.Parameter]:
    """The weights for Muon."""
    if config.optimizer != "muon":
        return []
    return [each for each in module.parameters() if each.ndim == 2 and vocab_size not in each.shape]
