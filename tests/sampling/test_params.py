"""Invalid settings are refused where they are written, by name, value and range."""

from __future__ import annotations

from typing import Any

import pytest

from jakiro.errors import ConfigError
from jakiro.sampling.params import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("temperature", -0.1),
        ("temperature", 1e-6),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 2.0),
        ("top_p", 1.01),
        ("top_p", -0.1),
        ("top_p", float("nan")),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", float("-inf")),
        ("logit_bias", 7),
        ("stop", 3),
        ("stop_token_ids", 3),
        ("seed", -1),
        ("seed", 2**63),
        ("min_new_tokens", -1),
        ("min_new_tokens", 129),
        ("logprobs", -1),
        ("top_k", 2**63),
        ("max_new_tokens", 2**63),
        ("logprobs", 2**63),
        ("presence_penalty", 1e39),
        ("frequency_penalty", -1e39),
        ("repetition_penalty", 10**400),
    ],
)
def test_refused_with_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        SamplingParams(**{name: value})
    assert str(caught.value).endswith(f"got {value!r}")


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("logit_bias", {3: float("nan")}, "nan"),
        ("logit_bias", {-1: 1.0}, "-1"),
        ("logit_bias", {5: 1e39}, "1e+39"),
        ("logit_bias", {2**63: 1.0}, str(2**63)),
        ("logit_bias", {"3": 1.0}, "'3'"),
        ("stop", ("fine", ""), "''"),
        ("stop", [3], "3"),
        ("stop_token_ids", (2, -2), "-2"),
        ("stop_token_ids", (2**63,), str(2**63)),
    ],
)
def test_members_are_checked(name: str, value: Any, got: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        SamplingParams(**{name: value})
    assert str(caught.value).endswith(f"got {got}")


def test_collections_become_tuples() -> None:
    bias = {5: 1.0}
    params = SamplingParams(stop="\n\n", stop_token_ids=[1, 2], logit_bias=bias)  # type: ignore
    assert params.stop == ("\n\n",)
    assert params.stop_token_ids == (1, 2)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
    bias[5] = 2.0
    assert params.logit_bias == {5: 1.0}


@pytest.mark.parametrize("name", ["top_k", "max_new_tokens", "seed"])
def test_what_tensors_do_not_hold_is_refused_by_its_bound(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} must be .* in [01]\.\.{2**63 - 1}, got"):
        SamplingParams(**{name: 2**63})  # type: ignore[arg-type]


def test_the_edges_are_allowed() -> None:
    params = SamplingParams(
        max_new_tokens=1,
        temperature=1,
        top_p=0.0,
        min_p=1.0,
        presence_penalty=-2,
        seed=2**63 - 1,
        min_new_tokens=1,
        logprobs=0,
    )
    assert not params.is_greedy
    assert SamplingParams().is_greedy
