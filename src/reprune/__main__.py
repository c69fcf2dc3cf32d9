"""The commands beside run.py:    python -m reprune COMMAND ...      python -m reprune COMMAND --help"""

import sys
from importlib import import_module

from reprune.errors import UserError, ended

COMMANDS = {                # what it does -> where it lives
    "status": "sweeps.status:main", "campaign": "sweeps.campaign_runs:main", "show": "results.show:main",
    "tables": "results.tables:main", "report": "results.tables:main_report", "figures": "results.figures:main",
    "dashboard": "results.dashboard:main", "export": "models.export:main"}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: python -m reprune {{{','.join(COMMANDS)}}} ...", file=sys.stderr)
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    module, name = COMMANDS[argv[0]].split(":")
    try:
        return getattr(import_module(f"reprune.{module}"), name)(argv[1:])
    except UserError as error:
        return ended([str(error)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
