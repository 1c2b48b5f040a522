"""Classes of ``transformers`` that are unlike the families of the conformance suite."""

from __future__ import annotations

import json

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from jakiro.target.target import Target
from scripts.docs import REPORTS, TARGETS, fill_targets
from tests.architectures import look, small

UNLIKE = {
    "camembert": "positions begin behind those of padding",
    "deepseek_v3": "latent attention",
    "doge": "masks of its own for every head",
    "falcon": "attention that takes no other kernel",
    "gemma3n_text": "four streams, and layers that read the keys of lower ones",
    "gemma4_text": "layers that read the keys of lower ones",
    "gpt_neo": "windows by slot",
    "gpt_oss": "sinks",
    "trocr": "gives all logits, whatever is asked for",
}
"""Model type -> what is special."""
FOUND = {
    row["model_type"]: row
    for row in json.loads((REPORTS / "targets.json").read_text("utf-8"))["rows"]
}


@pytest.mark.parametrize("model_type", UNLIKE)
def test_a_class_is_what_the_page_says(model_type: str) -> None:
    name: str | None = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if name is None:
        pytest.skip(f"this transformers has no {model_type}")
    found, wanted = look(model_type, name), FOUND[model_type]
    own = (found.outcome, found.route, found.reads, list(found.views))
    assert own == tuple(wanted[key] for key in ("outcome", "route", "reads", "views"))


def test_a_prompt_has_one_row_of_logits_whatever_the_model_gives() -> None:
    model = small("TrOCRForCausalLM")
    target, prompt = Target(model), [5, 9, 33, 21]
    cache = target.new_cache()
    found = target.prefill(prompt, cache, cache.admit()).logits
    with torch.no_grad():
        wanted = model(torch.tensor([prompt]), logits_to_keep=1).logits
    assert wanted.shape == (1, 4, 64)
    torch.testing.assert_close(found, wanted[:, -1:], atol=0, rtol=0)


def test_the_committed_page_is_filled() -> None:
    page = TARGETS.read_text("utf-8")
    assert fill_targets(page, REPORTS) == page, "the report changed: run make docs"
    assert all(f"`{model_type}`" in page for model_type in FOUND)
