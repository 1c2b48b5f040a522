"""Answers that follow a grammar (mostly that of a JSON schema), drafted all the same.

A grammar is a logits processor: at every node of a draft tree it bans the tokens that cannot follow
the node's own path. What it allows depends on that path alone, so constrained answers are as
lossless as any; a drafted token that breaks the grammar was banned at its parent, and is not
accepted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from jakiro.errors import ConfigError

WHITESPACE = "\\n?[ ]{0,8}"
"""Between the parts of a JSON text. Without a bound a small model may never stop indenting."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """In the language of llguidance."""

    text: str
    field: str
    """Of a request, that asks for it."""

    @classmethod
    def of_schema(cls, schema: Any) -> Grammar:
        """Of the texts of a JSON schema, a JSON value. Raises ``ConfigError``: it is none."""
        try:
            text = json.dumps(schema, allow_nan=False)
            text = LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_pattern": WHITESPACE}
            )
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"response_format: the schema cannot be used: {error}") from error
        return cls(text, "response_format")


class Grammars:
    """Compiles grammars for one target. ``tokenizer`` is a fast one of ``transformers``;
    ``vocab_size`` the number of its logits, ``end_ids`` its end tokens."""

    def __init__(self, tokenizer: Any, vocab_size: int, end_ids: list[int]) -> None:
        self._tokenizer, self._vocab_size, self._end_ids = tokenizer, vocab_size, end_ids
        self._wrapped: LLTokenizer | None = None

    def compile(self, grammar: Grammar) -> Compiled:
        """``grammar`` at the start of a text. May take a while.

        Raises:
            ConfigError: it cannot be fulfilled or is not supported, or the tokenizer cannot be
                constrained.
        """
        wrapped = self._wrap(grammar.field)
        problem = LLMatcher.validate_grammar(grammar.text, wrapped)
        matcher = LLMatcher(wrapped, grammar.text, log_level=0)
        problem = matcher.get_error() or problem
        if problem:
            raise ConfigError(f"{grammar.field}: the schema cannot be used: {problem}")
        return Compiled(matcher, frozenset(self._end_ids), grammar.field)

    def _wrap(self, field: str) -> LLTokenizer:
        if self._wrapped is None:
            try:
                text = self._tokenizer.backend_tokenizer.to_str()
                self._wrapped = LLTokenizer(text, n_vocab=self._vocab_size, eos_token=self._end_ids)
            except (AttributeError, ValueError) as error:
                raise ConfigError(
                    f"{field}: the tokenizer of this model cannot be constrained ({error})"
                ) from error
        return self._wrapped


@dataclass(frozen=True, slots=True)
class Compiled:
    """A grammar for one target, with its ends of text."""

    start: LLMatcher
    end_ids: frozenset[int]
    field: str

    def constraint(self, num_prompt: int) -> Constraint:
        """A processor for one answer, to a prompt of ``num_prompt`` tokens."""
        return Constraint(self, num_prompt)


class Constraint:
    """Bans what the grammar does not allow, node by node: a ``LogitsProcessor`` of one answer.

    One matcher walks from path to path by taking back what they do not share, so the history is
    parsed once, not once per node.
    """

    def __init__(self, compiled: Compiled, num_prompt: int) -> None:
        self._start, self._end_ids = compiled.start, compiled.end_ids
        self._num_prompt, self.field = num_prompt, compiled.field
        self._matcher = self._start.deep_copy()
        self._path: list[int] = []
        self.error: str | None = None
        """Why the grammar last gave up (too complex to go on with)."""

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """``ids`` [K, T], ``logits`` [K, V] after them; every path of K has the same length."""
        logits = logits.clone()
        for row, path in enumerate(ids[:, self._num_prompt :].tolist()):
            if self._reach(path):
                table = self._matcher.compute_logit_bias()
                if not self._matcher.is_error():
                    logits[row, ~_allowed(table, logits)] = -torch.inf
            if self._matcher.is_error():
                # Nothing may follow here, which fails this answer if it gets here, and no other.
                logits[row] = -torch.inf
                self.error = self._matcher.get_error()
                self._matcher, self._path = self._start.deep_copy(), []
        return logits

    def _reach(self, path: list[int]) -> bool:
        """Bring the matcher to the end of ``path``; False: the grammar has no such text, so
        nobody will ask what follows."""
        if not self._end_ids.isdisjoint(path):
            return False
        shared = _num_shared(self._path, path)
        self._matcher.rollback(len(self._path) - shared)
        taken = self._matcher.try_consume_tokens(path[shared:])
        self._path = path[: shared + taken]
        return len(self._path) == len(path)


def _allowed(table: bytes, logits: Tensor) -> Tensor:
    """[V] bool, from one byte per token."""
    flags = torch.frombuffer(bytearray(table), dtype=torch.uint8)
    return flags[: logits.shape[-1]].bool().to(logits.device)


def _num_shared(one: list[int], two: list[int]) -> int:
    """Length of the common prefix."""
    if two[: len(one)] == one:
        return len(one)
    pairs = enumerate(zip(one, two, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(two)))
