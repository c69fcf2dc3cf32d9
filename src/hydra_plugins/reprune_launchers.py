"""conf/hydra/launcher/joblib.yaml, ray.yaml and sweeper/optuna.yaml stand in for the configs of the same names that
plugins bring, and that Hydra 1.3 would hold our files against (its "automatic schema matching", deprecated since 1.1).
A worker loads all plugins again for each job, in the order of sys.path: so the store itself leaves theirs out."""

from hydra.core.config_store import ConfigLoadError, ConfigNode, ConfigStore

OURS = ("hydra/launcher/joblib.yaml", "hydra/launcher/ray.yaml", "hydra/sweeper/optuna.yaml")

if ConfigStore.load.__module__ != __name__:                       # loaded once more, it is in place
    theirs = ConfigStore.load

    def load(self: ConfigStore, config_path: str) -> ConfigNode:
        if config_path in OURS:
            raise ConfigLoadError(f"{config_path} is a file")
        return theirs(self, config_path)

    ConfigStore.load = load
