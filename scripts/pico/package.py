"""Put the trained pair into the package.

``python scripts/pico/package.py --target DIR --head DIR ... --tree TREE --window 128`` copies the
target to ``src/jakiro/models/pico`` and every head, in bfloat16, to ``pico-METHOD``. ``--tree``
and ``--window`` are what the heads recommend. ``--history`` copies the log of the target's
training to ``dev/pico``.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from jakiro.hub import checkpoint
from jakiro.tree.shapes import TreePlan

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "src" / "jakiro" / "models"
LOGS = ROOT / "dev" / "pico"


def copy_files(source: Path, destination: Path, names: list[str]) -> None:
    """Copy ``names``, readable by everybody."""
    destination.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, destination / name)
        (destination / name).chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path)
    parser.add_argument("--history", type=Path)
    parser.add_argument("--head", type=Path, action="append", default=[])
    parser.add_argument("--tree", required=True)
    parser.add_argument("--window", type=int, required=True)
    args = parser.parse_args()
    TreePlan.parse(args.tree)
    LOGS.mkdir(parents=True, exist_ok=True)
    if args.target:
        kept = {".json", ".jinja", ".safetensors"}
        names = [path.name for path in args.target.iterdir() if path.suffix in kept]
        copy_files(args.target, MODELS / "pico", names)
    if args.history:
        shutil.copyfile(args.history, LOGS / "target.jsonl")
    for directory in args.head:
        config = checkpoint.read_config(directory)
        notes = config["notes"] | {"tree": args.tree, "options": {"window": args.window}}
        head = checkpoint.load(directory)
        destination = MODELS / f"pico-{head.config.method}"
        checkpoint.save(head, destination, config["target"], notes)
        for name in (checkpoint.CONFIG_FILE, checkpoint.WEIGHTS_FILE):
            (destination / name).chmod(0o644)
        shutil.copyfile(directory / "history.jsonl", LOGS / f"{head.config.method}.jsonl")
        shutil.copyfile(directory / "curves.png", LOGS / f"{head.config.method}.png")


if __name__ == "__main__":
    main()
