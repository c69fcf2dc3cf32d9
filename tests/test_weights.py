"""Loading trained weights: public checkpoints, every file form, and hostile, damaged or foreign files.

WEIGHTS_DIR: folder with the checkpoints of github.com/akamaster/pytorch_resnet_cifar10; DATA_DIR: folder with
cifar-10-batches-py. Tests that need one are skipped where it is not set.
"""

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from reprune import models
from reprune.errors import UserError
from reprune.runs.store import Store

CHECKPOINTS = {20: "resnet20-12fca82f.th", 32: "resnet32-d509ac18.th",
               44: "resnet44-014dd654.th", 56: "resnet56-4bfd9763.th"}


def folder(variable, inside):
    """The folder named by an environment variable, if it holds `inside`; otherwise the test is skipped."""
    path = os.environ.get(variable)
    if not path or not (Path(path) / inside).exists():
        pytest.skip(f"set {variable} to a folder with {inside}")
    return Path(path)


# ---------------------------------------------------------------- public checkpoints

@pytest.mark.parametrize(("depth", "file"), CHECKPOINTS.items())
def test_public_checkpoint_loads_tensor_for_tensor(depth, file):
    path = folder("WEIGHTS_DIR", file) / file
    net = models.build({"_target_": "reprune.models.resnet", "depth": depth, "weights": str(path)})
    stored = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    loaded = net.state_dict()
    assert {k.removeprefix("module.") for k in stored} >= {k for k in loaded if not k.endswith("num_batches_tracked")}
    assert all(torch.equal(loaded[k.removeprefix("module.")], v) for k, v in stored.items())


