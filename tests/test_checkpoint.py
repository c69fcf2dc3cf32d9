"""Checkpoints: the same bits come back, a file is whole or not there, and what is not ours is refused unopened."""

import json
import pickle

import pytest
import torch
from nets import quiet_trace, random_plan
from safetensors.torch import load_file, save_file

import reprune
from reprune import files, models
from reprune.errors import UserError
from reprune.models import checkpoint

RESNET = {"_target_": "reprune.models.resnet", "name": "resnet8", "depth": 8, "classes": 7}
MODELS = {
    "option A": RESNET, "VGG": {"_target_": "reprune.models.vgg", "depth": 16, "hidden": 64},
    "stem": {"_target_": "reprune.models.resnet_cifar_stem", "depth": 18},
    "narrow": {"_target_": "reprune.models.narrow_alexnet"}, "narrow VGG": {"_target_": "reprune.models.narrow_vgg"},
    "narrow ResNet": {"_target_": "reprune.models.narrow_resnet", "depth": 18},
    "option B": {"_target_": "reprune.models.resnet_b", "depth": 8},
    "pre-activation": {"_target_": "reprune.models.preresnet", "depth": 20},
    "DenseNet": {"_target_": "reprune.models.densenet", "depth": 13, "stem": 16},
    "GoogLeNet": {"_target_": "reprune.models.googlenet"},
    "MobileNet": {"_target_": "reprune.models.mobilenet_v1"},
    "MobileNetV2": {"_target_": "reprune.models.mobilenet_v2"},
    "VGG-13": {"_target_": "reprune.models.vgg", "depth": 13, "bn_last": True},
    "LeNet-5": {"_target_": "reprune.models.lenet5", "in_channels": 3},
    "LeNet-300-100": {"_target_": "reprune.models.lenet300", "in_channels": 3},
    "torchvision": {"_target_": "reprune.models.torchvision", "arch": "mobilenet_v3_small", "classes": 5},
}


def pruned(model=RESNET, rounds=1, channels_last=False):
    """A net after some training-mode passes and `rounds` removals, and a batch for it."""
    torch.manual_seed(0)
    net, x = models.build(model), torch.randn(3, 3, 32, 32)
    if channels_last:
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        net.train()(x)
    for seed in range(rounds):
        quiet_trace(net, x)
        net = reprune.remove(net, random_plan(net, seed, rate=0.3))
    return net.eval(), x


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("name", "rounds"), [("option A", 0), ("option A", 1), ("option A", 3), ("VGG", 2),
                                              ("stem", 1), ("narrow", 2), ("narrow VGG", 1), ("narrow ResNet", 1),
                                              ("option B", 1), ("pre-activation", 2), ("DenseNet", 2),
                                              ("GoogLeNet", 1), ("MobileNet", 1), ("MobileNetV2", 1), ("VGG-13", 1),
                                              ("LeNet-5", 2), ("LeNet-300-100", 2), ("torchvision", 2)])
def test_a_net_comes_back_bit_equal(name, rounds, channels_last, tmp_path):
    """Outputs too, so also the memory layout: it decides which kernel runs. GraphModules (option A) and classes alike,
    and saving what was loaded gives the same file."""
    net, x = pruned(MODELS[name], rounds, channels_last)
    reprune.save(net, tmp_path / "net.safetensors")
    again = reprune.load(tmp_path / "net.safetensors")
    assert list(again.state_dict()) == list(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))
    assert torch.equal(again(x), net(x))
    assert not any(m.training for m in again.modules())
    reprune.save(again, tmp_path / "again.safetensors")
    first, second = tmp_path / "net.safetensors", tmp_path / "again.safetensors"
    assert checkpoint.read_header(first) == checkpoint.read_header(second)
    assert all(torch.equal(a, b) for a, b in zip(load_file(first).values(), load_file(second).values(), strict=True))


def test_a_loaded_net_can_be_trained_and_pruned_on(tmp_path):
    net, x = pruned()
    reprune.save(net, tmp_path / "net.safetensors")
    again = reprune.load(tmp_path / "net.safetensors").train()
    again(x).sum().backward()
    assert all(p.grad is not None for p in again.parameters())
    quiet_trace(again, x)
    smaller = reprune.remove(again, random_plan(again, 5, rate=0.3)).eval()
    reprune.save(smaller, tmp_path / "smaller.safetensors")
    assert torch.equal(reprune.load(tmp_path / "smaller.safetensors")(x), smaller(x))


def test_a_net_built_elsewhere_is_saved_with_the_config_it_is_given(tmp_path):
    torch.manual_seed(0)
    net, x = models.resnet(8, classes=7).eval(), torch.randn(2, 3, 32, 32)
    with pytest.raises(UserError, match="how this ResNet was built is not known"):
        reprune.save(net, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
    reprune.save(net, tmp_path / "net.safetensors", model=RESNET)
    assert torch.equal(reprune.load(tmp_path / "net.safetensors")(x), net(x))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("stage", ["save_model", "replace"])
def test_a_save_that_fails_leaves_nothing_or_the_file_that_was_there(stage, before, tmp_path, monkeypatch):
    """The disk fills up half-way, or the process cannot put the file in its place."""
    path = tmp_path / "net.safetensors"
    if before:
        reprune.save(pruned()[0], path)
    content = path.read_bytes() if before else None

    def fail(*args, **_):
        if stage == "save_model":
            with open(args[1], "wb") as file:
                file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint if stage == "save_model" else files.os, stage, fail)
    with pytest.raises(UserError, match="net.safetensors: cannot be written .No space left"):
        reprune.save(pruned(rounds=2)[0], path)
    assert list(tmp_path.iterdir()) == ([path] if before else [])
    assert not before or path.read_bytes() == content


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return open, (str(self.flag), "w")


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        reprune.load(path)
    message = str(caught.value)
    assert all(w in message for w in (*words, path.name)) and "\n" not in message


