"""The mean of the weights of two heads, one of which was trained on from the other.

``python scripts/pico/average.py --head DIR --head DIR --out DIR`` keeps what the last one says of
itself, its history and its curves, but for what was measured of it alone (arXiv 2203.05482: a mean
of such weights often does better than either).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from jakiro.hub import checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--head", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    heads = [checkpoint.load(directory) for directory in args.head]
    states = [head.state_dict() for head in heads]
    last, config = states[-1], checkpoint.read_config(args.head[-1])
    for name, weight in last.items():
        if weight.is_floating_point():
            weight.copy_(torch.stack([state[name] for state in states]).mean(0))
    notes = {name: value for name, value in config["notes"].items() if name != "held_out"}
    checkpoint.save(heads[-1], args.out, config["target"], notes, torch.float32)
    for name in (checkpoint.CONFIG_FILE, checkpoint.WEIGHTS_FILE):
        (args.out / name).chmod(0o644)
    for name in ("history.jsonl", "curves.png"):
        shutil.copyfile(args.head[-1] / name, args.out / name)


if __name__ == "__main__":
    main()
