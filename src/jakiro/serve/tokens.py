"""Single tokens as clients see them, and their log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jakiro.engine.detokenize import REPLACEMENT, Tokenizer
from jakiro.engine.request import TokenLogprobs
from jakiro.serve.answers import ChatLogprobs, TextLogprobs, TokenLogprob, TopLogprob

FLOOR = -9999.0
"""What clients are told instead of minus infinity, which JSON does not have."""


class Tokens:
    """Shows single tokens. Part of a character has no text of its own and no ``bytes``."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def text(self, token: int) -> str:
        """A token alone, special ones by name."""
        return self._tokenizer.decode([token], skip_special_tokens=False)

    def pieces(self, before: int | None, tokens: Sequence[int]) -> list[str]:
        """What each of ``tokens`` adds to a text in which ``before`` comes before them."""
        texts, left = [], [] if before is None else [before]
        for token in tokens:
            known = self._tokenizer.decode(left, skip_special_tokens=False) if left else ""
            whole = self._tokenizer.decode([*left, token], skip_special_tokens=False)
            texts.append(whole[len(known) :])
            left = [token]
        return texts

    def chat_logprobs(self, entries: Sequence[TokenLogprobs]) -> ChatLogprobs:
        """Of chat completions."""
        content = []
        for entry in entries:
            own = self._entry(entry.token_id, entry.logprob)
            best = [self._entry(token, logprob) for token, logprob in entry.top.items()]
            content.append(TokenLogprob(**own.model_dump(), top_logprobs=best))
        return ChatLogprobs(content=content)

    def text_logprobs(self, entries: Sequence[TokenLogprobs], offset: int) -> TextLogprobs:
        """Of text completions; ``offset``: characters of the answer before these tokens."""
        texts = [self.text(entry.token_id) for entry in entries]
        starts = [offset + sum(map(len, texts[:place])) for place in range(len(texts))]
        return TextLogprobs(
            tokens=texts,
            token_logprobs=[max(entry.logprob, FLOOR) for entry in entries],
            top_logprobs=[self._by_text(entry.top) for entry in entries],
            text_offset=starts,
        )

    def _by_text(self, top: Mapping[int, float]) -> dict[str, float]:
        """The likeliest token of each text: parts of characters all read alike."""
        found: dict[str, float] = {}
        for token, logprob in top.items():
            text = self.text(token)
            found[text] = max(logprob, FLOOR, found.get(text, FLOOR))
        return found

    def _entry(self, token: int, logprob: float) -> TopLogprob:
        text = self.text(token)
        spelled = None if REPLACEMENT in text else list(text.encode())
        return TopLogprob(token=text, logprob=max(logprob, FLOOR), bytes=spelled)