def test_a_file_that_is_not_there(tmp_path):
    refused(tmp_path / "net.safetensors", "no checkpoint at", str(tmp_path))


@pytest.mark.parametrize("write", [
    lambda path, flag: path.write_bytes(pickle.dumps(Payload(flag))),
    lambda path, flag: torch.save({"net": Payload(flag)}, path),
    lambda path, flag: torch.save(models.resnet(8).state_dict(), path),
    lambda path, flag: path.write_bytes(b""),
    lambda path, flag: path.write_bytes(b"\xff" * 64),
    lambda path, flag: path.write_text("not a checkpoint"),
], ids=["pickle payload", "torch.save payload", "torch.save weights", "empty", "huge header length", "text"])
def test_what_is_no_safetensors_file_is_refused_and_not_run(write, tmp_path):
    path, flag = tmp_path / "net.safetensors", tmp_path / "payload-ran"
    write(path, flag)
    refused(path, "refused, not a readable safetensors file")
    assert not flag.exists()


def test_the_payload_of_these_tests_would_run(tmp_path):
    """So that the test above can fail."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "payload-ran"))).close()
    assert (tmp_path / "payload-ran").exists()


@pytest.mark.parametrize("size", [4, 100, 0.5, -1])
def test_a_truncated_file_is_refused(size, tmp_path):
    path = tmp_path / "net.safetensors"
    reprune.save(pruned()[0], path)
    content = path.read_bytes()
    path.write_bytes(content[:int(size * len(content)) if size == 0.5 else size])
    refused(path, "refused")


def test_safetensors_of_another_program_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    later = {"format": "reprune/999", "model": RESNET, "input_shape": [3, 8, 8], "history": [], "channels_last": False}
    for header in ("[]", "{", "null", '{"format": "reprune/1"}', json.dumps(later)):
        save_file(models.resnet(8).state_dict(), path, {"reprune": header})
        refused(path, "refused")
    for metadata in (None, {"format": "pt"}):
        save_file(models.resnet(8).state_dict(), path, metadata)
        refused(path, "refused")


def rewrite(path, **changes):
    """The file with another header over the same tensors."""
    header = checkpoint.read_header(path) | changes
    save_file(load_file(path), path, {"reprune": json.dumps(header)})


@pytest.mark.parametrize("target", ["os.system", "reprune.models.load_weights", "torchvision.models.resnet18", "resnet",
                                    "reprune.models.build", None, ["os.system"]])
def test_a_header_may_only_name_the_builders_of_this_package(target, tmp_path):
    """A dotted path in a stranger's file is looked up in a list and never imported."""
    path = tmp_path / "net.safetensors"
    reprune.save(pruned()[0], path)
    rewrite(path, model={"_target_": target, "command": f"touch {tmp_path}/ran"})
    with pytest.raises(UserError, match="is not a model builder"):
        reprune.load(path)
    assert not (tmp_path / "ran").exists()


def test_a_header_may_not_name_other_files_to_read(tmp_path):
    path, net = tmp_path / "net.safetensors", pruned()[0]
    reprune.save(net, path)
    rewrite(path, model={**RESNET, "weights": str(tmp_path / "stolen.th")})
    assert torch.equal(reprune.load(path).linear.weight, net.linear.weight)


@pytest.mark.parametrize("changes", [
    {"model": {**RESNET, "depth": 20}}, {"model": {**RESNET, "classes": 10}}, {"history": []},
    {"history": [{"conv1": [0, 1]}]}, {"history": [{"conv1": [10 ** 6]}]}, {"history": [{"conv1": ["0"]}]},
    {"history": [["conv1"]]}, {"history": [7]}, {"history": [{"layer1.0.conv1": list(range(16))}]},
    {"input_shape": []}, {"input_shape": ["a"]}, {"input_shape": [-3, 32, 32]}, {"input_shape": [1, 32, 32]},
], ids=lambda c: json.dumps(c)[:60])
def test_a_header_that_does_not_fit_the_tensors_is_refused_in_one_line(changes, tmp_path):
    path = tmp_path / "net.safetensors"
    reprune.save(pruned()[0], path)
    rewrite(path, **changes)
    with pytest.raises(UserError) as caught:
        reprune.load(path)
    assert "\n" not in str(caught.value)


def test_a_tensor_too_few_or_too_many_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    reprune.save(pruned()[0], path)
    header, tensors = checkpoint.read_header(path), load_file(path)
    for changed in ({k: v for k, v in tensors.items() if k != "conv1.weight"}, tensors | {"more": torch.zeros(1)}):
        save_file(changed, path, {"reprune": json.dumps(header)})
        refused(path, "its tensors do not fit the net its header describes")
