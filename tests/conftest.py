"""Fixtures: configs composed as the command does, at a size of one second a run."""

import os
import signal
from pathlib import Path

import pytest
import torch

from reprune.runs.compose import Composer, composing

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("KINETO_LOG_LEVEL", "99")           # as run.py does
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:     # as in a background job: runs that tests start would too
    signal.signal(signal.SIGINT, signal.default_int_handler)
TINY = ["model=resnet8", "dataset.size=8", "dataset.limit=240", "recipe.batch_size=60", "measure.batch_size=4",
        "logger=none", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
os.fsync = lambda file: None              # no test ends in a power loss, and disks are slow
HANG = 1800                               # seconds after which something hangs; nothing is held to a time of its own
EPOCHS = ["recipe.baseline.epochs=1", "recipe.sparse.epochs=1", "recipe.recover.epochs=1"]


@pytest.fixture(autouse=True)
def seeded():
    """Nets and images that a test makes are the same at every run of it."""
    torch.manual_seed(0)


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def compose() -> Composer:
    with composing(ROOT) as composer:
        return composer


@pytest.fixture
def configure(compose, tmp_path, monkeypatch):
    """configure("method=l1", ...) -> the config of that command, writing below tmp_path."""
    monkeypatch.setenv("REPRUNE_ROOT", str(ROOT))

    def configured(*overrides: str, tiny: bool = True):
        places = [f"output_dir={tmp_path}/outputs", f"results_dir={tmp_path}/results"]
        return compose([*(TINY + EPOCHS if tiny else []), *places, *overrides])

    return configured


@pytest.fixture
def one_thread():
    """As many as the processes that a test starts: sums come out the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cifar10() -> str:
    """A folder with the real CIFAR-10, from DATA_DIR."""
    folder = os.environ.get("DATA_DIR", "")
    if not (Path(folder) / "cifar-10-batches-py").is_dir():
        pytest.skip("set DATA_DIR to a folder that holds cifar-10-batches-py")
    return folder


@pytest.fixture
def weights() -> Path:
    """A folder with the public CIFAR-10 ResNet checkpoints, from WEIGHTS_DIR."""
    folder = os.environ.get("WEIGHTS_DIR")
    if not folder:
        pytest.skip("set WEIGHTS_DIR to a folder with the public ResNet checkpoints (resnet20-12fca82f.th, ...)")
    return Path(folder)
