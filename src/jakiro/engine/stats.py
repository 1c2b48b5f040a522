"""What a run cost and what it brought."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Stats:
    """Counts and wall times of one request, or of all requests of an engine.

    In a batch ``num_forwards`` counts each row's share: a verify forward of three rows counts
    three. The token that prefill yields is neither in ``tau`` nor in a forward.
    """

    num_prefills: int = 0
    """Prefills that brought a first token."""
    num_forwards: int = 0
    num_emitted: int = 0
    num_reused: int = 0
    """Prompt tokens that were not fed, because a request with the same beginning had been."""
    num_drafted: int = 0
    """Nodes that were verified and could have been accepted."""
    accepted_by_depth: list[int] = field(default_factory=list)
    """At index d: how often a node at depth d+1 was accepted."""
    offered_by_depth: list[int] = field(default_factory=list)
    """At index d: how often its parent was accepted and the tree reached depth d+1."""
    prefill_ms: float = 0.0
    draft_ms: float = 0.0
    """Drafting as a whole: network, softmax, top-k, growth."""
    module_ms: float = 0.0
    """The drafter's network alone."""
    verify_ms: float = 0.0
    """The target's forward alone."""
    cycle_ms: float = 0.0
    """Whole cycles."""

    @property
    def tau(self) -> float:
        """Tokens per verify forward."""
        decoded = self.num_emitted - self.num_prefills
        return decoded / self.num_forwards if self.num_forwards else 0.0

    @property
    def alpha(self) -> list[float]:
        """Acceptance rate by depth: accepted, given that the parent was."""
        pairs = zip(self.accepted_by_depth, self.offered_by_depth, strict=True)
        return [accepted / offered if offered else 0.0 for accepted, offered in pairs]

    @property
    def outside_share(self) -> float:
        """Share of the cycles spent neither in the target nor in the drafter's network."""
        outside = self.cycle_ms - self.verify_ms - self.module_ms
        return outside / self.cycle_ms if self.cycle_ms else 0.0

    def count_path(self, num_accepted: int, deepest: int) -> None:
        """One verdict: ``num_accepted`` nodes kept of a tree of depth ``deepest``."""
        missing = deepest - len(self.offered_by_depth)
        self.offered_by_depth += [0] * missing
        self.accepted_by_depth += [0] * missing
        for depth in range(min(num_accepted + 1, deepest)):
            self.offered_by_depth[depth] += 1
            self.accepted_by_depth[depth] += depth < num_accepted

    def count_times(self, draft_ms: float, module_ms: float, verify_ms: float, ms: float) -> None:
        """One cycle of ``ms`` milliseconds in all."""
        self.draft_ms += draft_ms
        self.module_ms += module_ms
        self.verify_ms += verify_ms
        self.cycle_ms += ms

    def count_request(self, done: Stats) -> None:
        """Add the counts of a request that has left (its times were added cycle by cycle)."""
        self.num_prefills += done.num_prefills
        self.num_reused += done.num_reused
        self.num_forwards += done.num_forwards
        self.num_emitted += done.num_emitted
        self.num_drafted += done.num_drafted
        missing = len(done.offered_by_depth) - len(self.offered_by_depth)
        self.offered_by_depth += [0] * missing
        self.accepted_by_depth += [0] * missing
        for depth, offered in enumerate(done.offered_by_depth):
            self.offered_by_depth[depth] += offered
            self.accepted_by_depth[depth] += done.accepted_by_depth[depth]
