"""What ``import jakiro`` offers and what it costs."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch

import jakiro
from jakiro.errors import ConfigError


def test_public_names_are_these() -> None:
    assert jakiro.__all__ == [
        "Completion",
        "Engine",
        "JakiroError",
        "SamplingParams",
        "Superposed",
        "TreePlan",
        "__version__",
        "decode",
        "load",
    ]


@pytest.mark.parametrize("name", jakiro.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(jakiro, name) is not None
    assert name in dir(jakiro)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = jakiro.nonsense


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tree": 5}, "tree must be a TreePlan, its text form or None, got 5"),
        ({"dtype": 5}, "unknown dtype 5; use float32"),
        ({"dtype": torch.int32}, "unknown dtype torch.int32; use float32"),
        ({"device": 5.5}, "cannot use the device '5.5'"),
        ({"device": "cpu", "device_map": "auto"}, "give device or device_map, not both"),
        ({"definition": 5}, "definition must be a name, a Definition or None, got 5"),
        ({"amateur": "pico"}, "an amateur is of no use without a definition"),
    ],
)
def test_load_names_an_option_that_is_none(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        jakiro.load("pico", "none", **options)


def test_importing_the_package_imports_no_heavy_library() -> None:
    probe = "import sys, jakiro; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
