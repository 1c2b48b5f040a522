"""From a body of the API to what the engine is asked."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from jakiro.engine.engine import Engine
from jakiro.errors import ConfigError
from jakiro.sampling.params import MIN_TEMPERATURE, SamplingParams
from jakiro.serve import calls
from jakiro.serve.constrain import Grammar
from jakiro.serve.conversation import ChatMessage, Tool
from jakiro.serve.errors import ApiError
from jakiro.serve.schema import NUM_SEEDS, Sampled


def sampling_params(asked: Sampled, room: int) -> SamplingParams:
    """The settings of ``asked`` for one prompt that leaves ``room`` tokens for an answer, with the
    defaults of the OpenAI API. All choices of the prompt share a seed, drawn here if none is given;
    what is nearly greedy is greedy. Raises ``ApiError`` and ``ConfigError``."""
    stop = asked.stop or ()
    num_wanted, min_tokens = min(asked.num_wanted or room, room), asked.min_tokens or 0
    if min_tokens > num_wanted:
        raise ApiError(
            400,
            f"min_tokens is {min_tokens}, but the answer may have {num_wanted} tokens; lower it "
            "or raise max_tokens",
            param="min_tokens",
        )
    temperature = 1.0 if asked.temperature is None else asked.temperature
    return SamplingParams(
        max_new_tokens=num_wanted,
        temperature=0.0 if temperature < MIN_TEMPERATURE else temperature,
        top_k=max(0, asked.top_k or 0),
        top_p=1.0 if asked.top_p is None else asked.top_p,
        min_p=asked.min_p or 0.0,
        repetition_penalty=asked.repetition_penalty or 1.0,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        logit_bias=_bias(asked.logit_bias or {}),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(asked.stop_token_ids or ()),
        ignore_eos=bool(asked.ignore_eos),
        seed=secrets.randbelow(NUM_SEEDS) if asked.seed is None else asked.seed % NUM_SEEDS,
        min_new_tokens=min_tokens,
        logprobs=asked.num_alternatives,
        draft=asked.is_drafted,
        trace=asked.is_traced,
    )


def conversation_ids(
    engine: Engine, messages: Sequence[ChatMessage], tools: Sequence[Tool]
) -> list[int]:
    """Token ids of a conversation in the format of the model. Raises ``PromptError``."""
    if not getattr(engine.tokenizer, "chat_template", None):
        raise ApiError(
            400, "this model has no chat template; use /v1/completions", code="no_chat_template"
        )
    turns: list[Any] = [message.as_template() for message in messages]
    return engine.encode(turns, tools=[tool.as_template() for tool in tools] or None)


def grammar_of(asked: Sampled, tokenizer: Any) -> Grammar | None:
    """What an answer has to follow; None: any text will do.

    Raises:
        ApiError: there is no tool of the kind that has to be called.
        ConfigError: other fields contradict it, or a schema is none.
    """
    wanted, forced = asked.response_format, asked.forced
    if forced is None and not asked.wants_json:
        return None
    if forced is not None and asked.wants_json:
        raise ConfigError(
            "response_format and a tool_choice that asks for a call exclude each other"
        )
    for name, is_given in {"ignore_eos": asked.ignore_eos, "min_tokens": asked.min_tokens}.items():
        if is_given:
            raise ConfigError(
                f"{name} asks for text after the end of the JSON; leave it out with "
                "response_format and with a tool_choice that asks for a call"
            )
    if forced is not None:
        if not forced:
            told = "tool_choice asks for a tool that is not among tools"
            raise ApiError(400, told, param="tool_choice")
        return calls.grammar(forced, asked.is_single_call, tokenizer)
    named = None if wanted is None else wanted.json_schema
    given = None if named is None else named.json_schema
    return Grammar.of_schema({"type": "object"} if given is None else given)


def _bias(given: dict[str, float]) -> dict[int, float]:
    """``logit_bias`` with its keys as numbers."""
    for key in given:
        if not (key.isascii() and key.isdigit() and len(key) < 19):
            raise ConfigError(f"logit_bias maps token ids to numbers, got the id {key[:40]!r}")
    return {int(key): value for key, value in given.items()}
