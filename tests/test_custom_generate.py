"""``model.generate(custom_generate=jakiro.decode(...))`` against ``model.generate`` itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, PreTrainedModel, WatermarkingConfig
from transformers.generation import BaseStreamer

import jakiro
from jakiro.errors import ConfigError, RowFailed
from tests.families import FAMILIES

PROMPTS = [[3, 4, 5, 3, 4, 5, 3], [9, 9, 2, 9, 9]]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    built = FAMILIES["llama"]()
    built.generation_config.pad_token_id = 0
    built.generation_config.eos_token_id = 7
    return built


def batch(prompts: list[list[int]]) -> dict[str, Any]:
    """Left-padded ids and their mask."""
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(p)) + p for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


@pytest.mark.parametrize(
    ("prompts", "settings"),
    [
        (PROMPTS, {}),
        (PROMPTS[:1], {"repetition_penalty": 1.3, "min_new_tokens": 12}),
        (PROMPTS[:1], {"no_repeat_ngram_size": 2, "repetition_penalty": 1.1}),
        (PROMPTS[:1], {"bad_words_ids": [[5], [11, 12]]}),
        (PROMPTS[:1], {"min_length": 15}),
        # One token passes these filters.
        (PROMPTS[:1], {"top_p": 0.0, "top_k": 0, "do_sample": True}),
        (PROMPTS[:1], {"min_p": 1.0, "top_k": 0, "do_sample": True}),
        (PROMPTS[:1], {"top_k": 1, "do_sample": True}),
    ],
)
def test_greedy_equals_generate(
    model: PreTrainedModel, prompts: list[list[int]], settings: dict[str, Any]
) -> None:
    inputs = batch(prompts)
    settings = {"max_new_tokens": 24, "do_sample": False} | settings
    wanted = model.generate(**inputs, **settings)
    found = model.generate(**inputs, custom_generate=jakiro.decode("prompt_lookup"), **settings)
    assert torch.equal(found, wanted)


def test_end_tokens_are_those_of_the_call(model: PreTrainedModel) -> None:
    inputs, settings = batch(PROMPTS[:1]), {"max_new_tokens": 24, "do_sample": False}
    answer = model.generate(**inputs, eos_token_id=63, **settings)[0, len(PROMPTS[0]) :].tolist()
    own, other = list(dict.fromkeys(answer))[3:5]
    model.generation_config.eos_token_id = own
    try:
        wanted = model.generate(**inputs, eos_token_id=other, **settings)
        decode = jakiro.decode("prompt_lookup")
        found = model.generate(**inputs, eos_token_id=other, custom_generate=decode, **settings)
    finally:
        model.generation_config.eos_token_id = 7
    assert own in wanted[0, len(PROMPTS[0]) :].tolist(), "the model's own end is passed"
    assert torch.equal(found, wanted)


def test_sampling_follows_the_global_seed_and_not_the_drafter(model: PreTrainedModel) -> None:
    texts = []
    for drafter in ("none", "prompt_lookup", "none"):
        torch.manual_seed(11 if len(texts) < 2 else 12)
        texts.append(
            model.generate(
                **batch(PROMPTS),
                max_new_tokens=24,
                do_sample=True,
                temperature=0.8,
                top_p=0.9,
                custom_generate=jakiro.decode(drafter),
            )
        )
    assert torch.equal(texts[0], texts[1])
    assert texts[0].shape != texts[2].shape or not torch.equal(texts[0], texts[2])


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.pieces: list[Any] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.pieces.append(value.tolist())

    def end(self) -> None:
        self.ended = True


def test_the_bound_streamer_hears_what_generate_would_tell_it(model: PreTrainedModel) -> None:
    """The prompt first (streamers skip it by themselves), then each token, then the end."""
    settings = {"max_new_tokens": 10, "do_sample": False}
    wanted, found = Collector(), Collector()
    model.generate(**batch(PROMPTS[:1]), streamer=wanted, **settings)
    bound = jakiro.decode("prompt_lookup", streamer=found)
    model.generate(**batch(PROMPTS[:1]), custom_generate=bound, **settings)
    assert found.pieces == wanted.pieces
    assert len(found.pieces) == 11
    assert found.ended and wanted.ended


def test_a_dict_is_returned_where_asked_for(model: PreTrainedModel) -> None:
    out = model.generate(
        **batch(PROMPTS[:1]),
        max_new_tokens=5,
        return_dict_in_generate=True,
        custom_generate=jakiro.decode("none"),
    )
    assert out.sequences.shape == (1, len(PROMPTS[0]) + 5)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"typical_p": 0.5, "do_sample": True}, "Typical"),
        ({"watermarking_config": WatermarkingConfig()}, "Watermark"),
        ({"max_time": 3.0}, "MaxTimeCriteria"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    model: PreTrainedModel, settings: dict[str, Any], name: str
) -> None:
    with pytest.raises(ConfigError, match=name):
        model.generate(
            **batch(PROMPTS[:1]),
            max_new_tokens=4,
            custom_generate=jakiro.decode("none"),
            **settings,
        )


def test_embeddings_in_place_of_tokens_are_refused(model: PreTrainedModel) -> None:
    embeddings = model.get_input_embeddings()(torch.tensor(PROMPTS[:1]))
    with pytest.raises(ConfigError, match="inputs_embeds"):
        model.generate(
            inputs_embeds=embeddings, max_new_tokens=4, custom_generate=jakiro.decode("none")
        )


def test_a_processor_that_raises_is_an_error_and_no_short_answer(model: PreTrainedModel) -> None:
    def raising(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] > len(PROMPTS[0]) + 2:
            raise ValueError("no more")
        return scores

    with pytest.raises(RowFailed, match="no more"):
        model.generate(
            **batch(PROMPTS[:1]),
            max_new_tokens=8,
            logits_processor=LogitsProcessorList([raising]),
            custom_generate=jakiro.decode("prompt_lookup"),
        )


def test_a_supplied_cache_is_refused(model: PreTrainedModel) -> None:
    ids = torch.tensor(PROMPTS[:1])
    cache = model(ids[:, :-1], use_cache=True).past_key_values
    with pytest.raises(ConfigError, match="past_key_values"):
        model.generate(
            ids, past_key_values=cache, max_new_tokens=4, custom_generate=jakiro.decode("none")
        )


def test_length_bound_processors_are_refused_for_padded_prompts(model: PreTrainedModel) -> None:
    with pytest.raises(ConfigError, match="padded"):
        model.generate(
            **batch(PROMPTS),
            max_new_tokens=4,
            no_repeat_ngram_size=2,
            custom_generate=jakiro.decode("none"),
        )
