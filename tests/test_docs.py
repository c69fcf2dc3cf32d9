"""What the pages show works: every command composes, every snippet and the notebook run, every link leads on."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from command import run
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import reprune
from reprune import models
from reprune.__main__ import main
from reprune.errors import UserError
from reprune.sweeps.cells import expand

NET = """from torch import nn


class Net(nn.Sequential):
    def __init__(self, width=16, classes=10):
        super().__init__(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                         nn.Conv2d(width, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, classes))
"""
ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = re.compile(r"(?:reprune|python run\.py) (?:run )?")
OTHER_FILES = re.compile(r"model=mine|dataset=imagefolder|method=mine")       # the reader has them


def commands() -> list[str]:
    """The runs that the pages show, a line each."""
    lines = [line for page in PAGES for line in page.read_text().replace("\\\n", " ").splitlines()]
    found = [re.sub(r",\s+(?=\w+,|\w+$)", ",", RUN.sub("", line, count=1)) for line in lines
             if re.match(r"reprune run|python run\.py", line)]
    return sorted({" ".join(shlex.quote(word) for word in shlex.split(line, comments=True)) for line in found})


@pytest.mark.parametrize("command", [c for c in commands() if not OTHER_FILES.search(c)])
def test_every_run_that_is_shown_composes(command, configure):
    left_out = ("-m", "--cfg", "job", *["control=null,random,l1,scratch"] * ("experiments=glob(" in command))
    words = [word for word in shlex.split(command) if word not in left_out and "glob(" not in word]
    words = expand(words, ROOT)
    words = [re.sub(r"(?:tag\(log,)?interval\((.*?),.*", r"\1", word) for word in words]   # of a search: its low end
    for overrides in BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)[0]:
        cfg = configure(*overrides, tiny=False)
        cfg.model.weights = None                                  # a file of the reader's
        OmegaConf.to_container(cfg, resolve=True)
        assert instantiate(cfg.method).name == cfg.method.name


def snippets(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/add-a-method.md"], ids=lambda page: page.name)
def test_the_method_that_is_shown_runs_as_it_is_printed(page, tmp_path):
    (tmp_path / "mine.py").write_text(next(s for s in snippets(page, "python") if "Criterion" in s))
    (tmp_path / "conf/method").mkdir(parents=True)
    (tmp_path / "conf/method/mine.yaml").write_text(snippets(page, "yaml")[0])
    done = run("method=mine", "model=resnet8", "dataset.limit=64", "logger=none", "recipe.baseline.epochs=1",
               "recipe.recover.epochs=1", cwd=tmp_path)
    assert done.returncode == 0 and "mine on resnet8" in done.stdout, done.stderr


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/own-net.md"], ids=lambda page: page.name)
def test_the_pruning_of_a_net_that_is_shown_runs(page):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(8, 4)).eval()
    names = {"torch": torch, "net": net, "example": torch.randn(1, 3, 8, 8)}
    exec(next(s for s in snippets(page, "python") if "reprune.cost" in s), names)
    assert names["small"][0].out_channels < 8 and names["small"](names["example"]).shape == (1, 4)


class Module(pl.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("word", ["HGSR", "PruningCallback"])
def test_the_loops_of_ones_own_that_are_shown_run(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)                                   # Lightning's logs
    net, (x, y) = models.resnet(depth=8, classes=10, in_channels=1), (torch.randn(8, 1, 8, 8), torch.arange(8))
    names = {"torch": torch, "reprune": reprune, "net": net, "module": Module(net), "example": x[:1],
             "loader": DataLoader(TensorDataset(x, y), 4)}
    exec(next(s for s in snippets(ROOT / "docs/own-net.md", "python") if f" {word}" in s), names)
    small, whole = names["small"].eval(), net.eval()
    assert reprune.cost(small, x[:1]).macs < 0.8 * reprune.cost(whole, x[:1]).macs
    if word == "PruningCallback":
        torch.testing.assert_close(small(x), whole(x))            # what went was silent


def test_a_net_of_ones_own_trains_is_pruned_saved_loaded_and_exported(tmp_path, monkeypatch):
    (tmp_path / "mynet.py").write_text(NET)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mine.yaml").write_text(snippets(ROOT / "docs/own-net.md", "yaml")[0])
    done = run("model=mine", "method=l1", "dataset.limit=64", "logger=none", "recipe.baseline.epochs=1",
               "recipe.recover.epochs=1", cwd=tmp_path)
    assert done.returncode == 0 and "l1 on Net / digits" in done.stdout, done.stderr
    (file,) = tmp_path.glob("outputs/*/net.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="mynet.Net' is not a model builder"):
        reprune.load(file)
    builder, example = import_module("mynet").Net, torch.randn(2, 1, 8, 8)
    assert reprune.load(file, builder=builder)(example).shape == (2, 10)
    net = builder(width=8).eval()
    small = reprune.remove(net, {g.name: torch.arange(g.size) % 2 == 0 for g in reprune.trace(net, example)}).eval()
    assert all(str(group).count("\n") == 1 for group in reprune.trace(net, example))
    with pytest.raises(UserError, match="pass builder="):
        reprune.save(small, "small.safetensors", model={"_target_": "mynet.Net"})
    monkeypatch.setattr(models, "BUILDERS", {**models.BUILDERS})                   # export trusts what it is given
    assert main(["export", str(file), "--state-dict", "net.pt", "--builder", "mynet.Net"]) == 0
    reprune.save(small, "small.safetensors", model={"width": 8}, builder=builder)
    assert torch.equal(reprune.load("small.safetensors", builder=builder)(example), small(example))


def test_the_notebook_runs_and_shows_what_it_says():
    names: dict = {}
    for cell in json.loads((ROOT / "docs/prune_a_net.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["difference"] < 1e-4 and names["pruned"] < names["after"] and names["after"] > 0.8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    places = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [place for place in places if not (page.parent / place).exists()] == []
