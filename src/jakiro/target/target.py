"""The model whose words are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from jakiro.cache.deferred import Deferred
from jakiro.cache.kv_cache import KVCache
from jakiro.cache.mask import additive, attendable, positions, slot_positions, tree_mask
from jakiro.errors import ConfigError, PromptError, TargetRefused
from jakiro.target.attention import DEFERRED, GROUPED, attends
from jakiro.target.compiled import Compiled, for_compiling
from jakiro.target.families import causal_lm, context_length, head_transform, windows
from jakiro.target.features import LAST_FEATURE, NO_FEATURES, FeatureSpec
from jakiro.target.modules import rows_of, shared_copy
from jakiro.target.output import TargetOutput
from jakiro.target.packed import PackedLinear, packed_view
from jakiro.target.probe import Route, probe
from jakiro.target.registered import tree_attention
from jakiro.tree.token_tree import TokenTree


class Target:
    """A loaded causal LM, driven through its public ``forward`` and never changed.

    It owns no request state: keys and values live in the ``KVCache`` of the batch. ``route`` says
    how trees reach the model; ``feature_refusal`` why its features cannot be used (None: they
    can). Both are found by a probe at load. Raises ``TargetRefused``, naming the reason.
    """

    route: Route
    feature_refusal: str | None
    view_refusal: str | None = None
    """Why no view may draft in its caches; None: views may."""
    _compiled: Compiled | None = None

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = causal_lm(model)
        self.config: Any = self.model.config
        packed = packed_view(self.model)
        is_packed = packed is not self.model
        self._runner = shared_copy(packed, attends(GROUPED)) if is_packed else self.model
        self.windows = windows(self.config)
        self._head_transform = head_transform(self.config)
        self.num_layers = int(self.config.num_hidden_layers)
        self.hidden_size = int(self.config.hidden_size)
        self.vocab_size = int(self.model.get_output_embeddings().weight.shape[0])
        self.context_length = context_length(self.config)
        self.route, self.feature_refusal = "mask", None
        self.route, self.feature_refusal = probe(self)

    @property
    def device(self) -> torch.device:
        """Where token ids go in and logits come out."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def num_parameters(self) -> int:
        number: int = self.model.num_parameters()
        return number

    def compile(self, backend: str) -> None:
        """Let trees be verified by a compiled model from now on. Each kind of forward is compiled
        when it first comes (``compile_ms``), or is ``met``. Of prefill, the linear layers alone are
        others.

        Raises:
            ConfigError: this model's attention cannot be taken out of the graph, or there is no
                compiler.
        """
        if self.route != "mask" or self.config._attn_implementation != "sdpa":
            raise ConfigError(
                f"this {self.config.model_type} cannot be compiled: its attention is "
                f"{self.config._attn_implementation!r} and trees reach it by {self.route}, where "
                "'sdpa' and 'mask' are needed; leave out compile"
            )
        self._runner = for_compiling(self._runner, backend)
        deferred = shared_copy(self._runner, attends(DEFERRED))
        self._compiled = Compiled(deferred, backend, "past_key_values")

    @torch.inference_mode()
    def meet(self, needs: FeatureSpec) -> None:
        """Compile the kinds of forward there are with features that a drafter ``needs``: one row,
        and several. On a GPU they are too many and come when they come. Raises what
        ``check_features`` raises."""
        if self._compiled is None or self._compiled.is_bucketed:
            return
        if needs != NO_FEATURES:
            self.check_features(needs)
        for rows in (1, 2):
            tokens = torch.zeros(1, rows, dtype=torch.int64, device=self.device)
            none = torch.zeros(1, 1, rows, rows, dtype=self.dtype, device=self.device)
            mask = dict.fromkeys(self.windows, none) if len(self.windows) > 1 else none
            self.forward(tokens, torch.zeros_like(tokens), mask, Deferred(), needs)

    @property
    def compile_ms(self) -> float:
        """What the first forwards of all sizes compiled so far took."""
        return 0.0 if self._compiled is None else self._compiled.compile_ms

    def new_cache(self) -> KVCache:
        """An empty cache with one layer per layer of the model."""
        return KVCache(self.num_layers)

    def forward(
        self,
        tokens: Tensor,
        where: Tensor | None,
        mask: Tensor | dict[str, Tensor] | None,
        cache: Cache | None = None,
        needs: FeatureSpec = NO_FEATURES,
        keep: int = 0,
    ) -> TargetOutput:
        """One forward: ``tokens`` [B, N] at positions ``where`` [B, N] (None: as the model counts).

        ``mask``: additive [B, 1, N, S], one per layer type where the model has several; None:
        causal, slot by slot. ``keep``: logits of the last ``keep`` positions only (0: all).
        """
        run = self._run_by(tokens) if self._compiled is None or mask is None else self._compiled
        out = run(
            input_ids=tokens,
            position_ids=where,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
            output_hidden_states=_wanted_states(needs),
            logits_to_keep=keep,
        )
        # Some models (TrOCR) take ``logits_to_keep`` and return all of them.
        logits = out.logits[:, -keep:]
        if not needs.indices:
            return TargetOutput(logits)
        states = [out.hidden_states[index].to(logits.device) for index in needs.indices]
        return TargetOutput(logits, states[0] if len(states) == 1 else torch.cat(states, -1))

    @torch.no_grad()
    def prefill(
        self, ids: list[int], cache: KVCache, row: int, needs: FeatureSpec = NO_FEATURES
    ) -> TargetOutput:
        """Feed a prompt, or the next part of one, to ``row``, alone and without a mask, so that the
        fast attention kernel stays. Returns the logits [1, 1, V] after the last token and the
        features [1, T, F] of ``ids``."""
        self.check_prompt(ids)
        start = cache.lengths[row]
        cache.aim(slice(row, row + 1), len(ids))
        tokens = torch.tensor([ids], device=self.device)
        where = torch.arange(start, start + len(ids), device=self.device)[None]
        out = self.forward(tokens, where, None, cache, needs, keep=1)
        cache.advance(row, len(ids))
        return out

    @torch.no_grad()
    def verify(
        self,
        tree: TokenTree,
        cache: KVCache,
        needs: FeatureSpec = NO_FEATURES,
        num_known: int = 0,
    ) -> TargetOutput:
        """Logits [B, N, V] and features [B, N, F] of every node of a tree in one forward.

        ``num_known``: so many nodes, the first ones, were verified before as the smaller tree they
        make and nothing was committed since; they are not fed again, and N counts the others.
        A target of route ``chain`` takes its rows one by one, and only chains (``ConfigError``).
        """
        # A row whose prompt is still being fed lies behind those of the tree.
        lengths = cache.lengths[: tree.num_rows]
        if self.route == "chain" and (tree.num_nodes > 1 or len(set(lengths)) > 1):
            return self._verify_chains(tree, cache, needs, num_known)
        num_fed = tree.num_nodes - num_known
        if self._compiled is not None:
            tree = tree.padded(num_known + self._compiled.bucket(num_fed))
        span = cache.aim(slice(0, tree.num_rows), tree.num_nodes - num_known, num_known)
        tokens = tree.tokens[:, num_known:]
        where = positions(tree, lengths)[:, num_known:]
        if max(lengths) + tree.num_nodes > self.context_length:
            # Padding nodes may lie past the edge; learned positions have no entry there.
            where = where.clamp_max(self.context_length - 1)
        is_lone = tokens.shape[1] == 1 and self._compiled is None
        if is_lone and cache.aligned and (not num_known or tree.is_chain):
            # Nothing to hide: every slot is its own position, and the model knows its windows.
            return self.forward(tokens, where, None, cache, needs)
        if self.route == "registered":
            visible = attendable(tree.ancestors, lengths, span)[:, num_known:]
            seen = visible, where, slot_positions(tree, lengths, span)
            with tree_attention(self._run_by(tokens), *seen):
                return self.forward(tokens, where, None, cache, needs)
        masks = {
            name: additive(tree_mask(tree, lengths, span, window)[:, num_known:], self.dtype)
            for name, window in self.windows.items()
        }
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        return self.forward(tokens, where, mask, cache, needs).first(num_fed)

    def _run_by(self, tokens: Tensor) -> Any:
        """The module that is called with ``tokens``. Packing is for several; one is spared the
        detour."""
        return self.model if tokens.numel() == 1 else self._runner

    def _verify_chains(
        self, tree: TokenTree, cache: KVCache, needs: FeatureSpec, num_known: int
    ) -> TargetOutput:
        """One maskless forward per row: in a chain, slots are positions."""
        if not tree.is_chain:
            raise ConfigError(
                f"{self.config.model_type} can only check chains, but the draft branches; "
                "use a chain, for example chain:5"
            )
        tokens = tree.tokens[:, num_known:]
        steps = torch.arange(num_known, tree.num_nodes, device=self.device)
        outs = []
        for row, length in enumerate(cache.lengths[: tree.num_rows]):
            cache.aim(slice(row, row + 1), len(steps), num_known)
            where = (length + steps).clamp_max(self.context_length - 1)[None]
            outs.append(self.forward(tokens[row : row + 1], where, None, cache, needs))
        features = [out.features for out in outs if out.features is not None]
        return TargetOutput(
            torch.cat([out.logits for out in outs]), torch.cat(features) if features else None
        )

    def check_features(self, needs: FeatureSpec = LAST_FEATURE) -> None:
        """Raise ``TargetRefused`` unless drafters may read this target's features and head, and
        ``ConfigError`` where it has not all layers that are needed."""
        if self.feature_refusal:
            raise TargetRefused(
                f"drafters that read features cannot work with this {self.config.model_type}: "
                f"{self.feature_refusal}. Use one that reads tokens only, like prompt_lookup"
            )
        if not all(0 <= layer < self.num_layers for layer in needs.layers):
            raise ConfigError(
                f"streams can be read at the layers 0 to {self.num_layers - 1} of this target, not "
                f"at {', '.join(map(str, needs.layers))}; name others, or take another drafter"
            )

    @torch.no_grad()
    def features(self, ids: Tensor, lengths: Tensor, needs: FeatureSpec) -> Tensor:
        """Features [B, T, F] of right-padded ``ids`` [B, T]: a plain causal forward, for training.

        Causality hides the padding behind ``lengths`` from every real position.
        """
        where = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        padding = where >= lengths[:, None]
        out = self.forward(ids.masked_fill(padding, 0), where, None, None, needs, keep=1)
        assert out.features is not None
        return out.features

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings [.., H] of token ids [..]."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings

    def lm_head(self, features: Tensor) -> Tensor:
        """Logits [.., V] of last features [.., H]: head, then the family's scale and soft cap."""
        head = self._runner.get_output_embeddings()
        is_packed = isinstance(head, PackedLinear)
        return self._head_transform(head(features, is_warm=True) if is_packed else head(features))

    def lm_head_of(self, ids: Tensor) -> Callable[[Tensor], Tensor]:
        """``lm_head`` for the tokens ``ids`` [D] alone: from [.., H] to [.., D]. The rows of the
        head are copied."""
        head = packed_view(rows_of(self.model.get_output_embeddings(), ids))
        return lambda features: self._head_transform(head(features))

    def fingerprint(self) -> dict[str, Any]:
        """What a drafter checkpoint remembers of its target: sizes and a hash of the embedding.

        The hash covers the embeddings of 64 evenly spaced tokens, rounded to bfloat16, so that it
        is the same in whichever precision the target was loaded.
        """
        last = self.model.get_input_embeddings().weight.shape[0] - 1
        with torch.no_grad():
            sample = self.embed(torch.linspace(0, last, 64, device=self.device).long())
        rounded = sample.to(torch.bfloat16).float()
        digest = hashlib.sha256(rounded.cpu().contiguous().numpy().tobytes())
        return {
            "model_type": self.config.model_type,
            "hidden_size": self.hidden_size,
            "vocab_size": self.vocab_size,
            "num_layers": self.num_layers,
            "embedding_sha256": digest.hexdigest(),
        }

    def check_prompt(self, ids: list[int]) -> None:
        """Raise ``PromptError`` unless ``ids`` can be fed and one token added."""
        if not ids:
            raise PromptError("the prompt is empty; give at least one token")
        if len(ids) >= self.context_length:
            raise PromptError(
                f"the prompt has {len(ids)} tokens, but the context of the target holds "
                f"{self.context_length} and one must be left to answer; shorten the prompt"
            )
        if not 0 <= min(ids) <= max(ids) < self.vocab_size:
            strange = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise PromptError(
                f"token id {strange} is not in the vocabulary of the target "
                f"(0 to {self.vocab_size - 1}); use the tokenizer of the target"
            )


def _wanted_states(needs: FeatureSpec) -> bool | int:
    """What ``output_hidden_states`` should say: the one number where the last state is all, else
    all of them or none. (Lists of numbers mean other states in 5.19 than in 5.23.)"""
    return -1 if needs == LAST_FEATURE else bool(needs.indices)
