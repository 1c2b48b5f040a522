"""Everything that the texts and counts of a run depend on, besides the machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import NamedTuple

from jakiro.bench.runner import Request
from jakiro.bench.suites import Row, reject_doubles
from jakiro.errors import ConfigError
from jakiro.sampling.params import SamplingParams


class Place(NamedTuple):
    """Which cell: its methods share prompts, temperature and batch size."""

    task: str
    temperature: float
    batch_size: int

    @property
    def condition(self) -> str:
        """All but the task: what the cells of one table or panel share."""
        batch = "" if self.batch_size == 1 else f", batch {self.batch_size}"
        return f"T = {self.temperature:g}{batch}"

    def __str__(self) -> str:
        return f"{self.task}, {self.condition}"


@dataclass(frozen=True, slots=True)
class Settings:
    """One run: ``rows`` x ``tasks`` x ``temperatures`` x ``batch_sizes``, plain decoding aside.

    Raises:
        ConfigError: a value is impossible, or something is named twice.
    """

    target: str
    target_sha256: str
    """The embedding's, as in the fingerprint that checkpoints keep."""
    dtype: str
    rows: tuple[Row, ...]
    tasks: tuple[str, ...]
    """Names; where the prompts lie differs between machines, their digest is in each cell."""
    temperatures: tuple[float, ...] = (0.0,)
    batch_sizes: tuple[int, ...] = (1,)
    limit: int | None = None
    """Prompts of each task; None: all."""
    chat: bool | None = None
    """Whether the chat template is applied; None: where there is one."""
    transformers: bool = False
    """Whether ``model.generate`` is measured as well."""
    repetitions: int = 1
    max_new_tokens: int = 128
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    """Of the first prompt of a task; every prompt has its own, the same for every method."""
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        reject_doubles("method", [row.name for row in self.rows])
        reject_doubles("task", self.tasks)
        reject_doubles("temperature", self.temperatures)
        reject_doubles("batch size", self.batch_sizes)
        if any(size < 1 for size in self.batch_sizes):
            raise ConfigError(f"batch sizes are at least 1, got {list(self.batch_sizes)}")
        for temperature in self.temperatures:
            self._params(temperature, self.seed)

    def places(self) -> Iterator[Place]:
        """All cells; tasks change fastest, so that one table fills after the other."""
        for temperature, batch_size, task in product(
            self.temperatures, self.batch_sizes, self.tasks
        ):
            yield Place(task, temperature, batch_size)

    def requests(self, prompts: Sequence[list[int]], temperature: float) -> list[Request]:
        """One request per prompt, given as token ids."""
        return [
            Request(ids, self._params(temperature, self.seed + index))
            for index, ids in enumerate(prompts)
        ]

    def difference(self, other: Settings) -> str | None:
        """The first field in which ``other`` differs, in words; None where all are the same."""
        mine, theirs = asdict(self), asdict(other)
        for field in fields(self):
            if mine[field.name] != theirs[field.name]:
                return f"{field.name} is {theirs[field.name]} and was {mine[field.name]}"
        return None

    def _params(self, temperature: float, seed: int) -> SamplingParams:
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            ignore_eos=self.ignore_eos,
            seed=seed,
        )
