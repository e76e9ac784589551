"""The releases of SGLang that this project works with: the one keeper of that range.

The extra `sglang` of pyproject.toml names the same range, since a package's metadata cannot be computed; a test holds
the two together. Real servers are tested with the release pinned in `live/servers/sglang/requirements.txt`, the plugin
against the sources of both ends (`make test-sources`).
"""

from __future__ import annotations

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

TESTED = ">=0.5.15,<0.5.24"
ANY = "VOLTANA_ANY_SGLANG"
"""Environment variable: 1 has the plugin publish from any other release too."""


def untested(version: str) -> str | None:
    """Why a release is not to be used: what was found and what is allowed; None if it is.

    Args:
        version: as SGLang's metadata has it. What follows a plus (`+cu130`) does not count, nor does `.post1`.
    """
    try:
        fits = SpecifierSet(TESTED).contains(Version(version), prereleases=True)
    except InvalidVersion:
        fits = False
    return None if fits else f"found SGLang {version}, allowed: {TESTED}, the releases that are tested"
