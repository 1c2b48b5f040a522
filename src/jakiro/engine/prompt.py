"""From what a user writes to token ids."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, Protocol

from jakiro.errors import PromptError

Message = dict[str, str]
Prompt = str | list[int] | list[Message]
"""Text, token ids, or a conversation for the tokenizer's chat template."""


class PromptTokenizer(Protocol):
    """What the engine asks of a tokenizer: the two methods of ``transformers`` tokenizers."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> str: ...

    def __call__(self, text: str, *, add_special_tokens: bool = ...) -> Any: ...

    def apply_chat_template(self, conversation: list[Message], **kwargs: Any) -> Any: ...


def encode(
    tokenizer: PromptTokenizer | None, prompt: Prompt, template: Mapping[str, Any]
) -> list[int]:
    """Token ids of ``prompt``; a conversation goes through the chat template, which is given
    ``template`` too.

    Raises:
        PromptError: the prompt is empty, of another kind or mixed, or there is no tokenizer for it.
    """
    if not isinstance(prompt, (str, list)):
        raise PromptError(
            "a prompt is a text, a list of token ids or a list of messages, got "
            f"{type(prompt).__name__}; of a tensor, take .tolist()"
        )
    if not prompt:
        raise PromptError("the prompt is empty; give at least one token")
    if not isinstance(prompt, str):
        _check_items(prompt)
    if not isinstance(prompt, str) and isinstance(prompt[0], int):
        return list(prompt)
    if tokenizer is None:
        raise PromptError(
            "text prompts need a tokenizer, and there is none beside the target; give token ids "
            "or load with tokenizer="
        )
    if isinstance(prompt, str):
        return _tokens(tokenizer, prompt)
    try:
        rendered = tokenizer.apply_chat_template(
            list(prompt), add_generation_prompt=True, tokenize=False, **template
        )
    except Exception as error:  # templates raise whatever they like
        raise PromptError(f"the chat template refuses the conversation: {error}") from error
    return _tokens(tokenizer, rendered, add_special_tokens=False)


def _check_items(prompt: list[int] | list[Message]) -> None:
    """Raise ``PromptError`` unless all are token ids, or all of them messages."""
    kind: type = Mapping if isinstance(prompt[0], Mapping) else int
    for place, each in enumerate(prompt):
        if not isinstance(each, kind) or isinstance(each, bool):
            raise PromptError(
                "a prompt that is a list has token ids (int) only or messages (dict) only, got "
                f"{reprlib.repr(each)} ({type(each).__name__}) at place {place}; write ids as "
                "int, and several prompts as generate([first, second])"
            )


def _tokens(tokenizer: PromptTokenizer, text: str, **settings: bool) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"the prompt is no Unicode text: {error}") from error
    return list(tokenizer(text, **settings)["input_ids"])
