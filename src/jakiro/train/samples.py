"""Tokenised samples on disk, and the order in which they are trained on.

Samples are tokenised once into a file that is mapped into memory, not read: batches of samples of
similar length need every length before the first step and any sample at any time, which an index of
JSON lines would pay for with a new tokenisation in every epoch. In memory are 8 bytes per sample
for its end, and during an epoch 8 more for its place in the order.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from jakiro.errors import CheckpointError, DataError
from jakiro.hub.files import replace_files

Piece = tuple[Sequence[int], Sequence[bool]]
_CHUNK = 1 << 18
"""Tokens that are counted at once."""
_POOL = 64
"""Batches whose samples are sorted by length together, so that little padding is needed."""
_OURS = re.compile(r"samples-\w+\.(tokens|ends)(\.tmp)?")
"""What may be removed; of other names are files of the user."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Right-padded ``ids`` [B, T] int64, ``lengths`` [B] int64, ``carries_loss`` [B, T] bool, and
    ``indices`` [B] int64 of the samples."""

    ids: Tensor
    lengths: Tensor
    carries_loss: Tensor
    indices: Tensor


@dataclass(frozen=True, eq=False)
class Epoch:
    """One pass over samples: ``order`` [S] of their indices, cut into batches at ``starts`` [N]."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        end = self.starts[number + 1] if number + 1 < len(self.starts) else len(self.order)
        return self.order[self.starts[number] : end]