@pytest.mark.parametrize(("net", "file", "mean", "std", "wanted"), [
    (models.resnet, CHECKPOINTS[20], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1833),
    (models.resnet_b, "resnet20-distiller-dense.pth.tar", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1842),
], ids=["option-A", "option-B"])
def test_public_resnet20_reaches_its_accuracy(net, file, mean, std, wanted):
    """Of the 10,000 test images 9,173 are right with option A (91.73 %), 9,171 with option B (91.71 %); the first 2,000
    are enough for a test. mean, std: what the net was trained with."""
    weights, data = folder("WEIGHTS_DIR", file), folder("DATA_DIR", "cifar-10-batches-py")
    batch = pickle.loads((data / "cifar-10-batches-py" / "test_batch").read_bytes(), encoding="bytes")
    images = torch.from_numpy(batch[b"data"]).reshape(-1, 3, 32, 32)[:2000]
    labels = torch.tensor(batch[b"labels"])[:2000]
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (mean, std))
    net = models.load_weights(net(20), weights / file).eval().to(memory_format=torch.channels_last)
    right = 0
    with torch.inference_mode():
        for x, y in zip(images.split(500), labels.split(500), strict=True):
            x = ((x / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
            right += (net(x).argmax(1) == y).sum().item()
    assert abs(right - wanted) <= 4     # float rounding may flip a few images between machines


# ---------------------------------------------------------------- weights of our own

@pytest.mark.parametrize("form", ["plain", "state_dict", "model", "module", "old", "no-counters", "safetensors"])
def test_weights_load_in_every_form(form, tmp_path):
    source, net, file = models.resnet(8), models.resnet(8), tmp_path / "w.pt"
    state = source.state_dict()
    if form in ("state_dict", "model"):
        torch.save({form: state, "epoch": 3}, file)
    elif form == "module":
        torch.save({f"module.{k}": v for k, v in state.items()}, file)
    elif form == "no-counters":
        torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, file)
    elif form == "safetensors":
        save_file(state, file := tmp_path / "w.safetensors")
    else:
        torch.save(state, file, _use_new_zipfile_serialization=form != "old")
    models.load_weights(net, file)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_published_weights_with_auxiliary_heads_load_without_them(tmp_path):
    net = models.torchvision("googlenet", classes=10)
    torch.save({**net.state_dict(), "aux1.fc2.bias": torch.zeros(10)}, tmp_path / "w.pt")
    models.load_weights(net, tmp_path / "w.pt")


class Trap:
    """Unpickled without care, it creates a file."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (open, (self.file, "w"))


@pytest.mark.parametrize("protocol", [0, 2, 4, "zip", "legacy"])
def test_a_hostile_checkpoint_is_refused_and_nothing_is_executed(protocol, tmp_path, recwarn):
    payload, file, sprung = {"conv1.weight": Trap(tmp_path / "sprung")}, tmp_path / "w.th", tmp_path / "sprung"
    if isinstance(protocol, int):
        file.write_bytes(pickle.dumps(payload, protocol=protocol))
    else:
        torch.save(payload, file, _use_new_zipfile_serialization=protocol == "zip")
    with pytest.raises(UserError, match="refused .*nothing was executed"):
        models.load_weights(models.resnet(8), file)
    assert not sprung.exists()
    assert not recwarn.list                                 # the one line is all the user sees
    pickle.loads(pickle.dumps(payload))
    assert sprung.exists()                                  # the trap is a real one


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.999])
def test_a_truncated_checkpoint_is_one_line_and_leaves_the_net_alone(form, kept, tmp_path):
    net, file = models.resnet(8), tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(models.resnet(8).state_dict(), file)
    else:
        torch.save(models.resnet(8).state_dict(), file, _use_new_zipfile_serialization=form == "zip")
    whole, before = file.read_bytes(), net.conv1.weight.clone()
    file.write_bytes(whole[:kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(UserError, match=re.escape(str(file))) as error:
        models.load_weights(net, file)
    assert "\n" not in str(error.value)
    assert torch.equal(net.conv1.weight, before)


def test_a_file_that_is_no_checkpoint_is_one_line(tmp_path):
    file = tmp_path / "w.pt"
    file.write_text("<html>404 not found</html>\n" * 20)
    with pytest.raises(UserError, match="w.pt"):
        models.load_weights(models.resnet(8), file)
    for content in ([1, 2], {}, {"epoch": 3}, {"state_dict": {"conv1.weight": 1.0}}):
        torch.save(content, file)
        with pytest.raises(UserError, match="state_dict"):
            models.load_weights(models.resnet(8), file)


def test_missing_weights_say_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "none.th"))):
        models.build({"_target_": "reprune.models.resnet", "depth": 8, "weights": "none.th"})


@pytest.mark.parametrize(("make", "message"), [
    (lambda: models.resnet(20), r"60 missing \(first: layer1.1.conv1.weight\)"),
    (lambda: models.vgg(16), r"missing \(first: features.0.weight\), 44 unexpected \(first: conv1.weight\)"),
    (lambda: models.resnet(8, classes=100),
     r"2 of another shape \(first: linear.weight is \[10, 64\], the net wants \[100, 64\]\)"),
], ids=["deeper", "vgg", "classes"])
def test_weights_of_another_architecture(make, message, tmp_path):
    torch.save(models.resnet(8).state_dict(), tmp_path / "w.pt")
    net = make()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(UserError, match=f"another architecture.*{message}"):
        models.load_weights(net, tmp_path / "w.pt")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


# ---------------------------------------------------------------- tensors that are no trained weights

def changed(tensor, value):
    tensor = tensor.clone()
    tensor.view(-1)[:2] = value
    return tensor


SPOILED = {
    "nan": (lambda w: changed(w, float("nan")), "conv1.weight holds 2 NaN or infinite numbers of 432"),
    "infinite": (lambda w: changed(w, float("-inf")), "conv1.weight holds 2 NaN or infinite numbers of 432"),
    "too large": (lambda w: changed(w.double(), 1e300), "conv1.weight holds 2 NaN or infinite numbers of 432"),
    "int8": (lambda w: w.to(torch.int8), "conv1.weight holds torch.int8, no trained weights"),
    "bool": (lambda w: w > 0, "conv1.weight holds torch.bool, no trained weights"),
    "complex": (lambda w: w.to(torch.complex64), "conv1.weight holds torch.complex64, no trained weights"),
    "sparse": (lambda w: w.to_sparse(), "'conv1.weight' is torch.sparse_coo"),
    "meta": (lambda w: w.to("meta"), "'conv1.weight' has no numbers"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_tensors_that_are_no_trained_weights_are_one_line_and_leave_the_net_alone(name, tmp_path, recwarn):
    spoil, words = SPOILED[name]
    net = models.resnet(8)
    state, before = net.state_dict(), net.conv1.weight.clone()
    torch.save(state | {"conv1.weight": spoil(state["conv1.weight"])}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=re.escape(words)) as error:
        models.load_weights(net, tmp_path / "w.pt")
    assert "\n" not in str(error.value) and "w.pt" in str(error.value) and not recwarn.list
    assert torch.equal(net.conv1.weight, before)


def test_a_name_of_many_lines_makes_no_line_of_many(tmp_path):
    torch.save(models.resnet(8).state_dict() | {"a\nb" * 10**4: torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"1 unexpected \(first: a.nba") as error:
        models.load_weights(models.resnet(8), tmp_path / "w.pt")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_all_tensors_with_nan_are_counted(tmp_path):
    state = {k: torch.full_like(v, float("nan")) if "bn1" in k and v.is_floating_point() else v
             for k, v in models.resnet(8).state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"bn1.weight holds 16 .* of 16 \(15 more tensors hold some, too\)"):
        models.load_weights(models.resnet(8), tmp_path / "w.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_point_becomes_the_nets(dtype, tmp_path):
    source = models.resnet(8)
    torch.save(source.to(dtype).state_dict(), tmp_path / "w.pt")
    net = models.load_weights(models.resnet(8), tmp_path / "w.pt")
    assert torch.equal(net.conv1.weight, source.conv1.weight.float())


def test_a_home_that_is_nobodys_is_a_missing_file():
    with pytest.raises(UserError, match="no weights at ~nobody-has-this-name/w.pt"):
        models.load_weights(models.resnet(8), "~nobody-has-this-name/w.pt")


# ---- published weights, by their name

SQUEEZED = {"_target_": "reprune.models.torchvision", "name": "net", "arch": "squeezenet1_1"}


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """Published weights are downloaded to tmp_path/checkpoints, or not at all."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a test asks the network"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(OSError("no network\nhere")))
    return tmp_path


