"""What a figure must say about where it was taken."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import jakiro
from jakiro.target.machine import cpu_name

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True)
class Environment:
    """Hardware, versions, commit and date (UTC, ISO 8601) of a run."""

    cpu: str
    num_cores: int
    num_threads: int
    accelerator: str | None
    system: str
    python: str
    versions: dict[str, str]
    commit: str | None
    """With ``+changes`` where the work tree differs from it; None outside a checkout."""
    date: str

    def difference(self, other: Environment) -> str | None:
        """What of the machine is another in ``other``, in words; commit and date may differ."""
        mine, theirs = asdict(self), asdict(other)
        for name in mine:
            if name not in ("commit", "date") and mine[name] != theirs[name]:
                return f"{name} is {theirs[name]} and was {mine[name]}"
        return None


def environment() -> Environment:
    """The environment of this process."""
    return Environment(
        cpu=cpu_name(),
        num_cores=os.cpu_count() or 1,
        num_threads=torch.get_num_threads(),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions={"jakiro": jakiro.__version__} | _versions(),
        commit=_commit(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Of the checkout this package runs from."""
    home = Path(__file__).parent
    try:
        commit = _git(home, "rev-parse", "--short=12", "HEAD")
        changes = _git(home, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+changes" if changes else commit


def _git(where: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(where), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
