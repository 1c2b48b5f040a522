"""The ``transformers`` way in: ``model.generate(**inputs, custom_generate=jakiro.decode(...))``.

``generate`` prepares everything and calls us with token ids, logits processors and a generation
config; we translate, decode, and return what ``generate`` would return.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation.utils import GenerateDecoderOnlyOutput

from jakiro.api import load
from jakiro.drafters.base import Drafter
from jakiro.engine.engine import Engine
from jakiro.errors import ConfigError, RowFailed
from jakiro.sampling.params import SamplingParams
from jakiro.tree.shapes import TreePlan

# What ``SamplingParams`` does itself, in the same order and with the same formulas.
_WARPERS = frozenset(f"{name}LogitsWarper" for name in ("Temperature", "TopK", "TopP", "MinP")) | {
    "LogitNormalization"
}
_PARAMETERS = frozenset(
    f"{name}LogitsProcessor" for name in ("RepetitionPenalty", "MinLength", "MinNewTokensLength")
)
# They run after temperature in ``transformers``; extra processors run before it here.
_LATE = ("TopH", "Typical", "Epsilon", "Eta", "Watermark", "SynthID")
_KNOWN_CRITERIA = frozenset({"MaxLengthCriteria", "EosTokenCriteria"})


def decode(
    drafter: str | Path | PreTrainedModel | Drafter,
    *,
    tree: TreePlan | str | None = None,
    streamer: Any = None,
    tokenizer: Any = None,
    stop: Sequence[str] = (),
) -> Callable[..., Any]:
    """A callable for ``generate(custom_generate=...)``; ``drafter`` and ``tree`` as in ``load``.

    Settings come from the generation config, seeds from torch's global generator. ``streamer``,
    ``tokenizer`` and ``stop`` are bound here because ``generate`` does not hand them on to a
    callable. The engine is kept for the model it was first used with.

    Raises (when generating):
        ConfigError: for beams, guidance, supplied caches, stopping criteria of one's own and
            warpers that run after temperature, each named.
        RowFailed: an answer could not be finished.
        And what ``load`` raises, at the first call.
    """
    engines: dict[int, Engine] = {}

    def generate(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Any:
        _refuse(generation_config, stopping_criteria, model_kwargs, streamer, input_ids)
        if id(model) not in engines:
            engines.clear()
            engines[id(model)] = load(model, drafter, tokenizer=tokenizer, tree=tree)
        engine = engines[id(model)]
        mask = model_kwargs.get("attention_mask")
        prompts = [
            row.tolist() if mask is None else row[mask[i].bool()].tolist()
            for i, row in enumerate(input_ids)
        ]
        processors = _extra(logits_processor)
        if processors and mask is not None and not mask.all():
            names = ", ".join(type(processor).__name__ for processor in processors)
            raise ConfigError(f"{names} cannot be used with padded prompts; generate one by one")
        params = _params(generation_config, input_ids.shape[1], tuple(stop), bool(processors))
        if streamer is None:
            done = engine.generate(prompts, params, processors=processors)
            failed = [completion.error for completion in done if completion.error]
            if failed:
                raise RowFailed(failed[0])
            answers = [completion.token_ids for completion in done]
        else:
            answers = [[]]
            streamer.put(input_ids.cpu())
            for chunk in engine.stream(prompts[0], params, processors=processors):
                answers[0] += chunk.token_ids
                for token in chunk.token_ids:
                    streamer.put(torch.tensor([token]))
            streamer.end()
        return _sequences(input_ids, answers, generation_config)

    return generate


def _refuse(
    config: GenerationConfig, criteria: Any, kwargs: dict[str, Any], streamer: Any, ids: Tensor
) -> None:
    """Raise ``ConfigError`` for what speculative decoding of one answer per row cannot do."""
    cache = kwargs.get("past_key_values")
    strange = [type(c).__name__ for c in criteria if type(c).__name__ not in _KNOWN_CRITERIA]
    reasons = {
        f"num_beams={config.num_beams}": (config.num_beams or 1) > 1,
        f"guidance_scale={config.guidance_scale}": config.guidance_scale not in (None, 1, 1.0),
        "a supplied past_key_values": cache is not None and cache.get_seq_length() > 0,
        "inputs_embeds": kwargs.get("inputs_embeds") is not None,
        f"the stopping criterion {', '.join(strange)} (use decode(stop=...))": bool(strange),
        "output_scores, output_logits and their like": any(
            (config.output_scores, config.output_logits, config.output_attentions)
        )
        or bool(config.output_hidden_states),
        "a streamer for more than one prompt": streamer is not None and len(ids) > 1,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ConfigError(f"jakiro.decode does not support {reason}")


def _extra(processors: LogitsProcessorList) -> list[Any]:
    """The processors to run as they are; none if ``SamplingParams`` covers all of them."""
    for processor in processors:
        if type(processor).__name__.startswith(_LATE):
            raise ConfigError(f"jakiro.decode does not support {type(processor).__name__}")
    before = [p for p in processors if type(p).__name__ not in _WARPERS]
    covered = all(type(p).__name__ in _PARAMETERS for p in before)
    return [] if covered else before


def _params(
    config: GenerationConfig, prompt_length: int, stop: tuple[str, ...], has_extra: bool
) -> SamplingParams:
    """The generation config as ``SamplingParams``; extra processors bring their own penalties."""
    ends = config.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [int(ends)]
    shortest = max(config.min_new_tokens or 0, (config.min_length or 0) - prompt_length)
    return SamplingParams(
        max_new_tokens=int(config.max_length) - prompt_length,
        temperature=float(config.temperature or 1.0) if config.do_sample else 0.0,
        top_k=int(config.top_k or 0),
        top_p=1.0 if config.top_p is None else float(config.top_p),
        min_p=float(config.min_p or 0.0),
        repetition_penalty=1.0 if has_extra else float(config.repetition_penalty or 1.0),
        min_new_tokens=0 if has_extra else shortest,
        stop=stop,
        stop_token_ids=tuple(ends),
        ignore_eos=True,  # the end tokens of this call, and not the model's own besides
    )


def _sequences(ids: Tensor, answers: list[list[int]], config: GenerationConfig) -> Any:
    """Prompt and answer [B, T], right-padded, in the form the config asks for."""
    pad = config.pad_token_id
    if pad is None:
        ends = config.eos_token_id
        pad = (ends[0] if isinstance(ends, list) else ends) or 0
    longest = max(map(len, answers))
    padded = [answer + [pad] * (longest - len(answer)) for answer in answers]
    answer = torch.tensor(padded, device=ids.device, dtype=ids.dtype)
    sequences: Any = torch.cat([ids, answer], 1)
    if config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences)
    return sequences
