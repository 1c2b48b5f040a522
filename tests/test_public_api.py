"""What ``import jakiro`` offers and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import jakiro


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


def test_importing_the_package_imports_no_heavy_library() -> None:
    probe = "import sys, jakiro; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
