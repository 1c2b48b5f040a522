"""Builds the kernels: by the compiler, with the flags and in the cache of ``torch.compile``."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jakiro.errors import ConfigError


@cache
def load(name: str) -> None:
    """Build ``name``.cpp, once a machine, and register the operators in it.

    Raises ``ConfigError`` where the compiler cannot build it.
    """
    from torch._inductor.codecache import CppCodeCache
    from torch._inductor.exc import CppCompileError

    source = files(__package__).joinpath(f"{name}.cpp").read_text("utf-8")
    # Of its flags one keeps products and sums apart; a kernel is nothing but products and sums.
    try:
        CppCodeCache.load(source, extra_flags=["-ffp-contract=fast"])
    except CppCompileError as error:
        raise ConfigError(
            f"the C++ compiler could not build {name}.cpp (g++ 12 can); name another in the "
            "environment variable CXX, or leave out compile"
        ) from error


def check_compiler() -> None:
    """Raise ``ConfigError`` where there is no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError(
            "compiling for a CPU needs a C++ compiler and none was found; install g++ or clang++ "
            "or name one in the environment variable CXX, or leave out compile"
        ) from error
