"""What every method that masks or recodes single weights must satisfy, and every file that a net is coded in."""

import copy
from contextlib import suppress
from functools import partial

import pytest
import torch
from conftest import ROOT
from hydra.utils import instantiate
from safetensors.torch import load_file
from test_methods import look
from test_resume import Cut, result
from torch import nn

from reprune import models
from reprune.errors import UserError
from reprune.methods.crossfilter import Levels
from reprune.methods.huffman import Huffman
from reprune.methods.stored import Int8, Stored
from reprune.pipeline import run
from reprune.pruning.masks import Latent
from reprune.pruning.sockets import Method
from reprune.structure.surgery import remove
from reprune.training.checkpoints import Unfinished

METHODS = sorted(file.stem for file in (ROOT / "conf/method").glob("*.yaml") if "\nmasks:" in file.read_text())
CODECS = {"huffman": Huffman, "levels": partial(Levels, bits=3), "binary": partial(Levels, share_over="in_channels"),
          "dense": Stored, "gzip": partial(Stored, "gzip"), "zstd": partial(Stored, "zstd")}
OPTIONS = {"obs": ["method.masks.n_samples=60"]}        # that little time is enough
LARGE = {"obs": ["method.masks.skip=[layer2.0.conv1,layer2.0.conv2,layer3.0.conv1,layer3.0.conv2]"]}


def small() -> nn.Module:
    torch.manual_seed(0)
    net = models.build({"_target_": "reprune.models.lenet5", "in_channels": 3, "classes": 4})
    return remove(net, {g.name: torch.arange(g.size) % 10 == 0 for g in look(net, torch.zeros(1, 3, 20, 20)).groups})


def masks_of(method: str, configure):
    return instantiate(configure(f"method={method}", *OPTIONS.get(method, [])).method).masks


def steps(net: nn.Module, mask, n: int, optimizer=None, first: int = 0, of: int = 12) -> torch.optim.Optimizer:
    """As the trainer takes them."""
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    weights = mask.weights(net)
    for step in range(first, first + n):
        draw = torch.Generator().manual_seed(step)
        x, y = torch.randn(16, 3, 20, 20, generator=draw), torch.randint(4, (16,), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        mask.before_step(weights)
        optimizer.step()
        mask.after_step(weights, optimizer, step + 1, of)
    return optimizer


@pytest.mark.parametrize("method", METHODS)
def test_what_is_masked_is_zero_at_every_step_and_so_is_its_momentum(method, configure):
    net, mask = small(), masks_of(method, configure)
    mask.start(net, look(net, torch.zeros(1, 3, 20, 20)))
    optimizer = None
    for step in range(12):
        optimizer = steps(net, mask, 1, optimizer, step)
        for name, weight in mask.weights(net).items():
            if name in mask.masks:
                assert not weight[~mask.masks[name]].any(), (step, name)
                held = optimizer.state.get(weight, {}).get("momentum_buffer")
                if held is not None and not isinstance(mask, Latent):
                    assert not held[~mask.masks[name]].any(), (step, name)
    assert any(not m.all() for m in mask.masks.values()) or not mask.masks


@pytest.mark.parametrize("method", METHODS)
def test_layers_to_skip_are_left_alone_and_unknown_ones_named(method, configure):
    net, mask = small(), masks_of(method, configure)
    before = net.conv1.weight.detach().clone()
    mask.skip = ("conv1",)
    mask.start(net, look(net, torch.zeros(1, 3, 20, 20)))
    assert torch.equal(net.conv1.weight, before) and not any(name.startswith("conv1") for name in mask.masks)
    mask.skip = ("conv7",)
    with pytest.raises(UserError, match=r"^method\.masks\.skip: there is no conv or linear layer 'conv7'; [^\n]*conv1"):
        mask.check(look(net, torch.zeros(1, 3, 20, 20)))


@pytest.mark.parametrize("method", METHODS)
def test_masks_go_on_from_their_state_bit_for_bit(method, configure):
    whole, mask = small(), masks_of(method, configure)
    parts = copy.deepcopy(whole)
    mask.start(whole, look(whole, torch.zeros(1, 3, 20, 20)))
    steps(whole, mask, 12)
    for at in (1, 9):
        net, before, after = copy.deepcopy(parts), masks_of(method, configure), masks_of(method, configure)
        before.start(net, look(net, torch.zeros(1, 3, 20, 20)))
        optimizer = steps(net, before, at)
        again = copy.deepcopy(parts)                              # another process: only what was saved
        after.start(again, look(again, torch.zeros(1, 3, 20, 20)))
        after.load_state_dict(copy.deepcopy(before.state_dict()))
        again.load_state_dict(net.state_dict())
        resumed = torch.optim.SGD(again.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        steps(again, after, 12 - at, resumed, at)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True)), at


