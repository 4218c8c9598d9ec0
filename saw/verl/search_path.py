"""Makes SAW's configuration groups available to Hydra in every process that has loaded the plug-in.

With them ``python -m verl.trainer.main_ppo`` accepts ``+plugin=saw`` and ``+objectives=toolrl``. The groups come last
on the search path: if verl or the user has a file of the same name, theirs is used.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin


class ConfigGroups(SearchPathPlugin):
    """Appends ``saw.configs`` to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """See :class:`hydra.plugins.search_path_plugin.SearchPathPlugin`."""
        search_path.append(provider="saw", path="pkg://saw.configs")


def register() -> None:
    """Register the groups with Hydra."""
    Plugins.instance().register(ConfigGroups)
