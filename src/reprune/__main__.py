"""The commands beside run.py:    python -m reprune COMMAND ...      python -m reprune COMMAND --help"""

import sys
from importlib import import_module

from reprune.errors import UserError

COMMANDS = {                # what it does -> where it lives
    "status": "sweeps.status", "campaign": "sweeps.campaign_runs", "show": "results.show", "tables": "results.tables",
    "figures": "results.figures", "report": "results.report", "dashboard": "results.dashboard",
    "export": "models.export"}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: python -m reprune {{{','.join(COMMANDS)}}} ...", file=sys.stderr)
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    try:
        return import_module(f"reprune.{COMMANDS[argv[0]]}").main(argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
