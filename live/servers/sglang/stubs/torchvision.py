"""Stands in for torchvision, whose wheels link CUDA: any name can be imported, and raises when it is called.

SGLang and transformers import it for images and videos, which a language model does not have.
"""

import enum
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Never

__version__ = "0.28.0"

SUBMODULES = ("io", "transforms", "transforms.functional", "transforms.v2", "transforms.v2.functional")


class InterpolationMode(enum.Enum):
    """Used as default argument where SGLang defines its image processors."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class ImageReadMode(enum.Enum):
    """Likewise."""

    RGB = "RGB"


def __getattr__(name: str) -> Callable[..., Never]:
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*_: object, **__: object) -> Never:
        raise NotImplementedError(f"torchvision.{name}: this is voltana's stand-in for machines without a GPU")

    absent.__name__ = name
    return absent


def _add_submodules() -> None:
    this = sys.modules[__name__]
    for dotted in SUBMODULES:
        module = ModuleType(f"{__name__}.{dotted}")
        module.__getattr__ = __getattr__  # type: ignore[method-assign]
        module.__dict__.update(InterpolationMode=InterpolationMode, ImageReadMode=ImageReadMode)
        sys.modules[module.__name__] = module
        parent, _, name = dotted.rpartition(".")
        setattr(sys.modules[f"{__name__}.{parent}"] if parent else this, name, module)


_add_submodules()
