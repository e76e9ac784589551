"""Stands in for sgl_kernel, of which there is no CPU wheel: any name can be imported, and raises when it is called."""

from collections.abc import Callable
from typing import Never

__version__ = "0.0.0+stub"


def __getattr__(name: str) -> Callable[..., Never]:
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*_: object, **__: object) -> Never:
        raise NotImplementedError(f"sgl_kernel.{name} needs a GPU; this is voltana's stand-in for machines without")

    absent.__name__ = name
    return absent
