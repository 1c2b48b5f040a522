"""Put the trained pair into the package, or heads into a directory of heads.

``python scripts/pico/package.py --target DIR --head DIR ... --tree TREE --window 128`` copies the
target to ``src/jakiro/models/pico`` and every head, in bfloat16, to ``pico-METHOD``. ``--tree``
and ``--window`` are what the heads recommend; a head keeps what it recommends already.
``--history`` copies the log of the target's training to ``dev/pico``, where its report goes, too.
With ``--out HEADS`` every head goes to ``HEADS/NAME`` instead, under the name of its directory.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from jakiro.hub import checkpoint
from jakiro.hub.models import NOTES_FILE, load_model, load_tokenizer, save_model
from jakiro.tree.shapes import TreePlan

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "src" / "jakiro" / "models"
LOGS = ROOT / "dev" / "pico"
REPORT = "report.json"
"""Of a target, what ``report.py`` measured."""


def copy_files(source: Path, destination: Path, names: list[str]) -> None:
    """Copy ``names``, readable by everybody."""
    destination.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, destination / name)
        (destination / name).chmod(0o644)


def copy_head(
    directory: Path, destination: Path, recommended: dict[str, Any], window: int | None
) -> None:
    """The head alone, or a draft model, in bfloat16, with what it recommends."""
    if checkpoint.holds_model(directory):
        model, tokenizer = load_model(directory, torch.bfloat16, None), load_tokenizer(directory)
        save_model(model, destination, tokenizer, json.loads((directory / NOTES_FILE).read_text()))
        return
    config = checkpoint.read_config(directory)
    notes = config["notes"] | recommended
    if window:
        notes["options"] = notes.get("options", {}) | {"window": window}
    checkpoint.save(checkpoint.load(directory), destination, config["target"], notes)
    for name in (checkpoint.CONFIG_FILE, checkpoint.WEIGHTS_FILE):
        (destination / name).chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path)
    parser.add_argument("--history", type=Path)
    parser.add_argument("--head", type=Path, action="append", default=[])
    parser.add_argument("--tree")
    parser.add_argument("--window", type=int)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    recommended: dict[str, Any] = {}
    if args.tree:
        recommended["tree"] = str(TreePlan.parse(args.tree))
    LOGS.mkdir(parents=True, exist_ok=True)
    if args.target:
        kept = {".json", ".jinja", ".safetensors"}
        names = {path.name for path in args.target.iterdir() if path.suffix in kept}
        copy_files(args.target, MODELS / "pico", sorted(names - {REPORT}))
        copy_files(args.target, LOGS, sorted(names & {REPORT}))
    if args.history:
        shutil.copyfile(args.history, LOGS / "target.jsonl")
    for directory in args.head:
        if args.out:
            copy_head(directory, args.out / directory.resolve().name, recommended, args.window)
            continue
        method = checkpoint.read_config(directory)["head"]["method"]
        copy_head(directory, MODELS / f"pico-{method}", recommended, args.window)
        shutil.copyfile(directory / "history.jsonl", LOGS / f"{method}.jsonl")
        shutil.copyfile(directory / "curves.png", LOGS / f"{method}.png")


if __name__ == "__main__":
    main()
