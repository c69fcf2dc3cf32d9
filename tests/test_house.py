"""The plan of the house: which way imports go, what configs may name, how long a file may be."""

import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from reprune.runs.fingerprint import targets

ROOT = Path(__file__).resolve().parent.parent
FACES = ("data", "models", "pruning", "sweeps", "training")       # wings whose __init__ hands on what configs name
LINES = 250


def lint(folder: Path) -> subprocess.CompletedProcess:
    """Holds the package in that folder, or else the installed one, against the contracts of its pyproject.toml."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo", "--verbose"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={"COLUMNS": "200"})


def copy(folder: Path) -> None:
    shutil.copytree(ROOT / "src/reprune", folder / "reprune", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def test_imports_go_down():
    done = lint(ROOT)
    assert not done.returncode, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("file, line, named", [
    ("results/rows.py", "import torch", "reprune.results.rows -> torch"),
    ("results/lines.py", "from reprune.structure import cost", "reprune.results.lines -> reprune.structure.cost"),
    ("methods/l1.py", "from reprune.runs import store", "reprune.methods.l1 -> reprune.runs.store"),
    ("pruning/probe.py", "from reprune.training import speed", "reprune.pruning.probe -> reprune.training.speed"),
    ("structure/groups.py", "from reprune.data import split", "reprune.structure.groups -> reprune.data.split"),
    ("files.py", "from reprune import models", "reprune.files -> reprune.models"),
])
def test_an_import_that_goes_up_fails_and_is_named(file, line, named, tmp_path):
    copy(tmp_path)
    assert not lint(tmp_path).returncode
    with (tmp_path / "reprune" / file).open("a") as module:
        module.write(f"\n\ndef late():\n    {line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1 and named in done.stdout, done.stdout + done.stderr


def test_a_new_room_needs_a_floor(tmp_path):
    copy(tmp_path)
    (tmp_path / "reprune/attic.py").touch()
    done = lint(tmp_path)
    assert done.returncode == 1 and "reprune.attic" in done.stdout


def test_what_people_read_is_read_without_torch():
    files = [file.relative_to(ROOT / "src") for file in (ROOT / "src/reprune/results").rglob("*.py")]
    modules = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files]
    code = f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_is_long():
    folder = ROOT / "src/reprune"
    lines = {f.relative_to(folder).as_posix(): len(f.read_text().splitlines()) for f in folder.rglob("*.py")}
    assert {file for file, n in lines.items() if n > LINES} == set()


def named_by_configs() -> set[str]:
    files = [file for folder in ("conf", "experiments") for file in (ROOT / folder).rglob("*.yaml")]
    return {target for file in files for target in targets(OmegaConf.to_container(OmegaConf.load(file)))}


@pytest.mark.parametrize("target", sorted(t for t in named_by_configs() if t.startswith("reprune")))
def test_configs_name_what_stands_at_the_face_of_a_wing(target):
    wing, *name = target.removeprefix("reprune.").split(".")
    if wing == "methods":
        file, name = name
        assert hasattr(import_module(f"reprune.methods.{file}"), name)
    else:
        assert wing in FACES and name[0] in import_module(f"reprune.{wing}").__all__ and len(name) == 1
