"""What Prometheus reads, under the names of vLLM, so that its dashboards and its benchmark client
work here. Each server has a registry of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from jakiro.engine.request import Completion
from jakiro.engine.scheduler import Scheduler

Metric = TypeVar("Metric", Counter, Gauge, Histogram)
_LABELS = ("model_name", "engine")
_WAITS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 20, 60)
_STEPS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5)
_WHOLES_S = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 300, 600)


class Metrics:
    """Counters, gauges and histograms of one model behind one server."""

    def __init__(self, model_name: str, scheduler: Scheduler) -> None:
        self._registry = CollectorRegistry()
        self._values = {"model_name": model_name, "engine": "0"}
        engine = scheduler.engine
        slots = engine.limits.max_batch_size * engine.target.context_length
        slots = engine.limits.kv_tokens or slots
        self._gauge("num_requests_running", lambda: scheduler.num_running)
        self._gauge("num_requests_waiting", lambda: scheduler.num_waiting)
        self._gauge("kv_cache_usage_perc", lambda: engine.num_cached / slots)
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self._generation_tokens = self._counter("generation_tokens", "Tokens of answers")
        self._success = self._counter("request_success", "Answers by their end", "finished_reason")
        self._drafts = self._counter("spec_decode_num_drafts", "Verified drafts")
        self._drafted = self._counter("spec_decode_num_draft_tokens", "Verified draft tokens")
        self._accepted = self._counter("spec_decode_num_accepted_tokens", "Accepted draft tokens")
        self._accepted_at = self._counter(
            "spec_decode_num_accepted_tokens_per_pos", "Accepted by depth in the draft", "position"
        )
        self._first = self._histogram("time_to_first_token_seconds", _WAITS_S)
        self._gap = self._histogram("inter_token_latency_seconds", _STEPS_S)
        self._per_token = self._histogram("request_time_per_output_token_seconds", _STEPS_S)
        self._whole = self._histogram("e2e_request_latency_seconds", _WHOLES_S)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)

    def clock(self) -> Clock:
        """For one answer, from now on."""
        return Clock(self)

    def waited(self, seconds: float) -> None:
        """The first token of an answer came."""
        self._of(self._first).observe(seconds)

    def went_on(self, seconds: float, num_tokens: int) -> None:
        """``num_tokens`` more came together, ``seconds`` after those before."""
        gap = self._of(self._gap)
        for _ in range(num_tokens):
            gap.observe(seconds / num_tokens)

    def ended(self, done: Completion, seconds: float, decode_s: float) -> None:
        """An answer is over, ``decode_s`` after its first token."""
        stats, num_tokens = done.stats, len(done.token_ids)
        self._of(self._prompt_tokens).inc(len(done.prompt_ids))
        self._of(self._generation_tokens).inc(num_tokens)
        self._of(self._success, finished_reason=done.finish_reason).inc()
        self._of(self._whole).observe(seconds)
        if num_tokens > 1:
            self._of(self._per_token).observe(decode_s / (num_tokens - 1))
        self._of(self._drafts).inc(stats.offered_by_depth[0] if stats.offered_by_depth else 0)
        self._of(self._drafted).inc(stats.num_drafted)
        self._of(self._accepted).inc(sum(stats.accepted_by_depth))
        for depth, accepted in enumerate(stats.accepted_by_depth):
            self._of(self._accepted_at, position=str(depth)).inc(accepted)

    def _gauge(self, name: str, read: Callable[[], float]) -> None:
        told = name.replace("_", " ")
        gauge = Gauge(f"vllm:{name}", told, _LABELS, registry=self._registry)
        gauge.labels(**self._values).set_function(read)

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(f"vllm:{name}", told, (*_LABELS, *labels), registry=self._registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        told = name.replace("_", " ")
        return Histogram(f"vllm:{name}", told, _LABELS, registry=self._registry, buckets=buckets)

    def _of(self, metric: Metric, **labels: str) -> Metric:
        return metric.labels(**self._values, **labels)


class Clock:
    """Times one answer."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._began = self._last = time.perf_counter()
        self.first_s: float | None = None
        """Seconds to the first token, once there is one."""

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self._began

    def tokens(self, count: int) -> None:
        """So many came just now."""
        if not count:
            return
        now = time.perf_counter()
        if self.first_s is None:
            self.first_s = now - self._began
            self._metrics.waited(self.first_s)
        else:
            self._metrics.went_on(now - self._last, count)
        self._last = now

    def end(self, done: Completion) -> None:
        """The answer is over."""
        seconds = self.seconds
        self._metrics.ended(done, seconds, seconds - (self.first_s or seconds))
