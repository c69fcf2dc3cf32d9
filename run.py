"""The command of this project:  python run.py [-m] [group=choice] [key=value] ...      python run.py --help

The same as `reprune run ...`, without an installed command.
"""

import sys

from reprune.sweeps.run import run

if __name__ == "__main__":
    run(sys.argv[1:])
