"""conf/hydra/launcher/joblib.yaml and ray.yaml stand in for the configs of the same names that the plugins bring, which
Hydra 1.3 would hold our files against (its "automatic schema matching", deprecated since 1.1)."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin


def stand_in() -> None:
    for name in ("joblib.yaml", "ray.yaml"):                      # absent without the extra `launchers`
        ConfigStore.instance().repo["hydra"].get("launcher", {}).pop(name, None)


stand_in()                                                        # in a worker, which scans the plugins again


class OwnLaunchers(SearchPathPlugin):
    """Called when all plugins are loaded, before a config is read."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        stand_in()
