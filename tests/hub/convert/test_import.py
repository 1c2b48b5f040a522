"""Checkpoints of others: what is understood comes over bit by bit, the rest is refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import jakiro
from jakiro.drafters.medusa import MedusaConfig
from jakiro.drafters.nn import DraftHead, HeadConfig
from jakiro.drafters.registry import find
from jakiro.errors import CheckpointError, JakiroError, PairMismatch
from jakiro.hub import checkpoint
from jakiro.hub.convert.importing import FILES, Imported, check_free, import_head, recognise
from jakiro.hub.convert.source import read_source
from jakiro.target.target import Target
from tests.hub.convert import synthetic
from tests.train.support import tiny_target

GATE = "layers.0.mlp_moe.gate.weight"


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


def convert(directory: Path, target: Target) -> Imported:
    """Into ``out`` beside the directory."""
    source = read_source(directory, FILES)
    return import_head(source, recognise(source), target, directory.parent / "out")


def published(method: str, dtype: torch.dtype = torch.float16) -> tuple[dict[str, Tensor], Any]:
    shapes, config = synthetic.SOURCES[method]
    return synthetic.random_tensors(shapes, dtype), dict(config)


# -- what comes over -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("method", synthetic.SOURCES)
def test_tensors_keep_every_bit(method: str, layout: str, tmp_path: Path, target: Target) -> None:
    tensors, config = published(method)
    synthetic.write(tmp_path / "in", tensors, config, layout)
    done = convert(tmp_path / "in", target)
    assert (done.method, done.dtype, done.left_out) == (method, "float16", ())
    assert done.num_parameters == sum(tensor.numel() for tensor in tensors.values())
    stored = load_file(tmp_path / "out" / checkpoint.WEIGHTS_FILE)
    assert set(stored) == set(tensors)
    for name, tensor in tensors.items():
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name], tensor), name


@pytest.mark.parametrize("method", ["jakiro", "eagle2"])
def test_settings_come_from_tensors_and_config(method: str, tmp_path: Path, target: Target) -> None:
    tensors, config = published(method)
    synthetic.write(tmp_path / "in", tensors, config)
    convert(tmp_path / "in", target)
    head = checkpoint.load(tmp_path / "out", target.fingerprint())
    found = asdict(head.config)
    expected = {
        "method": method,
        "hidden_size": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "expert_size": 32 if method == "jakiro" else 48,
        "vocab_size": 40,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "fc_bias": True,
    }
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("rope", [{}, {"rope_type": "default"}])
def test_the_rotary_base_as_transformers_5_writes_it(
    rope: dict[str, Any], tmp_path: Path, target: Target
) -> None:
    tensors, config = published("eagle2")
    config["rope_parameters"] = {**rope, "rope_theta": config.pop("rope_theta")}
    synthetic.write(tmp_path / "in", tensors, config)
    convert(tmp_path / "in", target)
    assert checkpoint.read_config(tmp_path / "out")["head"]["rope_theta"] == 500000.0


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("experts.0.fc1.weight", (32, 32), r"experts of three layers \(fc, proj, fc1\)"),
        ("gate.weight", (4, 32), "2 GELU experts and a gate of 4 rows"),
        ("experts.2.fc.weight", (48, 32), "3 GELU experts and a gate of 2 rows"),
        ("experts.1.up_proj.weight", (48, 32), "unexpected tensors: layers.0.mlp_moe.experts.1.up"),
    ],
)
def test_gelu_experts_of_other_shapes_are_named(
    name: str, shape: tuple[int, ...], message: str, tmp_path: Path, target: Target
) -> None:
    tensors, config = published("jakiro_star")
    tensors[f"layers.0.mlp_moe.{name}"] = torch.ones(shape)
    synthetic.write(tmp_path / "in", tensors, config)
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "in", target)


def test_views_of_one_storage_become_tensors_of_their_own(tmp_path: Path, target: Target) -> None:
    tensors, config = published("eagle2")
    both = torch.nn.Parameter(torch.randn(48, 64)).half()
    names = [f"layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    views = dict(zip(names, (both[:, :32], both[:, ::2], both[:, 32:].T), strict=True))
    synthetic.write(tmp_path / "in", tensors | views, config)
    convert(tmp_path / "in", target)
    stored = load_file(tmp_path / "out" / checkpoint.WEIGHTS_FILE)
    for name, view in views.items():
        assert torch.equal(stored[name], view), name


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("own_head", [True, False])
def test_heads_and_blocks_are_counted(
    own_head: bool, blocks: int, tmp_path: Path, target: Target
) -> None:
    """And give what the published module computes."""
    shapes: synthetic.Shapes = {}
    for head in range(3):
        for block in range(blocks):
            shapes[f"{head}.{block}.linear.weight"] = (32, 32)
            shapes[f"{head}.{block}.linear.bias"] = (32,)
        if own_head:
            shapes[f"{head}.{blocks}.weight"] = (40, 32)
    tensors = synthetic.random_tensors(shapes, torch.float32)
    config = synthetic.MEDUSA_CONFIG
    synthetic.write(tmp_path / "in", tensors, config, "medusa_lm_head.pt")
    assert convert(tmp_path / "in", target).left_out == ()
    heads = checkpoint.load(tmp_path / "out", target.fingerprint())
    assert heads.config == MedusaConfig("medusa", 32, 40, 3, blocks, own_head)

    features = torch.randn(2, 32)
    last = target.model.get_output_embeddings().weight
    with torch.no_grad():
        found = heads(features, target.lm_head)
        for head in range(3):
            states = features
            for block in range(blocks):
                part = f"{head}.{block}.linear"
                inner = states @ tensors[f"{part}.weight"].T + tensors[f"{part}.bias"]
                states = states + inner * inner.sigmoid()
            matrix = tensors[f"{head}.{blocks}.weight"] if own_head else last
            torch.testing.assert_close(found[:, head], states @ matrix.T)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("1.1.weight", None, "lacks tensors: 1.1.weight"),
        ("2.0.linear.bias", None, "lacks tensors: 2.0.linear.bias"),
        ("lm_head.weight", (40, 32), "unexpected tensors: lm_head.weight"),
        ("medusa_head.0.0.linear.weight", (32, 32), "inside a whole model"),
        ("0.1.weight", (41, 32), r"another target: .* \(32, 41\), but this target has \(32, 40\)"),
        ("0.0.linear.weight", (16, 16), r"another target: .* \(16, 40\)"),
    ],
)
def test_heads_that_do_not_fit_are_named(
    name: str, shape: tuple[int, ...] | None, message: str, tmp_path: Path, target: Target
) -> None:
    tensors, config = published("medusa")
    tensors.pop(name, None)
    if shape is not None:
        tensors[name] = torch.ones(shape)
    synthetic.write(tmp_path / "in", tensors, config, "medusa_lm_head.pt")
    with pytest.raises((CheckpointError, PairMismatch), match=message):
        convert(tmp_path / "in", target)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_are_kept_and_mixed_ones_widened(
    dtype: torch.dtype, tmp_path: Path, target: Target
) -> None:
    tensors, config = published("jakiro", dtype)
    tensors[GATE] = tensors[GATE].float() + 1e-7
    synthetic.write(tmp_path / "in", tensors, config)
    assert convert(tmp_path / "in", target).dtype == "float32"
    stored = load_file(tmp_path / "out" / checkpoint.WEIGHTS_FILE)
    assert torch.equal(stored[GATE], tensors[GATE])
    assert torch.equal(stored["fc.weight"], tensors["fc.weight"].float())


def test_half_precisions_together_need_a_wider_type(tmp_path: Path, target: Target) -> None:
    tensors, config = published("jakiro")
    tensors["fc.bias"] = tensors["fc.bias"].bfloat16() * 1e-6
    synthetic.write(tmp_path / "in", tensors, config)
    assert convert(tmp_path / "in", target).dtype == "float32"


def test_a_head_without_bias_and_without_config(tmp_path: Path, target: Target) -> None:
    tensors, _ = published("eagle2")
    del tensors["fc.bias"]
    synthetic.write(tmp_path / "in", tensors, None, "model.safetensors")
    convert(tmp_path / "in", target)
    config = checkpoint.read_config(tmp_path / "out")["head"]
    assert config["fc_bias"] is False
    assert (config["num_heads"], config["num_kv_heads"], config["head_dim"]) == (4, 2, 8)
    assert (config["rope_theta"], config["rms_norm_eps"]) == (10000.0, 1e-6)


def test_copies_of_the_target_are_compared_and_left_out(tmp_path: Path, target: Target) -> None:
    tensors, config = published("jakiro")
    legacy = {
        "embed_tokens.weight": target.model.get_input_embeddings().weight.detach().half(),
        "lm_head.weight": target.model.get_output_embeddings().weight.detach().bfloat16(),
        "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    synthetic.write(tmp_path / "in", legacy | tensors, config)
    done = convert(tmp_path / "in", target)
    assert set(done.left_out) == set(legacy)
    assert done.dtype == "float16"


@pytest.mark.parametrize("method", synthetic.SOURCES)
def test_an_imported_head_drafts(method: str, tmp_path: Path, target: Target) -> None:
    tensors, config = published(method)
    synthetic.write(tmp_path / "in", tensors, config)
    convert(tmp_path / "in", target)
    engine = jakiro.load(target.model, tmp_path / "out")
    params = jakiro.SamplingParams(max_new_tokens=6, temperature=0.8, top_p=0.9, seed=3)
    plain = jakiro.load(target.model, "none").generate([[5, 6, 7]], params)[0]
    done = engine.generate([[5, 6, 7]], params)[0]
    assert done.token_ids == plain.token_ids
    assert sum(done.stats.offered_by_depth) > 0


# -- what is refused -------------------------------------------------------------------------------

Change = Callable[[dict[str, Tensor], dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, c: t.pop("fc.weight"), "lacks the tensor fc.weight"),
        (
            lambda t, c: t.pop("layers.0.self_attn.o_proj.weight"),
            "lacks tensors: layers.0.self_attn.o_proj.weight",
        ),
        (
            lambda t, c: t.pop("layers.0.mlp_moe.experts.1.up_proj.weight"),
            "lacks tensors: layers.0.mlp_moe.experts.1.up_proj.weight",
        ),
        (
            lambda t, c: t.update({"norm.weight": torch.ones(32)}),
            "unexpected tensors: norm.weight",
        ),
        (
            lambda t, c: t.update({"layers.1.mlp.up_proj.weight": torch.ones(3, 3)}),
            "unexpected tensors: layers.1.mlp.up_proj.weight",
        ),
        (
            lambda t, c: t.update({"fc.weight": torch.ones(32, 96)}),
            r"fc.weight is \[32, 96\]; a head that reads one embedding",
        ),
        (
            lambda t, c: t.update({"layers.0.self_attn.v_proj.weight": torch.ones(8, 32)}),
            r"v_proj.weight has shape \[8, 32\], the config asks for \[16, 32\]",
        ),
        (lambda t, c: t.update({GATE: torch.ones(5, 32)}), "2 SwiGLU experts and a gate of 5 rows"),
        (lambda t, c: t.update({GATE: torch.ones(4)}), r"shape \[4\], not that of a matrix"),
        (
            lambda t, c: t.update({GATE: torch.ones(4, 32, dtype=torch.int8)}),
            f"the tensor {GATE} is of type torch.int8",
        ),
        (lambda t, c: c.update(num_attention_heads=5), "32 rows of q_proj cannot be 5 attention"),
        (lambda t, c: c.update(num_attention_heads=1), "16 rows of k_proj are no multiple"),
        (
            lambda t, c: c.update(num_key_value_heads=4),
            "num_key_value_heads 2 .* but config.json says 4",
        ),
        (lambda t, c: c.update(head_dim=16), "head_dim 8 .* but config.json says 16"),
        (lambda t, c: c.update(hidden_act="relu"), "hidden_act 'relu'"),
        (lambda t, c: c.update(rope_scaling={"type": "linear"}), "rope_scaling {'type': 'linear'}"),
        (
            lambda t, c: c.update(rope_parameters={"rope_theta": 1e4, "rope_type": "llama3"}),
            "rope_parameters {'rope_theta': 10000.0, 'rope_type': 'llama3'}",
        ),
        (
            lambda t, c: c.update(rope_parameters={"partial_rotary_factor": 0.5}),
            "rope_parameters {'partial_rotary_factor': 0.5}",
        ),
        (lambda t, c: c.update(num_hidden_layers=2), "num_hidden_layers 2"),
        (lambda t, c: c.update(num_attention_heads="four"), "num_attention_heads 'four'"),
        (lambda t, c: c.update(rms_norm_eps=float("nan")), "rms_norm_eps nan, which must be"),
        (
            lambda t, c: c.update(rope_theta=-1),
            "rope_theta -1, which must be a finite number above 0",
        ),
        (lambda t, c: c.update(rope_parameters={"rope_theta": "x"}), "rope_theta 'x'"),
        (lambda t, c: c.update(rope_parameters="x"), "rope_parameters 'x'"),
    ],
)
def test_what_does_not_fit_is_named(
    change: Change, message: str, tmp_path: Path, target: Target
) -> None:
    tensors, config = published("jakiro")
    change(tensors, config)
    synthetic.write(tmp_path / "in", tensors, config)
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "in", target)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, c: c.update(vocab_size=41), "another target: vocabulary 41, but .* has 40"),
        (
            lambda t, c: t.update({"fc.weight": torch.ones(16, 32)}),
            "another target: hidden size 16, but this target has 32",
        ),
        (
            lambda t, c: t.update({"embed_tokens.weight": torch.randn(40, 32)}),
            "its copy of the embedding .* differs",
        ),
        (
            lambda t, c: t.update({"lm_head.weight": torch.randn(41, 32)}),
            "its copy of the LM head .* differs",
        ),
    ],
)
def test_another_target_is_named(
    change: Change, message: str, tmp_path: Path, target: Target
) -> None:
    tensors, config = published("eagle2")
    change(tensors, config)
    synthetic.write(tmp_path / "in", tensors, config)
    with pytest.raises(PairMismatch, match=message):
        convert(tmp_path / "in", target)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["midlayer.mlp.up_proj.weight", "d2t"], "holds an EAGLE-3 head"),
        (
            ["model.embed_tokens.weight", "model.norm.weight"],
            r"no layout that is known \(Jakiro.*\); its tensors are model.embed_tokens.weight, mod",
        ),
        ([f"layer.{number:02}" for number in range(20)], "layer.11 and 8 more"),
    ],
)
def test_unknown_layouts_are_named(names: list[str], message: str, tmp_path: Path) -> None:
    source = synthetic.write(tmp_path / "in", {name: torch.ones(2, 2) for name in names}, {})
    with pytest.raises(CheckpointError, match=message):
        recognise(read_source(source))


# -- files -----------------------------------------------------------------------------------------


class Harmful:
    """Runs a command when it is unpickled by something that lets it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {"fc.weight": Harmful(tmp_path / "trace")}
    synthetic.write(tmp_path / "in", tensors, {})
    with pytest.raises(CheckpointError, match="objects besides tensors, which could run code"):
        read_source(tmp_path / "in")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("kept", [0, 5, 300, -1, -300])
