"""Train the bundled target from scratch.

``python scripts/pico/pretrain.py --data DIR --out DIR`` reads what ``prepare.py`` wrote. The
schedule is warm-up, constant, linear decay (WSD), so a run can be prolonged as long as the decay
has not begun: raise ``--steps``. One that has ended needs ``--prolonged-at ITS_STEPS`` as well:
the rate warms up anew from there. The checkpoint holds model, optimisers and step; every batch is
a function of ``(seed, step)``, so a resumed run sees the batches it would have seen.

Matrices are trained with Muon, embeddings and norms with AdamW. Sequences are short
(``--length``) while the learning rate is constant and ``--decay-length`` long in the decay, which
is where the model learns to use its whole context.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM


def build(tokenizer_dir: Path) -> LlamaForCausalLM:
    """Deep and thin: one target forward must cost many drafter forwards, as in large models."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    # Residual branches start small, so sixteen layers do not add up to a large residual stream.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_((2 * config.num_hidden_layers) ** -0.5)
    return model


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Factor in [0, 1] of the peak learning rates at ``step``."""
    warming = step - args.prolonged_at if step >= args.prolonged_at else step
    return min(1.0, (warming + 1) / args.warmup, (args.steps - step) / args.decay)


def batches(arrays: dict[str, np.ndarray], step: int, args: argparse.Namespace) -> torch.Tensor:
    """Token ids [micro, rows, length + 1] of ``step``: windows drawn at random, by share."""
    rng = np.random.default_rng((args.seed, step))
    decaying = step >= args.steps - args.decay
    length = args.decay_length if decaying else args.length
    chat_share = args.decay_chat_share if decaying else args.chat_share
    rows = args.batch_tokens // length
    windows = []
    for is_chat in rng.random(rows) < chat_share:
        array = arrays["chat" if is_chat else "text"]
        start = rng.integers(0, len(array) - length - 1)
        windows.append(array[start : start + length + 1].astype(np.int64))
    micro = args.micro_tokens // length
    return torch.from_numpy(np.stack(windows)).split(micro)


def save(path: Path, state: dict) -> None:
    """Write ``state`` so that a kill leaves the old file or the new one, never half of one."""
    scratch = path.with_suffix(".tmp")
    torch.save(state, scratch)
    os.replace(scratch, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--decay", type=int, default=400)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--prolonged-at", type=int, default=0, help="last step of an earlier run")
    parser.add_argument("--batch-tokens", type=int, default=12288)
    parser.add_argument("--micro-tokens", type=int, default=4096)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--decay-length", type=int, default=1024)
    parser.add_argument("--chat-share", type=float, default=0.4)
    parser.add_argument("--decay-chat-share", type=float, default=0.65)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--save-minutes", type=float, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    arrays = {name: np.load(args.data / f"{name}.npy", mmap_mode="r") for name in ("text", "chat")}
    model = build(args.data / "tokenizer").to(device)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inner = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inner]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    step, checkpoint = 0, args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step = state["step"]

    @torch.compile
    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        hidden = model.model(ids[:, :-1]).last_hidden_state
        return F.cross_entropy(model.lm_head(hidden).flatten(0, 1).float(), ids[:, 1:].flatten())

    saved_at, history = time.monotonic(), (args.out / "history.jsonl").open("a")
    while step < args.steps:
        began, losses = time.monotonic(), []
        micro_batches = batches(arrays, step, args)
        for ids in micro_batches:
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = loss_of(ids.to(device))
            (loss / len(micro_batches)).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * learning_rate(step, args)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        rate = args.batch_tokens / (time.monotonic() - began)
        line = {"step": step, "loss": float(np.mean(losses)), "tokens_per_s": round(rate)}
        history.write(json.dumps(line) + "\n")
        history.flush()
        if step == args.steps or time.monotonic() - saved_at > 60 * args.save_minutes:
            optimizer_states = [optimizer.state_dict() for optimizer in optimizers]
            state = {"model": model.state_dict(), "optimizers": optimizer_states, "step": step}
            save(checkpoint, state)
            saved_at = time.monotonic()

    model.to(torch.bfloat16).save_pretrained(args.out / "target")
    AutoTokenizer.from_pretrained(args.data / "tokenizer").save_pretrained(args.out / "target")


if __name__ == "__main__":
    main()
