"""Files from strangers: whatever they hold, the answer is a net or one line, and memory that the file is worth."""

import json
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import random_plan
from safetensors.torch import load_file, save_file

import reprune
from reprune import models
from reprune.errors import UserError
from reprune.models import checkpoint

MODEL = {"_target_": "reprune.models.resnet", "name": "resnet8", "depth": 8, "classes": 7}
quick = settings(max_examples=40, deadline=None, derandomize=True,
                 suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a pruned net as `save` writes it, and its weights as `torch.save` does."""
    folder, net = tmp_path_factory.mktemp("good"), models.build(MODEL)
    reprune.trace(net, torch.zeros(1, 3, 32, 32))
    net = reprune.remove(net, random_plan(net, 0), check=False)
    reprune.save(net, folder / "net.safetensors")
    torch.save(models.resnet(8).state_dict(), folder / "zip.pt")
    torch.save(models.resnet(8).state_dict(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    return folder


def answer(read, path) -> str:
    """"" where it is read, else the one line."""
    try:
        read(path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500, str(error)[:2000]
        return str(error)
    return ""


def weights(path):
    return models.load_weights(models.resnet(8), path)


# ---------------------------------------------------------------- by hand

def header(path, to, text=None, **changes):
    """The checkpoint `path` with other facts in its header (or any text) over the same tensors."""
    text = json.dumps(checkpoint.read_header(path) | changes) if text is None else text
    save_file(load_file(path), to, {"reprune": text})
    return to


VGG = {"_target_": "reprune.models.vgg", "depth": 16}
ZOO = {"_target_": "reprune.models.torchvision"}
BOMBS = {
    "classes": {"model": {**MODEL, "classes": 10**9}}, "negative": {"model": {**MODEL, "classes": -7}},
    "channels": {"model": {**MODEL, "in_channels": 10**9}}, "hidden": {"model": {**VGG, "hidden": 10**18}},
    "many classes": {"model": {**MODEL, "classes": 10**5}}, "large net": {"model": {**ZOO, "arch": "vit_h_14"}},
    "another large net": {"model": {**ZOO, "arch": "regnet_y_128gf"}},
    "long name": {"model": {**ZOO, "arch": "x" * 10**6}}, "long target": {"model": {"_target_": "x" * 10**6}},
    "long option": {"model": {**MODEL, "x" * 10**6: 1}}, "list": {"model": {**MODEL, "depth": [8] * 10**5}},
    "not finite": {"model": {**MODEL, "classes": float("nan")}},
    "index": {"history": [{"conv1": [10**18]}]}, "index past": {"history": [{"conv1": [16]}]},
    "negative index": {"history": [{"conv1": [-1]}]}, "twice": {"history": [{"conv1": [1, 1]}]},
    "half a filter": {"history": [{"conv1": [0.5]}]}, "a bool": {"history": [{"conv1": [True]}]},
    "many indices": {"history": [{"conv1": list(range(10**5))}]}, "plans": {"history": [{"conv1": [0]}] * 10**5},
    "unknown group": {"history": [{"conv9": [0]}]}, "no layer": {"history": [{"linear#x" * 10**4: [0]}]},
    "large image": {"input_shape": [3, 40000, 40000]}, "wide image": {"input_shape": [3, 1, 10**18]},
    "channels of an image": {"input_shape": [10**9, 32, 32]}, "negative image": {"input_shape": [3, -32, -32]},
    "flat image": {"input_shape": [3, 32]}, "empty image": {"input_shape": [3, 0, 32]},
}
TEXTS = {"nested": "[" * 10**6, "nested mappings": '{"a":' * 10**5, "long text": json.dumps("x" * 10**7),
         "many lists": f"[{'[],' * 10**6}[]]", "digits": "1" * 10**5, "half a character": '"\\ud800"'}


def write_bombs(good, folder):
    """-> how to read it, path"""
    source = good / "net.safetensors"
    for name, changes in BOMBS.items():
        yield "load", header(source, folder / f"{name}.safetensors", **changes)
    for name, text in TEXTS.items():
        yield "load", header(source, folder / f"{name}.safetensors", text)
    for length in (2**60, 90 * 2**20):
        path = folder / f"{length}.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + b"{")
        with path.open("r+b") as file:
            file.truncate(100 * 2**20)                            # no block of it lies on the disk
        yield "load", path
        yield "weights", path
    with zipfile.ZipFile(good / "zip.pt") as archive, \
            zipfile.ZipFile(folder / "deflated.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        for name in archive.namelist():
            out.writestr(name, archive.read(name))
        with out.open("zip/data/zeros", "w", force_zip64=True) as entry:
            for _ in range(300):
                entry.write(bytes(2**20))
    yield "weights", folder / "deflated.pt"
    for name in ("__builtin__", "builtins"):
        path, argument = folder / f"{name}.pt", b"\x8a\x04\x00\x00\x00\x40\x85R"           # 2**30
        path.write_bytes(b"\x80\x02}X\x01\x00\x00\x00ac" + name.encode() + b"\nbytearray\n" + argument + b"s.")
        yield "weights", path
    torch.save({**models.resnet(8).state_dict(), "conv1.weight": torch.zeros(1).expand(10**6, 10**6)},
               folder / "expanded.pt")
    yield "weights", folder / "expanded.pt"


READ_ALL = """
import json, resource, sys
import reprune
from reprune import models
from reprune.errors import UserError
reprune.load(sys.argv[1]), models.torchvision("mobilenet_v2")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, said = peak(), []
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30,) * 2)
for how, path in json.load(sys.stdin):
    try:
        reprune.load(path) if how == "load" else models.load_weights(models.resnet(8), path)
        said.append("")
    except UserError as error:
        said.append(str(error))
