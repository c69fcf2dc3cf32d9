"""Criteria that look at feature maps: where these are, and the literal formulas of the papers."""

import json

import pytest
import torch
import torchvision
from ga_nets import Fixed, images
from nets import build, quiet_trace
from test_wiring import wired
from torch import nn

from reprune.errors import UserError
from reprune.methods.apoz import APoZ, MeanStd
from reprune.methods.taylor2016 import Taylor
from reprune.methods.taylor2019 import TaylorFO
from reprune.models import build as model
from reprune.pipeline import run
from reprune.pruning import Steps
from reprune.pruning.maps import Maps
from reprune.pruning.probe import Probe
from reprune.structure.surgery import remove
from reprune.training.classifier import Classifier


class Images(Fixed):
    """The held-out images are all there are, in their order."""

    name = "fixed"

    def __init__(self, x, y=None):
        super().__init__(x, torch.arange(len(x)) % 4 if y is None else y)
        self.parts.val = self.parts.train

    def val(self, batch_size, device="cpu"):
        return list(zip(self.x.split(batch_size), self.y.split(batch_size), strict=True))


def look(net, x, **options) -> Probe:
    return Probe(net.eval(), x[:1], Images(x), batch_size=3, **options)


def chain() -> nn.Sequential:
    """Two convs with a pooling behind the first ReLU, which works in place; then a flattened map."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                        nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(5 * 2 * 2, 4))
    nn.init.uniform_(net[1].weight, -1, 1)
    nn.init.uniform_(net[1].bias, -1, 1)
    return net.double().eval()


def relu_maps(net, x):
    """What comes out of the two ReLUs, by hand."""
    first = torch.relu(net[1](net[0](x)))
    return first, torch.relu(net[4](net[3](first)))


def test_apoz_is_its_equation_after_the_relu_and_before_the_pooling():
    net, x = chain(), images(8, size=10)
    scores = APoZ()(look(net, x).groups, look(net, x))
    for name, maps in zip(("0", "4"), relu_maps(net, x), strict=True):
        for c in range(maps.shape[1]):
            zeros = sum(value == 0 for k in range(len(x)) for value in maps[k, c].flatten().tolist())
            assert float(scores[name][c]) == pytest.approx(1 - zeros / maps[:, c].numel(), rel=1e-6)
    assert scores["0"].unique().numel() > 3


def test_apoz_looks_at_so_many_held_out_examples_and_at_no_others():
    net, x = chain(), images(8, size=10)
    probe = look(net, x)
    few = APoZ(n_examples=5)(probe.groups, probe)
    whole = look(net, x[:5])
    assert all(torch.equal(few[name], score) for name, score in APoZ()(whole.groups, whole).items())


def test_mean_std_removes_what_lies_beyond_one_deviation_of_the_layers_that_are_zero_most_often():
    probe = look(model({"_target_": "reprune.models.resnet", "depth": 8}), images(2, size=16).float())
    names = [g.name for g in probe.groups if not g.coupled]
    scores = {name: torch.linspace(0.5, 0.6, size) + at for at, (name, size) in enumerate(
        (g.name, g.size) for g in probe.groups if not g.coupled)}
    for name in names:
        scores[name][[1, 3]] -= 0.5                               # two that hardly ever fire
    plan = MeanStd(groups="inner")(scores, probe)
    assert list(plan) == names[:2]
    assert all((~mask).nonzero().flatten().tolist() == [1, 3] for mask in plan.values())
    assert list(MeanStd(groups="inner")(scores, probe)) == [*names[2:]][:2]         # the next ones
    assert len(names) == 3 and list(MeanStd(groups="inner")(scores, probe)) == names[:2]        # all over again
    assert list(MeanStd(groups="inner", layers=None)(scores, probe)) == names
    even = {name: torch.ones_like(score) for name, score in scores.items()}
    assert not MeanStd(groups="inner")(even, probe)


@pytest.mark.parametrize(("change", "words"), [
    (lambda net, data: net.__setitem__(2, nn.LeakyReLU()), "outputs of 0 are not those of a ReLU"),
    (lambda net, data: setattr(data.parts, "val", []), "dataset.val_size")])
def test_what_apoz_cannot_serve_is_refused_in_one_line(change, words):
    net, x = chain(), images(8, size=10)
    data = Images(x)
    change(net, data)
    probe = Probe(net.eval(), x[:1], data)
    with pytest.raises(UserError, match=words):
        APoZ().check(probe.groups, probe)


@pytest.mark.parametrize("name", ["cifar-resnet8", "cifar-vgg16-512", "alexnet", "densenet121", "googlenet",
                                  "mobilenet_v2"])
@pytest.mark.filterwarnings("ignore")
def test_a_filter_acts_through_its_maps_and_nothing_else_does(name):
    """With the maps of some filters set to zero at their places, a net says what it says without these filters. (Not in
    a residual stage: its sum goes on beside the readers.)"""
    net, x = build(name)
    groups = [g for g in quiet_trace(net, x) if not g.coupled][:6]
    for group in groups:
        gone = torch.zeros(group.size, dtype=torch.bool)
        gone[1] = True

        def see(node, value, group=group, gone=gone):
            (place,) = [p for p in maps.places[group.name] if p.node == node]
            mask = torch.ones(value.shape[1], dtype=value.dtype)
            each = place.inputs // value.shape[1]
            mask[(place.index[gone] // each).flatten()] = 0
            return value * mask.view(1, -1, *[1] * (value.dim() - 2))

        maps = Maps(net, [group], see)
        smaller = remove(net, {group.name: ~gone})
        with torch.no_grad():
            torch.testing.assert_close(maps.run(x), smaller(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["flatten", "flatten after permute", "view with a size and -1", "concat",
                                  "depthwise conv", "grouped conv", "module called twice"])
def test_every_filter_finds_its_own_channels(name):
    net, x, *_ = wired(name)
    groups = quiet_trace(net, x)
    values = {}
    maps = Maps(net.eval(), groups, lambda node, value: values.__setitem__(node, value))
    maps.run(x)
    for group in groups:
        for place in maps.places[group.name]:
            found = place.of(torch.arange(values[place.node].shape[1]))
            assert found.shape[0] == group.size and found.flatten().unique().numel() == found.numel()


def effects(net, x, y):
    """dC/dz z of each example at the two ReLUs of the chain, by hand: [N, C, M] each."""
    first = torch.relu(net[1](net[0](x)))
    first.requires_grad_()
    second = torch.relu(net[4](net[3](first)))
    loss = nn.functional.cross_entropy(net[8](second.flatten(1)), y, reduction="sum")
    return [(z * g).detach().flatten(2) for z, g in zip((first, second), torch.autograd.grad(loss, (first, second)),
                                                        strict=True)]


def test_taylor2016_is_its_equations_and_takes_the_absolute_value_of_each_example():
    net, x = chain(), images(8, size=10)
    probe, y = look(net, x), torch.arange(8) % 4
    raw = Taylor(normalise=False, flops_lambda=0)(probe.groups, probe)
    scores = Taylor(flops_lambda=0.01)(probe.groups, probe)
    macs = {"0": (8 * 8 * 27 + 2 * 2 * 5 * 9) / 1e6, "4": (2 * 2 * 6 * 9 + 4 * 4) / 1e6}
    for name, effect in zip(("0", "4"), effects(net, x, y), strict=True):
        theta = [sum(abs(sum(m) / len(m)) for m in effect[:, c].tolist()) / 8 for c in range(effect.shape[1])]
        assert raw[name].tolist() == pytest.approx(theta, rel=1e-5)
        norm = sum(t * t for t in theta) ** 0.5
        assert scores[name].tolist() == pytest.approx([t / norm - 0.01 * macs[name] for t in theta], rel=1e-5)
        late = [abs(sum(sum(m) / len(m) for m in effect[:, c].tolist())) / 8 for c in range(effect.shape[1])]
        assert raw[name].tolist() != pytest.approx(late, rel=1e-3)            # the trap: after the mean of the batch


def test_taylor2016_does_not_depend_on_how_many_images_run_at_once():
    net, x = chain(), images(8, size=10)
    probe = look(net, x)
    some, all_ = (Taylor(batch_size=n)(probe.groups, probe) for n in (3, 8))
    assert all(torch.allclose(some[name], all_[name], rtol=1e-6) for name in some)


def test_taylor2019_is_its_equation_and_squares_each_mini_batch():
    """With a gate between batch norm and ReLU, as the paper has it."""
    net, x = chain(), images(8, size=10)
    probe, y, found = look(net, x), torch.arange(8) % 4, []
    rows = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    for batch in rows.split(4):
        g = torch.ones(1, 6, 1, 1, dtype=torch.double, requires_grad=True)
        logits = net[3:](torch.relu(g * net[1](net[0](x[batch]))))
        found.append(torch.autograd.grad(nn.functional.cross_entropy(logits, y[batch]), g)[0].flatten())
    expected = sum(each ** 2 for each in found) / 2
    scores = TaylorFO(batch_size=4)(probe.groups, probe)
    assert torch.allclose(scores["0"].double(), expected, rtol=1e-5)
    assert not torch.allclose(scores["0"].double(), (sum(found) / 2) ** 2, rtol=1e-2)       # the trap
    thirds = TaylorFO(batch_size=4, reproduce_divisor=True)(probe.groups, look(net, x))
    assert all(torch.allclose(thirds[name], scores[name] / 3) for name in scores)


def test_taylor2019_has_one_gate_on_the_sums_of_a_stage_and_divides_by_its_blocks():
    net = build("narrow-resnet18")[0]
    x, y = images(8, size=32), torch.arange(8) % 4
    probe = look(net, x)
    scores = TaylorFO(batch_size=8)(probe.groups, probe)
    g = torch.ones(1, net.layer2[0].conv2.out_channels, 1, 1, dtype=torch.double, requires_grad=True)
    h = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))
    for block in net.layer2:
        h = g * block(h)
    logits = net.fc(net.avgpool(net.layer4(net.layer3(h))).flatten(1))
    gradient = torch.autograd.grad(nn.functional.cross_entropy(logits, y), g)[0].flatten()
    assert torch.allclose(scores["layer2.0.conv2"].double(), gradient ** 2 / 2, rtol=1e-5)
    code = TaylorFO(batch_size=8, reproduce_divisor=True)(probe.groups, look(net, x))
    assert torch.equal(code["layer2.0.conv2"], scores["layer2.0.conv2"])
    assert torch.allclose(code["layer2.0.conv1"], scores["layer2.0.conv1"] / 3)


def test_the_stages_of_a_resnet50_have_as_many_gates_as_blocks():
    with torch.device("meta"):
        net = torchvision.models.resnet50()
    net = net.to_empty(device="cpu").eval()
    groups = quiet_trace(net, torch.zeros(1, 3, 32, 32))
    places = Maps(net, groups, lambda node, value: None).places
    assert [len(places[g.name]) for g in groups if g.coupled] == [3, 4, 6, 3]
    assert all(len(places[g.name]) == 1 for g in groups if not g.coupled)


def test_taylor2019_remembers_the_scores_of_the_round_before():
    net, x = chain(), images(8, size=10)
    probe, criterion = look(net, x), TaylorFO(batch_size=4)
    first = criterion(probe.groups, probe)
    keep = torch.tensor([True, False, True, True, False, True])
    handed = json.loads(json.dumps(probe.carried))
    after = look(remove(net, {"0": keep}), x, carried=handed)
    scores = criterion(after.groups, after)
    fresh = TaylorFO(batch_size=4, momentum=0)(after.groups, after)
    assert torch.allclose(scores["0"], 0.9 * first["0"][keep] + 0.1 * fresh["0"], rtol=1e-5)
    assert torch.allclose(scores["4"], 0.9 * first["4"] + 0.1 * fresh["4"], rtol=1e-5)


def test_batches_between_rounds_are_no_epochs(configure, monkeypatch):
    seen = []
    monkeypatch.setattr(Classifier, "training_step", lambda self, batch, n, step=Classifier.training_step: (
        seen.append(self.stage), step(self, batch, n))[1])
    record = run(configure("method=taylor2016", "method.rounds.n=3", "method.rounds.batches=2"))
    assert seen.count("recover") == 2 * 2 + 4 and record["epochs"]["recover"] == 1       # 240 images, 60 in a batch
    with pytest.raises(UserError, match="rounds: batches must be at least 1"):
        Steps(epochs=2, batches=3)