@pytest.mark.parametrize("name", ["pretrained", "IMAGENET1K_V1"])
def test_published_weights_are_downloaded_once_and_known_by_what_they_hold(name, no_network, monkeypatch, configure):
    donor, asked = models.build(SQUEEZED), []

    def download(url, file, digits, progress):
        asked.append((url.rpartition("/")[2], digits))
        torch.save(donor.state_dict(), file)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    net = models.build({**SQUEEZED, "weights": name})
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in donor.state_dict().items())
    model = ["model=torchvision", "model.arch=squeezenet1_1", f"model.weights={name}"]
    by_name = Store(configure(*model)).config["model"]["weights"]
    assert asked == [("squeezenet1_1-b8a52dc0.pth", "b8a52dc0")]
    file = no_network / "checkpoints/squeezenet1_1-b8a52dc0.pth"
    assert by_name == Store(configure(*model, f"model.weights={file}")).config["model"]["weights"]
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize(("changes", "message"), [
    ({"weights": "pretrained"},
     "cannot get https://.*/squeezenet1_1-b8a52dc0.pth .*no network here.*set model.weights=FILE"),
    ({"weights": "IMAGENET1K_V9"},
     "neither a file nor weights of torchvision's squeezenet1_1; there are: pretrained, IMAGENET1K_V1"),
    ({"weights": "some.pth"}, "no weights at some.pth"),
    ({"arch": "squeeznet1_1", "weights": "pretrained"}, "did you mean squeezenet1_1"),
    ({"_target_": "reprune.models.lenet5", "arch": ..., "weights": "pretrained"}, "no weights at pretrained"),
])
def test_published_weights_that_are_not_to_be_had_are_one_line(changes, message, no_network):
    with pytest.raises(UserError, match=message) as error:
        models.build({key: value for key, value in {**SQUEEZED, **changes}.items() if value is not ...})
    assert "\n" not in str(error.value) and not any(no_network.rglob("*.pth*"))
