"""Language models as drafters through ``load``: recognised, and refused with another vocabulary."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import peft
import pytest
from transformers import PreTrainedModel

from jakiro.api import load
from jakiro.drafters.draft_model import DraftModel
from jakiro.errors import CheckpointError, PairMismatch, PromptError, TargetRefused
from jakiro.hub.bundled import usable_drafters
from jakiro.hub.models import load_tokenizer, save_model
from jakiro.sampling.params import SamplingParams
from tests.families import llama_like
from tests.train.support import VOCABULARY, tiny_target, word_tokenizer

PARAMS = SamplingParams(max_new_tokens=12)


def small(vocab_size: int = VOCABULARY) -> PreTrainedModel:
    return llama_like("Llama", vocab_size=vocab_size, num_hidden_layers=1, hidden_size=16)()


def saved(directory: Path, model: PreTrainedModel, tokenizer: Any = None) -> Path:
    model.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("vocab_size", [VOCABULARY, VOCABULARY + 8])
def test_a_directory_with_a_language_model_drafts(vocab_size: int, tmp_path: Path) -> None:
    """Padding rows are no other vocabulary where the tokenizers agree."""
    target, tokenizer = tiny_target().model, word_tokenizer()
    directory = saved(tmp_path, small(vocab_size), tokenizer)
    engine = load(target, directory, tokenizer=tokenizer)
    assert isinstance(engine.drafter, DraftModel)
    assert engine.drafter.model.dtype == engine.target.dtype
    (done,) = engine.generate([[3, 4, 5]], PARAMS)
    (plain,) = load(target, "none").generate([[3, 4, 5]], PARAMS)
    assert done.token_ids == plain.token_ids


def test_a_loaded_model_drafts() -> None:
    target = tiny_target().model
    engine = load(target, target, tokenizer=word_tokenizer())
    engine.generate([[3, 4, 5]], PARAMS)
    assert engine.stats.alpha[0] == 1.0


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_model_in_a_wrapper_drafts_and_anything_else_does_not() -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    engine = load(tiny_target().model, peft.get_peft_model(small(), config).eval())
    assert isinstance(engine.drafter, DraftModel)
    engine.generate([[3, 4, 5]], PARAMS)
    with pytest.raises(TargetRefused, match="got int"):
        load(tiny_target().model, 7)  # type: ignore[arg-type]


def test_without_its_tokenizer_the_sizes_must_agree(tmp_path: Path) -> None:
    target, tokenizer = tiny_target().model, word_tokenizer()
    load(target, saved(tmp_path / "equal", small()), tokenizer=tokenizer)
    other = saved(tmp_path / "other", small(VOCABULARY + 8))
    with pytest.raises(PairMismatch, match="among 48 tokens and the target among 40, and without"):
        load(target, other, tokenizer=tokenizer)
    with pytest.raises(PairMismatch, match="LlamaForCausalLM"):
        load(target, small(VOCABULARY + 8))


def test_another_vocabulary_is_refused_by_its_first_difference(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    shuffled = tokenizer.get_vocab()
    shuffled["w5"], shuffled["w6"] = shuffled["w6"], shuffled["w5"]
    saved(tmp_path, small(), tokenizer)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"] = shuffled
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(PairMismatch, match="token 5 is 'w6' there and 'w5' in the target"):
        load(tiny_target().model, tmp_path, tokenizer=tokenizer)


def test_a_damaged_model_is_no_drafter(tmp_path: Path) -> None:
    saved(tmp_path, small())
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="cannot load a causal language model"):
        load(tiny_target().model, tmp_path)


def test_without_a_tokenizer_beside_it_a_target_reads_token_ids(tmp_path: Path) -> None:
    whole, bare = tiny_target().model, saved(tmp_path, tiny_target().model)
    engine = load(bare, "none", dtype=str(whole.dtype).removeprefix("torch."))
    assert engine.tokenizer is None
    (done,), (told,) = (
        each.generate([[3, 4, 5]], PARAMS) for each in (engine, load(whole, "none"))
    )
    assert (done.token_ids, done.text) == (told.token_ids, "")
    with pytest.raises(PromptError, match="none beside the target; give token ids or load with"):
        engine.generate(["w1"], PARAMS)
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / name).write_text("{")
        with pytest.raises(CheckpointError, match="cannot load the tokenizer of"):
            load(bare, "none")
        (tmp_path / name).unlink()


def test_names_that_need_a_directory_say_so() -> None:
    assert "draft_model" not in usable_drafters("pico")
    assert {"jakiro", "none"} <= set(usable_drafters("pico"))
    assert not {"jakiro", "eagle2"} & set(usable_drafters("elsewhere"))
    with pytest.raises(CheckpointError, match="no 'draft_model' is bundled; train one"):
        load("pico", "draft_model")


def test_no_room_for_temporary_files_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match=r"cannot save .*out: .*temporary.*TMPDIR"):
        save_model(small(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_several_templates_is_saved_with_all(tmp_path: Path) -> None:
    tokenizer, templates = word_tokenizer(), {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    tokenizer.chat_template = templates
    save_model(small(), tmp_path / "out", tokenizer)
    assert load_tokenizer(tmp_path / "out").chat_template == templates