class Samples:
    """Samples behind one another in ``tokens`` int32, each token twice its id plus one if it
    carries loss; sample i ends before ``ends[i]``. ``digest`` is a hash of all that."""

    def __init__(self, tokens: NDArray[np.int32], ends: NDArray[np.int64], digest: str) -> None:
        self._tokens, self._ends, self.digest = tokens, ends, digest
        self.lengths = np.diff(ends, prepend=0)

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def num_tokens(self) -> int:
        """Tokens of all samples together."""
        return int(self._ends[-1])

    def counts(self, vocab_size: int) -> Tensor:
        """How often each token occurs, [V] int64 by id."""
        starts = range(0, len(self._tokens), _CHUNK)
        parts = (self._tokens[start : start + _CHUNK] >> 1 for start in starts)
        return count_tokens(parts, vocab_size)

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """The samples ``indices``, padded on the right to the longest."""
        places = torch.as_tensor(indices)
        lengths = torch.from_numpy(self.lengths[places.numpy()])
        packed = torch.zeros(len(places), int(lengths.max()), dtype=torch.int64)
        for row, (index, length) in enumerate(zip(places, lengths, strict=True)):
            end = int(self._ends[index])
            packed[row, :length] = torch.from_numpy(self._tokens[end - int(length) : end].copy())
        return Batch(packed >> 1, lengths, (packed & 1).bool(), places)

    def parts(self, indices: NDArray[np.int64], count: int, which: slice) -> list[Batch]:
        """Those of ``count`` parts of a batch that ``which`` selects. A part for which no sample is
        left teaches nothing, so that all processes do the same number of passes."""
        parts = np.array_split(indices, count)[which]
        return [
            self.batch(part) if len(part) else _silent(self.batch(indices[:1])) for part in parts
        ]

    def split(self, held_out: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices for training and for evaluation, at most a fifth of all, drawn by ``seed``."""
        order = np.random.default_rng((seed, len(self))).permutation(len(self))
        count = min(held_out, len(self) // 5)
        return np.sort(order[count:]), np.sort(order[:count])

    def epoch(self, indices: NDArray[np.int64], batch_tokens: int, seed: tuple[int, ...]) -> Epoch:
        """``indices`` in batches of at most ``batch_tokens`` padded tokens (one sample at least),
        in an order that ``seed`` decides alone."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(indices)
        mean = self.lengths[indices].sum() / max(1, len(indices))
        pool = max(1, int(_POOL * batch_tokens / max(1, mean)))
        starts = array("q")
        for first in range(0, len(order), pool):
            part = order[first : first + pool]
            lengths = self.lengths[part]
            by_length = np.argsort(lengths, kind="stable")
            order[first : first + pool] = part[by_length]
            current = first
            for place, length in enumerate(lengths[by_length].tolist(), first):
                # Sorted by length, so the next sample is the longest of its batch.
                if place == current or (place + 1 - current) * length > batch_tokens:
                    starts.append(place)
                    current = place
        return _shuffled(Epoch(order, np.array(starts, np.int64)), rng)


def _shuffled(epoch: Epoch, rng: np.random.Generator) -> Epoch:
    """The same batches in another order."""
    ends = np.append(epoch.starts[1:], len(epoch.order))
    places = rng.permutation(len(epoch))
    sizes = (ends - epoch.starts)[places]
    starts = np.cumsum(sizes) - sizes
    # Where each sample comes from: the start of its batch, and its place therein.
    source = np.repeat(epoch.starts[places] - starts, sizes) + np.arange(len(epoch.order))
    return Epoch(epoch.order[source], starts)


def _silent(batch: Batch) -> Batch:
    """The same batch with nothing to learn."""
    nothing = torch.zeros_like(batch.carries_loss)
    return Batch(batch.ids, batch.lengths, nothing, batch.indices)


def count_tokens(parts: Iterable[ArrayLike], vocab_size: int) -> Tensor:
    """How often each token occurs in ``parts``, each a list of ids: [V] int64 by id."""
    counts = np.zeros(vocab_size, np.int64)
    for ids in parts:
        counts += np.bincount(ids, minlength=vocab_size)
    return torch.from_numpy(counts)


def stored(pieces: Callable[[], Iterable[Piece]], directory: Path, key: str) -> Samples:
    """The samples kept in ``directory`` under ``key``; at first use those of ``pieces``, which are
    written as they come, so no more than one of them is in memory.

    Samples of other keys are removed. Raises ``DataError`` when there is no sample, and
    ``CheckpointError`` when the directory cannot be written.
    """
    tokens, ends = _files(directory, key)
    if not (tokens.exists() and ends.exists()):
        _write(pieces(), tokens, ends)
    for path in directory.glob("samples-*"):
        if _OURS.fullmatch(path.name) and path not in (tokens, ends):
            path.unlink(missing_ok=True)
    return opened(directory, key)


def opened(directory: Path, key: str) -> Samples:
    """The samples that ``stored`` has kept in ``directory`` under ``key``. Raises
    ``CheckpointError``."""
    tokens, ends = _files(directory, key)
    try:
        packed = np.memmap(tokens, np.int32, "r")
        places = np.load(ends)
        if places.dtype != np.int64 or len(places) < 5 or places[-5] != len(packed):
            raise ValueError(f"{len(packed)} tokens are not what the ends tell")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {tokens} and {ends}: {error}; delete both to tokenise again"
        ) from error
    return Samples(packed, places[:-4], places[-4:].tobytes().hex())


def _files(directory: Path, key: str) -> tuple[Path, Path]:
    """The name carries the key, so that files of two saves are never taken for one."""
    return directory / f"samples-{key}.tokens", directory / f"samples-{key}.ends"


def _write(pieces: Iterable[Piece], tokens: Path, ends: Path) -> None:
    """Samples to ``tokens`` as they come; their ends and the hash of all to ``ends``."""
    places, digest = array("q"), sha256()

    def write_tokens(path: Path) -> None:
        total = 0
        with path.open("wb") as file:
            for ids, marks in pieces:
                packed = np.asarray(ids, np.int32) * 2 + np.asarray(marks, np.int32)
                data = packed.tobytes()
                file.write(data)
                digest.update(data)
                total += len(packed)
                places.append(total)
        if not places:
            raise DataError("the data holds no sample with a token to learn from")

    def write_ends(path: Path) -> None:
        digest.update(places.tobytes())
        hashed = np.frombuffer(digest.digest(), np.int64)
        with path.open("wb") as file:
            np.save(file, np.concatenate([np.array(places, np.int64), hashed]))

    replace_files({tokens: write_tokens, ends: write_ends})
