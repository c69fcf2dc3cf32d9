"""Hydra's basic sweeper, for the cells that are missing: what is finished is not even submitted as a job."""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException


class MissingSweeper(BasicSweeper):
    """Hydra imports this file at every start, so what it needs is imported when a sweep begins."""

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        from reprune.sweeps.cells import Cells

        (cells,) = super().split_arguments(overrides, None)
        self.cells = Cells(self.hydra_context.config_loader, self.config)
        missing = self.cells.missing(cells)
        return list(self.split_overrides_to_chunks(missing, max_batch_size)) if missing else []

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        super().validate_batch_is_legal([cell for cell in batch if not self.cells.composes(cell)])

    def sweep(self, arguments: list[str]) -> Any:
        from reprune.results.compare import told
        from reprune.sweeps.cells import Summary

        returns = None
        try:
            returns = super().sweep(arguments)
        except HydraException:                                    # of the config: Hydra tells
            raise
        except Exception as error:                                # joblib and submitit give up when a worker is killed
            line = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            Summary.lost(f"hydra/launcher={self.config.hydra.runtime.choices['hydra/launcher']}", line)
        print(self.cells.count())
        if len(files := self.cells.records()) > 1:
            print(f"\n{told(files, [])}\n")
        print(f"records and nets are in {self.cells.output_dir.resolve()}")
        return returns