@pytest.mark.parametrize("layout", ["pytorch_model.bin", "model.safetensors"])
def test_truncated_files_are_refused(layout: str, kept: int, tmp_path: Path) -> None:
    tensors, config = published("eagle2")
    path = synthetic.write(tmp_path / "in", tensors, config, layout) / layout
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=f"{layout} is damaged"):
        read_source(tmp_path / "in")


@pytest.mark.parametrize("content", [b"\x80\x02.", b"\x80\x02J\x01", b"\x80\x02)R."])
def test_pickles_that_end_their_reader_in_its_own_ways(content: bytes, tmp_path: Path) -> None:
    """Nothing to pop, a number cut short, a call of nothing."""
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged or truncated"):
        read_source(tmp_path)


@pytest.mark.parametrize("layout", ["pytorch_model.bin", "model.safetensors"])
def test_pointers_of_git_lfs_are_told(layout: str, tmp_path: Path) -> None:
    (tmp_path / layout).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match="is a Git LFS pointer, not the weights"):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], r"holds no tensors by name \(a list\)"),
        ({}, r"holds no tensors by name"),
        ({"model": {"fc.weight": torch.ones(2)}}, "the entry 'model' is a dict, not a tensor"),
    ],
)
def test_pickles_of_something_else(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not readable JSON"),
        ("[]", "holds a list, not an object"),
        ("{}", "lacks the entry 'weight_map'"),
        ('{"weight_map": {"fc.weight": "gone.bin"}}', "names the file 'gone.bin', which is not"),
        ('{"weight_map": {"fc.weight": "../x.bin"}}', "names the file '../x.bin', which is not"),
        ('{"weight_map": {"fc.weight": "x.bin"}}', "no file .* holds the tensors fc.weight"),
    ],
)
def test_broken_indices(index: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for place in (tmp_path / "x.bin", tmp_path / "in" / "x.bin"):
        torch.save({"fc.bias": torch.ones(2)}, place)
    (tmp_path / "in" / "pytorch_model.bin.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        read_source(tmp_path / "in")


def test_directories_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a directory"):
        read_source(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is not a directory"):
        read_source(tmp_path / "file")
    with pytest.raises(CheckpointError, match=f"no weights in {tmp_path}; expected one of model"):
        read_source(tmp_path)


def test_a_head_of_this_package_is_told(tmp_path: Path, target: Target) -> None:
    head = DraftHead(
        HeadConfig("eagle2", 32, 4, 2, 8, expert_size=48, vocab_size=40, **find("eagle2").settings)
    )
    checkpoint.save(head, tmp_path / "head", target.fingerprint())
    with pytest.raises(CheckpointError, match="is a checkpoint of this package already"):
        read_source(tmp_path / "head")


def test_a_taken_place_stays_as_it_is(tmp_path: Path, target: Target) -> None:
    tensors, config = published("eagle2")
    synthetic.write(tmp_path / "in", tensors, config)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("old")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(tmp_path / "in", target)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]
    with pytest.raises(CheckpointError, match="exists already"):
        check_free(tmp_path / "out" / "precious")


def test_an_interrupted_import_can_be_repeated(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    synthetic.write(tmp_path / "in", *published("eagle2"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(tmp_path / "in", target)
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "out" / "model.safetensors.tmp").write_text("what a killed one leaves")
    convert(tmp_path / "in", target)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors"}


def test_a_target_without_features_is_refused(
    tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, config = published("eagle2")
    synthetic.write(tmp_path / "in", tensors, config)
    monkeypatch.setattr(target, "feature_refusal", "no")
    with pytest.raises(JakiroError, match="cannot work with this llama"):
        convert(tmp_path / "in", target)
