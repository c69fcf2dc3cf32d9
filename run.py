"""The command of this project:  python run.py [-m] [group=choice] [key=value] ...      python run.py --help"""

import os
import re
import sys
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent
os.environ.setdefault("REPRUNE_ROOT", str(ROOT))          # where Hydra finds experiments/
os.environ.setdefault("KINETO_LOG_LEVEL", "99")           # keeps torch's profiler quiet
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")       # threads that spin starve other runs on the same cores

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from omegaconf import DictConfig, open_dict  # noqa: E402


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    from reprune.errors import user_error
    from reprune.pipeline import run

    with open_dict(cfg):
        cfg.experiment = HydraConfig.get().runtime.choices.get("experiments")
    try:
        return run(cfg)["pruned"]["top1"]
    except Exception as error:
        if line := user_error(error):                     # Hydra and Lightning wrap what a method raises
            raise SystemExit(f"error: {line}") from None
        raise


def rows(choice: str) -> str:
    """Row ids of experiments=...: Hydra neither globs into folders nor lists what they hold.

    "glob(li2017/*)" -> "li2017/resnet110-A,li2017/resnet110-B,..."; exits with the valid ids where one is unknown.
    """
    valid = sorted(p.relative_to(ROOT / "experiments").with_suffix("").as_posix()
                   for p in (ROOT / "experiments").glob("*/*.yaml"))
    chosen = []
    for part in choice.split(","):
        pattern = re.fullmatch(r"glob\((.*)\)", part)
        found = [v for v in valid if fnmatch(v, pattern[1])] if pattern else [v for v in valid if v == part]
        if not found and part != "null":
            sys.exit(f"error: experiments={part} matches no row; the rows are: {', '.join(valid)}")
        chosen += found or [part]
    return ",".join(chosen)


if __name__ == "__main__":
    sys.argv = [f"experiments={rows(a.partition('=')[2])}" if a.startswith("experiments=") else a for a in sys.argv]
    main()
