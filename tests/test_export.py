"""Exported nets give the outputs of the pruned net, in the program they are exported for."""

import json
import re
import subprocess
import sys
import warnings

import pytest
import torch
from nets import lively, quiet_trace, random_plan

import reprune
from reprune import models
from reprune.__main__ import main
from reprune.models import export

NETS = {
    "option A": {"_target_": "reprune.models.resnet", "name": "resnet8", "depth": 8, "classes": 7},
    "narrow VGG": {"_target_": "reprune.models.narrow_vgg", "batch_norm": True},
    "concat": {"_target_": "reprune.models.torchvision", "arch": "squeezenet1_1", "classes": 5},
    "depthwise": {"_target_": "reprune.models.torchvision", "arch": "mobilenet_v3_small", "classes": 5},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """checkpoint(name) -> the file of that net, a third of its filters removed, and an input for it."""
    folder = tmp_path_factory.mktemp("nets")

    def made(name):
        file, generator = folder / f"{name}.safetensors", torch.Generator().manual_seed(0)
        size = 64 if "arch" in NETS[name] else 32
        x = torch.randn(7, 3, size, size, generator=generator)
        if not file.is_file():
            net = lively(models.build(NETS[name]), x, generator)
            quiet_trace(net, x[:1])
            reprune.save(reprune.remove(net, random_plan(net, seed=0, rate=0.3)), file)
        return file, x
    return made


@torch.no_grad()
def same_outputs(net, other, x):
    for n in (1, 7):
        wanted, got = net(x[:n]), other(x[:n])
        assert net(x).std(0).max() > 1e-3, "the net does not look at its input: this comparison would prove nothing"
        assert torch.allclose(got, wanted, rtol=0, atol=export.TOLERANCE * wanted.abs().max().item())


@pytest.mark.parametrize("name", ["narrow VGG", "concat"])
def test_onnx_gives_the_outputs_of_the_pruned_net_for_any_batch_size(name, checkpoint):
    file, x = checkpoint(name)
    net = reprune.load(file)
    model = export.onnx_bytes(net, x[:2])
    same_outputs(net, export.session(model), x)
    assert len(model) < 1.2 * file.stat().st_size + 200_000       # it holds the smaller net


def test_the_command_writes_onnx_and_measures_it_beside_the_unpruned_net(checkpoint, tmp_path, capsys):
    file, x = checkpoint("option A")
    assert main(["export", str(file), "--onnx", str(tmp_path / "net.onnx"), "--batch", "3"]) == 0
    same_outputs(reprune.load(file), export.session((tmp_path / "net.onnx").read_bytes()), x)
    out = capsys.readouterr().out
    before, after, ratio = map(float, re.search(r"unpruned ([\d.]+) ms, pruned ([\d.]+) ms, ([\d.]+)x", out).groups())
    assert after > 0 and before / after == pytest.approx(ratio, rel=0.3)


@pytest.mark.parametrize("name", ["option A", "narrow VGG", "depthwise"])
def test_torchscript_gives_the_outputs_of_the_pruned_net_without_a_warning(name, checkpoint, tmp_path):
    file, x = checkpoint(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["export", str(file), "--torchscript", str(tmp_path / "net.ts"), "--batch", "3"]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                           # here it is the reader that names its successor
        script, net = torch.jit.load(tmp_path / "net.ts"), reprune.load(file)
    same_outputs(net, script, x)


@pytest.mark.parametrize("name", ["option A", "concat"])
def test_the_state_dict_loads_without_pickled_code_and_fits(name, checkpoint, tmp_path):
    file, x = checkpoint(name)
    assert main(["export", str(file), "--state-dict", str(tmp_path / "net.pt")]) == 0
    state, net = torch.load(tmp_path / "net.pt", weights_only=True), reprune.load(file)
    again = reprune.load(file).requires_grad_(False)
    for tensor in again.state_dict().values():
        tensor.zero_()
    assert not again.load_state_dict(state).missing_keys
    with torch.no_grad():
        assert torch.equal(again(x), net(x))
    widths, full = json.loads((tmp_path / "net.pt.json").read_text()), models.build(NETS[name])
    assert {n: after for n, (_, after) in widths.items()} == {n: len(state[f"{n}.weight"]) for n in widths}
    assert {n: before for n, (before, _) in widths.items()} == {n: len(full.get_submodule(n).weight) for n in widths}
    assert any(before > after for before, after in widths.values())


def test_the_command_prints_nothing_else(checkpoint, tmp_path):
    """No warning of torch in a fresh process."""
    file, _ = checkpoint("option A")
    done = subprocess.run([sys.executable, "-m", "reprune", "export", file, "--torchscript", tmp_path / "net.ts"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert re.fullmatch(r"wrote .*net\.ts \([\d.]+ MiB\)\nlargest difference of outputs [-\d.e]+\n", done.stdout)


@pytest.mark.parametrize("form", ["torchscript", "state-dict"])
def test_a_file_that_cannot_be_written_is_one_line_and_leaves_nothing(form, checkpoint, tmp_path, capsys):
    file, _ = checkpoint("option A")
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "taken", tmp_path / "file" / "net", file):
        assert main(["export", str(file), f"--{form}", str(path), "--batch", "2"]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and str(path) in err
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "taken"] and not any((tmp_path / "taken").iterdir())
    reprune.load(file)


def test_a_missing_checkpoint_and_a_missing_runtime_are_one_line(checkpoint, tmp_path, capsys, monkeypatch):
    file, _ = checkpoint("option A")
    pickled = tmp_path / "net.pth"
    torch.save({}, pickled)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)         # as where it is not installed
    for given, told in ((tmp_path / "none", "no checkpoint at"), (pickled, "refused"),
                        (file, "onnxruntime, which is not installed: pip install -e '.[export]'")):
        assert main(["export", str(given), "--onnx", str(tmp_path / "net.onnx")]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and told in err
    assert main(["export", str(file), "--onnx", str(tmp_path / "net.onnx"), "--batch", "0"]) == 1
    assert not (tmp_path / "net.onnx").exists()


def test_outputs_that_differ_are_not_written(checkpoint, tmp_path, capsys, monkeypatch):
    """A wrong file is worse than none: here the exporter writes another net."""
    file, _ = checkpoint("option A")
    right, other = export.torchscript, models.build(NETS["option A"]).eval()
    monkeypatch.setattr(export, "torchscript", lambda net, example: right(other, example))
    assert main(["export", str(file), "--torchscript", str(tmp_path / "net.ts"), "--batch", "2"]) == 1
    assert "nothing was written" in capsys.readouterr().err and not list(tmp_path.iterdir())