print(json.dumps({"MiB": (peak() - before) / 1024, "said": said}))
"""


def test_bombs_are_one_line_each_and_take_no_memory(good, tmp_path):
    bombs = [(how, str(path)) for how, path in write_bombs(good, tmp_path)]
    done = subprocess.run([sys.executable, "-c", READ_ALL, good / "net.safetensors"], input=json.dumps(bombs),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert all(line and "\n" not in line and len(line) < 1500 for line in found["said"]), \
        [bomb for bomb, line in zip(bombs, found["said"], strict=True) if not line or len(line) > 1500]
    assert found["MiB"] < 200, found


# ---------------------------------------------------------------- by chance

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) |
                      st.dictionaries(st.text(max_size=10), inner, max_size=4), max_leaves=12)
fields = st.sampled_from(["format", "model", "input_shape", "history", "channels_last"])
options = st.sampled_from(["_target_", "name", "depth", "classes", "in_channels", "weights", "other"])
plans = st.dictionaries(st.sampled_from(["conv1", "layer1.0.conv1", "layer2.0.conv1", "linear", "x"]),
                        st.lists(st.integers(-2, 20) | leaves, max_size=20), max_size=3)


@quick
@given(values)
def test_any_json_as_a_header(good, tmp_path, value):
    path = header(good / "net.safetensors", tmp_path / "x.safetensors", json.dumps(value))
    assert answer(checkpoint.read_header, path) and answer(reprune.load, path)


@quick
@given(st.dictionaries(fields, values, max_size=2), st.dictionaries(options, leaves, max_size=2),
       st.lists(plans, max_size=3) | st.none())
def test_a_header_of_ours_with_other_facts(good, tmp_path, changes, model, history):
    before = checkpoint.read_header(good / "net.safetensors")
    changes = {"model": before["model"] | model, "history": before["history"] if history is None else history} | changes
    path = header(good / "net.safetensors", tmp_path / "x.safetensors", **changes)
    answer(checkpoint.read_header, path)
    answer(reprune.load, path)


@quick
@given(st.binary(max_size=300))
def test_any_bytes_as_a_file(tmp_path, content):
    for name in ("x.safetensors", "x.pt"):
        (tmp_path / name).write_bytes(content)
        for read in (checkpoint.read_header, reprune.load, weights):
            assert answer(read, tmp_path / name)


@quick
@given(st.sampled_from(["net.safetensors", "zip.pt", "legacy.pt"]), st.data())
def test_a_file_of_ours_with_other_bytes(good, tmp_path, name, data):
    """Most of a file is numbers, so three of four changes are made where it says what they are."""
    content = bytearray((good / name).read_bytes())
    start = data.draw(st.sampled_from([0, 0, 0, len(content) // 2]))
    where = st.integers(start, min(len(content) - 1, start + 6000)) | st.integers(max(0, len(content) - 3000),
                                                                                  len(content) - 1)
    for at, byte in data.draw(st.dictionaries(where, st.integers(0, 255), min_size=1, max_size=3)).items():
        content[at] = byte
    (tmp_path / name).write_bytes(content)
    for read in (checkpoint.read_header, reprune.load) if name.startswith("net") else (weights,):
        answer(read, tmp_path / name)


@quick
@given(st.dictionaries(leaves, values, max_size=5), st.booleans())
def test_any_values_as_weights(tmp_path, content, wrapped):
    torch.save({"state_dict": content} if wrapped else content, tmp_path / "x.pt")
    assert answer(weights, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(pickle.dumps(content, 2))
    assert answer(weights, tmp_path / "x.pt")