@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_masks_cut_off_in_the_middle_ends_as_one_that_was_not(method, configure, monkeypatch, tmp_path):
    options = [f"method={method}", "recipe.sparse.epochs=2", *OPTIONS.get(method, []), *LARGE.get(method, [])]
    whole = run(configure(*options))
    weights = load_file(tmp_path / "outputs" / whole["key"] / "net.safetensors")
    with monkeypatch.context() as patch, suppress(Cut):
        old, left = Unfinished.on_train_epoch_end, [2]            # after the baseline's epoch and the first sparse one

        def cut(*args):
            old(*args)
            left[0] -= 1
            if not left[0]:
                raise Cut

        patch.setattr(Unfinished, "on_train_epoch_end", cut)
        run(configure(*options, f"output_dir={tmp_path}/cut"))
    assert list(tmp_path.glob("cut/*/stages/sparse.ckpt"))
    assert result(run(configure(*options, f"output_dir={tmp_path}/cut"))) == result(whole)
    again = load_file(tmp_path / "cut" / whole["key"] / "net.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in weights | again)
    assert ("density" in whole["pruned"]) == any(not w.all() for n, w in weights.items() if n.endswith("conv1.weight"))
    assert whole["pruned"]["params"] == whole["baseline"]["params"] and whole["epochs"]["sparse"] == 2


@pytest.mark.parametrize(("method", "option"), [("obs", "n_samples=60"), ("deepcomp", "share_from=0")])
def test_without_any_training_weights_go_all_the_same(method, option, configure, tmp_path):
    skip = next(iter(LARGE["obs"])) if method == "obs" else "method.masks.rate=0.5"
    record = run(configure(f"method={method}", f"method.masks.{option}", skip, "recipe.sparse.epochs=0"))
    assert record["epochs"]["sparse"] == 0 and record["pruned"]["density"] < 99
    weight = load_file(tmp_path / "outputs" / record["key"] / "net.safetensors")["layer1.0.conv1.weight"]
    assert method == "obs" or len(weight.unique()) <= 2**5 + 1


def test_masks_of_fresh_weights_and_masks_where_filters_go_are_refused(configure):
    with pytest.raises(UserError, match=r"^method 'dns' masks the weights of a trained net: [^\n]*$"):
        run(configure("method=dns", "recipe.sparse.from_scratch=true"))
    with pytest.raises(UserError, match="do not outlive the removal of filters"):
        Method("both", *[object()] * 3, masks=Latent())


def worn(share: float, values: int | None) -> nn.Module:
    """A net with some weights zero, the others of a few values."""
    net = small()
    with torch.no_grad():
        for p in net.parameters():
            if values:
                p.copy_((p * values / p.abs().max()).round() / values)
            p[torch.rand_like(p) < share] = 0
    return net.eval()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("share", "values"), [(0.9, 3), (0.0, 3), (0.5, None), (1.0, 1), (0.999, 2)])
def test_a_coded_net_comes_back_as_it_was(codec, share, values, tmp_path):
    net, file, x = worn(share, values), tmp_path / "net", torch.randn(2, 3, 20, 20)
    for layout in (torch.contiguous_format, torch.channels_last):
        net = net.to(memory_format=layout)
        CODECS[codec]().encode(net, file)
        again = CODECS[codec]().decode(file)
        was, now = net.state_dict(), again.state_dict()
        assert list(now) == list(was) and not again.training
        assert all(torch.equal(now[name], was[name]) for name in was)
        assert torch.equal(again(x), net(x))
        assert again.conv2.weight.is_contiguous(memory_format=layout)


def test_eight_bits_are_off_by_half_a_step_at_most_and_come_back_as_they_are(tmp_path):
    net, file = worn(0.5, None), tmp_path / "net"
    Int8().encode(net, file)
    size, again = file.stat().st_size, Int8().decode(file)
    for was, now in zip(net.parameters(), again.parameters(), strict=True):
        step = was.flatten(1).abs().amax(1, keepdim=True) / 127 if was.dim() > 1 else torch.zeros(1)
        assert ((now.view(len(was), -1) - was.view(len(was), -1)).abs() <= 0.501 * step).all()
    Int8().encode(again, file)
    assert file.stat().st_size == size and all(map(torch.equal, again.parameters(), Int8().decode(file).parameters()))


@pytest.mark.parametrize("codec", [*CODECS, "int8"])
def test_a_damaged_file_is_refused_in_one_line(codec, tmp_path):
    file, codec = tmp_path / "net", {**CODECS, "int8": Int8}[codec]
    codec().encode(worn(0.5, 3), file)
    good = file.read_bytes()
    other = good.replace(b"lenet5", b"lenet6") if b"lenet5" in good else good[:99] + bytes([good[99] ^ 1]) + good[100:]
    for bad in (b"", b"rubbish" * 100, good[:-40], other):
        file.write_bytes(bad)
        with pytest.raises(UserError, match=r"^[^\n]*: refused, no net coded by [^\n]*$"):
            codec().decode(file)
    with pytest.raises(UserError, match="refused"):
        codec().decode(tmp_path / "none")
