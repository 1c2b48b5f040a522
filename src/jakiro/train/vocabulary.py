"""Which tokens a restricted draft head scores (FR-Spec, arXiv 2502.14856), and restricting one that
is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from jakiro.drafters.nn import DraftHead
from jakiro.engine.engine import Engine
from jakiro.errors import ConfigError, DataError
from jakiro.train.data import Records, check_fast, tokenise
from jakiro.train.finished import DRAFT_IDS, Finished
from jakiro.train.samples import count_tokens


@dataclass(frozen=True)
class Restricted:
    """What was kept: ``num_tokens`` of ``vocab_size``, and ``share``, how much of the data they
    are."""

    num_tokens: int
    vocab_size: int
    share: float


def restrict(
    directory: Path, engine: Engine, data: Sequence[Path], size: int, out: Path
) -> Restricted:
    """Write the head in ``directory``, made for the target of ``engine``, to ``out``, its weights
    as they are, scoring only the ``size`` tokens that are most frequent in the JSONL files ``data``
    (``frequent_tokens``; the special ones among them).

    Raises what ``Finished.read`` and ``write`` raise, ``ConfigError`` for a size it cannot have,
    and ``DataError`` where a file cannot be read, or there is no token in them.
    """
    whole = Finished.read(directory, engine.target, out, "restricted to a draft vocabulary")
    small = DraftHead(replace(whole.head.config, draft_vocab_size=size))
    counts = _counts(engine, data)
    ids = frequent_tokens(counts, size, special_tokens(engine))
    small.load_state_dict(whole.head.state_dict() | {DRAFT_IDS: ids}, assign=True)
    share = float(counts[ids].sum() / counts.sum())
    whole.write(small, out, {"draft_vocab_share": share})
    return Restricted(size, len(counts), share)


def special_tokens(engine: Engine) -> set[int]:
    """The tokens that are no text: of the tokenizer, its template among them, and the end."""
    tokenizer: Any = engine.tokenizer
    return {
        *tokenizer.all_special_ids,
        *tokenizer.get_added_vocab().values(),
        *engine.eos_ids,
    }


def _counts(engine: Engine, data: Sequence[Path]) -> Tensor:
    """How often each token of the target occurs in ``data``, [V] int64 by id."""
    check_fast(engine.tokenizer)
    length, size = engine.target.context_length, engine.target.vocab_size
    pieces = tokenise(Records(data), engine.tokenizer, length, size)
    counts = count_tokens((ids for ids, _ in pieces), size)
    if not counts.any():
        raise DataError("the data holds no sample with a token to learn from")
    return counts


def frequent_tokens(counts: Tensor, size: int, always: Iterable[int]) -> Tensor:
    """The ``size`` most frequent ids, ascending [size] int64, from ``counts`` [V] by id; ties go to
    the smaller id. The ids ``always`` are among them: what ends a text, or frames a turn, is worth
    drafting however seldom it is seen. Raises ``ConfigError`` if they alone are too many."""
    kept = sorted({token for token in always if 0 <= token < len(counts)})
    if size < len(kept):
        raise ConfigError(
            f"a draft vocabulary of {size} tokens cannot hold the {len(kept)} special tokens of "
            f"the tokenizer; allow at least {len(kept)}"
        )
    ranked = counts.clone()
    ranked[kept] = counts.max() + 1
    return ranked.sort(descending=True, stable=True).indices[:size].sort().values
