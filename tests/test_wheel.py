"""What `pip install reprune` brings: the built wheel, in an environment of its own, works from an empty folder."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import EPOCHS, ROOT, TINY

UV = [sys.executable, "-m", "uv"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*UV, "build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable,
                    "--out-dir", folder, ROOT], check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def reprune(wheel, tmp_path_factory):
    """reprune("run", ..., cwd=folder) -> what the installed command says. Its environment has the packages of this one,
    torch among them, but not what is installed here of this project."""
    there = tmp_path_factory.mktemp("env") / "venv"
    subprocess.run([*UV, "venv", "--quiet", "--python", sys.executable, there], check=True)
    (site,) = there.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib"))
    python = there / "bin/python"
    subprocess.run([*UV, "pip", "install", "--quiet", "--no-deps", "--offline", "--python", python, wheel], check=True)

    def typed(*words: str, cwd: Path, code: int = 0) -> str:
        done = subprocess.run([there / "bin/reprune", *words], cwd=cwd, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    where = subprocess.check_output([python, "-c", "import reprune; print(reprune.__file__)"], cwd=there, text=True)
    assert where.startswith(str(site))
    typed.python = python
    return typed


def test_the_wheel_holds_all_configs_and_rows(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    files = [file for folder in ("conf", "experiments") for file in (ROOT / folder).rglob("*.yaml")]
    assert {f"reprune/{file.relative_to(ROOT).as_posix()}" for file in files} <= held
    assert {"reprune/py.typed", "hydra_plugins/reprune_sweeper.py", "reprune/results/render/page/page.html"} <= held
    assert not [name for name in held if name.startswith(("conf", "experiments", "tests")) or "__pycache__" in name]


def test_a_sweep_and_what_looks_at_it_work_from_an_empty_folder(reprune, tmp_path):
    cells = [*TINY, *EPOCHS, "method=l1,random"]
    said = reprune("run", "-m", *cells, cwd=tmp_path)
    assert "2 cells: 2 done, 0 finished before, 0 failed" in said
    assert f"records and nets are in {tmp_path / 'outputs'}\n" in said
    assert [file.name for file in tmp_path.iterdir()] == ["outputs"]
    assert (table := reprune("compare", *cells, cwd=tmp_path)) in said and table == reprune("compare", cwd=tmp_path)
    assert "2 cells: 2 done" in reprune("status", "-m", *cells, cwd=tmp_path)
    key = next(file.parent.name for file in tmp_path.glob("outputs/*/record.json"))
    assert f"verified: this command has the key {key}" in reprune("show", key[:8], cwd=tmp_path)


def test_a_net_gets_smaller_in_three_lines_from_an_empty_folder(reprune, tmp_path):
    lines = ("import reprune, torch, torchvision; net, x = torchvision.models.resnet18(), torch.zeros(1, 3, 64, 64)\n"
             "small = reprune.prune(net, x, macs=0.5)\n"
             "print(reprune.cost(small, x).macs <= 0.5 * reprune.cost(net, x).macs, len(reprune.plan(small)))")
    assert subprocess.check_output([reprune.python, "-c", lines], cwd=tmp_path, text=True) == "True 8\n"


def test_rows_of_papers_and_what_the_folder_adds_are_found(reprune, tmp_path):
    row = reprune("run", "experiments=li2017/resnet56-B", "--cfg", "job", cwd=tmp_path)
    assert "pruned: 93.06" in row and "layer1: 0.6" in row
    reprune("tables", cwd=tmp_path)
    assert "93.06" in (tmp_path / "results/li2017.md").read_text()

    added = {"conf/method/mine.yaml": "defaults: [l1, _self_]\nname: mine\nallocation: {rate: 0.25}\n",
             "experiments/me/row.yaml": "# @package _global_\n# Mine.\ndefaults: [override /method: mine]\n"}
    for file, text in added.items():
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
    said = reprune("run", "-m", "experiments=me/row,half/resnet20-l1", "--cfg", "job", cwd=tmp_path)
    assert said.count("\n---\n") == 1 and "name: mine" in said and "rate: 0.25" in said
    assert ", mine, " in (usage := reprune("run", "--help", cwd=tmp_path)) and "experiments=me/" in usage
    assert "did you mean 'mine'?" in reprune("run", "method=min", cwd=tmp_path, code=1)
