"""conf/hydra/launcher/joblib.yaml and ray.yaml stand for the plugins' own configs of these names, which Hydra 1.3 would
hold them against (its "automatic schema matching", deprecated since 1.1)."""

from contextlib import suppress
from importlib import import_module

from hydra.core.config_store import ConfigStore

for name, config in (("joblib", "hydra_joblib_launcher.config"), ("ray", "hydra_ray_launcher._config")):
    with suppress(ImportError):                                   # the extra `launchers` is not installed
        import_module(f"hydra_plugins.{config}")                  # it registers its config when it is imported
        ConfigStore.instance().repo["hydra"]["launcher"].pop(f"{name}.yaml", None)
