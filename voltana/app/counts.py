"""`cluster=4p12d`: any numbers of prefill and decode instances, without a file for each.

A source of Hydra's with an option of the group `cluster` for every such word: `cluster/2p2d.yaml` with other counts.
"""

from __future__ import annotations

import re

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

SCHEME = "counts"
WORD = re.compile(r"cluster/([1-9]\d{0,3})p([1-9]\d{0,3})d")


class Counts(ConfigSource):
    """The source; see the module."""

    @staticmethod
    def scheme() -> str:
        """As in the search path."""
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """The option of a word that `is_config` knows."""
        found = WORD.fullmatch(config_path)
        assert found is not None
        prefill, decode = map(int, found.groups())
        option = {"defaults": ["2p2d", "_self_"], "prefill_instances": prefill, "decode_instances": decode}
        return ConfigResult(self.provider, f"{SCHEME}://", OmegaConf.create(option), self._get_header_dict(""))

    def is_config(self, config_path: str) -> bool:
        """Whether it is `cluster/` and two counts from 1 on; `2p2d` is a file."""
        return WORD.fullmatch(config_path) is not None and config_path != "cluster/2p2d"

    def is_group(self, config_path: str) -> bool:
        """It adds to a group that there is."""
        return False

    def available(self) -> bool:
        """Always."""
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Nothing, as there would be no end."""
        return []


class _Searched(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("voltana", f"{SCHEME}://")


def register() -> None:
    """Have Hydra compose with them in this process."""
    for plugin in (Counts, _Searched):
        Plugins.instance().register(plugin)
