"""hydra/sweeper=optuna: a search whose trials are runs, and which goes on where it was cut off."""

import logging
import sys
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper


def stand_in() -> None:
    """conf/hydra/sweeper/optuna.yaml stands in for the config of the same name that the plugin brings, which Hydra 1.3
    would hold our file against."""
    ConfigStore.instance().repo["hydra"].get("sweeper", {}).pop("optuna.yaml", None)    # absent without the extra


stand_in()                                                        # in a worker, which scans the plugins again


class OwnSweeper(SearchPathPlugin):
    """Called when all plugins are loaded, before a config is read."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        stand_in()


class SearchSweeper(Sweeper):
    """Hydra imports this file at every start: what it needs is imported when a search begins."""

    def __init__(self, **options: Any) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)    # tells of itself when it is imported
        try:
            from hydra_plugins.reprune_search._study import Search
        except ModuleNotFoundError as error:
            sys.exit(f"error: hydra/sweeper=optuna needs {error.name}, which is not installed: "
                     "pip install -e '.[search]'")
        self.search = Search(**options)

    def setup(self, **context: Any) -> None:
        self.search.setup(**context)

    def sweep(self, arguments: list[str]) -> None:
        self.search.sweep(arguments)
