"""Several suggestions from one pass, for completing what is being typed (Superposed Decoding, Shen
et al., arXiv 2405.18400).

k drafts of equal length share one stream: what is fed at each position is the mean of the
embeddings of their last tokens, weighted by the probabilities of the drafts. The one law that
comes out is told apart for each of them by n-grams. So k suggestions cost the forwards of one. They
are not what the model would have said on any of them alone: nothing is promised but for k = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jakiro.engine.detokenize import Detokenizer
from jakiro.engine.engine import Engine
from jakiro.engine.ngrams import NGrams
from jakiro.engine.prompt import Prompt
from jakiro.errors import ConfigError, check_int
from jakiro.target.target import Target

MAX_SUGGESTIONS = 100
"""Each forward weighs 3 k tokens after each of k drafts: work and memory grow with its square."""

_UNKNOWN = -200.0
"""Log score of a token after a draft of which no n-gram knows a continuation."""


@dataclass(frozen=True)
class Suggestion:
    """A continuation of the prompt. ``log_score``: the sum of its tokens' scores, for comparison
    with the others of one call. ``is_finished``: its last token is an end token."""

    token_ids: list[int]
    text: str
    log_score: float
    is_finished: bool


@dataclass(frozen=True)
class _Draft:
    token_ids: tuple[int, ...] = ()
    log_score: float = 0.0
    is_finished: bool = False


class Superposed:
    """Suggests continuations with the target, tokenizer and end tokens of ``engine``; its drafter
    and rule have no part in it.

    Args:
        texts: what n-grams are taken from, as text or token ids: what the user wrote before, for
            example. Without any the drafts share every next token's law.
        alpha: the weight of the n-grams' log-probability beside the model's.
        temperature: of the model's law; low, because it is the law of a mixture of texts.

    Raises:
        ConfigError: a number is outside its range, or the target is not a model as it is.
    """

    def __init__(
        self,
        engine: Engine,
        texts: Sequence[Prompt] = (),
        *,
        alpha: float = 0.54,
        temperature: float = 0.06,
    ) -> None:
        if type(engine.target) is not Target:
            raise ConfigError(
                f"suggestions are those of a model as it is, and this engine has a "
                f"{type(engine.target).__name__} target; load it without a definition"
            )
        if not 0 <= alpha < 1:
            raise ConfigError(f"alpha must be at least 0 and less than 1, got {alpha}")
        if not 0 < temperature < math.inf:
            raise ConfigError(f"temperature must be a number above 0, got {temperature}")
        self._engine, self._alpha, self._temperature = engine, alpha, temperature
        self._ngrams = NGrams(engine.encode(text) for text in texts)
        self.num_forwards = 0

    @torch.inference_mode()
    def suggest(self, prompt: Prompt, k: int = 3, max_new_tokens: int = 10) -> list[Suggestion]:
        """``k`` different continuations of ``prompt``, the best first, from ``max_new_tokens``
        forwards, the prompt's included.

        Raises:
            ConfigError: ``k`` is not in 1 to 100, or ``max_new_tokens`` less than 1.
            PromptError: the prompt is empty, too long, or there is no tokenizer for it.
        """
        check_int("k", k, 1, MAX_SUGGESTIONS)
        check_int("max_new_tokens", max_new_tokens, 1)
        target, ids = self._engine.target, self._engine.encode(prompt)
        target.check_prompt(ids)
        cache = target.new_cache()
        row = cache.admit()
        logits = target.prefill(ids, cache, row).logits[0, -1]
        self.num_forwards += 1
        drafts = self._begun(logits, k)
        for position in range(len(ids), min(len(ids) + max_new_tokens, target.context_length) - 1):
            if all(draft.is_finished for draft in drafts):
                break
            cache.aim(slice(row, row + 1), 1)
            out = target.model(
                inputs_embeds=self._superposed(drafts),
                position_ids=torch.tensor([[position]], device=target.device),
                past_key_values=cache,
                use_cache=True,
            )
            cache.advance(row, 1)
            self.num_forwards += 1
            drafts = self._extended(drafts, ids, out.logits[0, -1], k)
        return [self._suggestion(draft, ids) for draft in drafts]

    def _superposed(self, drafts: Sequence[_Draft]) -> Tensor:
        """[1, 1, H]: the embeddings of the last tokens, by the probabilities of the drafts that are
        not finished."""
        going = [draft for draft in drafts if not draft.is_finished]
        last = torch.tensor([d.token_ids[-1] for d in going], device=self._engine.target.device)
        scores = torch.tensor([draft.log_score for draft in going], dtype=torch.float64)
        embeddings = self._engine.target.embed(last)
        weights = scores.softmax(0).to(embeddings)
        return (weights @ embeddings)[None, None]

    def _begun(self, logits: Tensor, k: int) -> list[_Draft]:
        """A draft for each of the ``k`` likeliest tokens, whatever n-grams say: else a few known
        phrases would be all there is."""
        ends, best = self._engine.eos_ids, self._likeliest(logits, k)
        return [_Draft((token,), score, token in ends) for token, score in best.items()]

    def _likeliest(self, logits: Tensor, count: int) -> dict[int, float]:
        """The log scores of ``count`` tokens, the best first; of equal ones the first first, as in
        greedy decoding."""
        law = (logits.double() / self._temperature).log_softmax(-1)
        least = logits.topk(min(count, len(logits))).values[-1]
        likely = (logits >= least).nonzero()[:, 0]
        best = likely[logits[likely].sort(descending=True, stable=True).indices[:count]]
        return dict(zip(best.tolist(), law[best].tolist(), strict=True))

    def _extended(
        self, drafts: Sequence[_Draft], prompt: list[int], logits: Tensor, k: int
    ) -> list[_Draft]:
        """The ``k`` best of all drafts, each unfinished one with each of the likeliest tokens."""
        likely = self._likeliest(logits, 3 * k)
        found = [draft for draft in drafts if draft.is_finished]
        for draft in drafts:
            if draft.is_finished:
                continue
            known = self._ngrams.law([*prompt, *draft.token_ids]) if self._alpha else {}
            scores = self._scores(likely, known)
            found += [
                _Draft(
                    (*draft.token_ids, token),
                    draft.log_score + score,
                    token in self._engine.eos_ids,
                )
                for token, score in scores.items()
            ]
        return sorted(found, key=lambda draft: -draft.log_score)[:k]

    def _scores(self, likely: dict[int, float], known: dict[int, float]) -> dict[int, float]:
        """Log scores of the ``likely`` tokens after a draft, of which n-grams know what is
        ``known``: of those tokens only, if there are any."""
        share = 1 - self._alpha
        shared = [token for token in likely if token in known]
        if not shared:
            penalty = _UNKNOWN if self._alpha else 0.0
            return {token: share * log_prob + penalty for token, log_prob in likely.items()}
        return {t: share * likely[t] + self._alpha * math.log(known[t]) for t in shared}

    def _suggestion(self, draft: _Draft, prompt: list[int]) -> Suggestion:
        ids, text = list(draft.token_ids), ""
        if (tokenizer := self._engine.tokenizer) is not None:
            reader = Detokenizer(tokenizer, prompt_ids=prompt)
            for token in ids[:-1] if draft.is_finished else ids:
                reader.push(token)
            reader.finish()
            text = reader.text
        return Suggestion(ids, text, draft.log_score, draft.is_finished)
