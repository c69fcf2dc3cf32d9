"""The command of this project:  python run.py [-m] [group=choice] [key=value] ...      python run.py --help"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent
os.environ.setdefault("REPRUNE_ROOT", str(ROOT))          # where Hydra finds experiments/
os.environ.setdefault("KINETO_LOG_LEVEL", "99")           # keeps torch's profiler quiet

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


if __name__ == "__main__":
    main()
