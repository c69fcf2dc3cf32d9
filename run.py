"""The command of this project:  python run.py [-m] [group=choice] [key=value] ...      python run.py --help"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
os.environ.setdefault("REPRUNE_ROOT", str(ROOT))          # where Hydra finds experiments/
os.environ.setdefault("KINETO_LOG_LEVEL", "99")           # keeps torch's profiler quiet
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")       # threads that spin starve other runs on the same cores

import hydra  # noqa: E402
from omegaconf import DictConfig  # noqa: E402


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    from reprune.pipeline import run
    from reprune.sweeps.cells import cell

    return cell(cfg, run)


if __name__ == "__main__":
    if any(a.startswith(("experiments=", "control=")) for a in sys.argv):
        from reprune.errors import UserError
        from reprune.sweeps.cells import expand

        try:
            sys.argv = expand(sys.argv, ROOT)
        except UserError as error:
            sys.exit(f"error: {error}")
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)                                     # as shells count it; what was saved has been said
