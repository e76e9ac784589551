"""Which code runs: the sources or, from a compiled wheel, what mypyc made of them; both do the same.

A compiled wheel (`make wheel`) has both, side by side. VOLTANA_PURE=1 in the environment has the sources run.
"""

import os
import sys
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path

PURE = "VOLTANA_PURE"
_ROOT = str(Path(__file__).parent)


def obey() -> None:
    """Import this package's modules from their sources from now on, if VOLTANA_PURE=1."""
    if os.environ.get(PURE) == "1":
        sys.path_hooks.insert(0, _sources_alone)
        sys.path_importer_cache.pop(_ROOT, None)


def version() -> str:
    """The version of this project, and which code runs, as `--version` tells them."""
    import voltana

    return f"{voltana.__version__} ({'compiled' if is_compiled() else 'pure Python'})"


def is_compiled() -> bool:
    """Whether compiled modules run."""
    spec = find_spec("voltana.dispatch")
    return spec is not None and not str(spec.origin).endswith(tuple(SOURCE_SUFFIXES))


def _sources_alone(folder: str) -> FileFinder:
    if folder != _ROOT and not folder.startswith(_ROOT + os.sep):
        raise ImportError(folder)  # as an entry of `sys.path_hooks` says that a folder is not its own
    return FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES))
