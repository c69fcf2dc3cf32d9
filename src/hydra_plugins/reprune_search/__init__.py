"""hydra/sweeper=optuna: a search whose trials are runs, and which goes on where it was cut off."""

import logging
import sys
from typing import Any

from hydra.plugins.sweeper import Sweeper


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
