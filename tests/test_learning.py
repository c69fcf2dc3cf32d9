"""Methods that learn while the net trains: what they put into it, what they learn, and what they leave."""

import copy
import math
import signal

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from test_resume import Cut
from test_signals import dies, signal_at  # noqa: F401  (a fixture)
from torch import nn

import reprune
from reprune.errors import UserError
from reprune.methods import kdfs, scop, ucp
from reprune.models import build
from reprune.pipeline import run
from reprune.pruning import Learned, Method, OneShot, Uniform
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Step
from reprune.structure.groups import trace
from reprune.training.classifier import fit

EXAMPLE = torch.zeros(1, 3, 8, 8)
METHODS = ["scop", "ucp", "kdfs", "manidp"]


class Images:
    """Twelve of them, in batches of five."""

    parts = type("Parts", (), {"train": range(12)})
    x, y = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4

    def plain(self, batch_size, seed, n, device):
        return list(zip(self.x[:n].split(5), self.y[:n].split(5), strict=True))


def net(depth=8):
    torch.manual_seed(0)
    made = build({"_target_": "reprune.models.resnet", "depth": depth, "classes": 4})
    for m in made.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.5, 0.5)
    return made


def started(during, of=None, **view):
    """-> it, and the net that it has started on"""
    of = of or net()
    torch.manual_seed(1)
    during.view = {"example": EXAMPLE, "data": Images(), "batch_size": 5, "seed": 0, **view}
    during.start(of)
    return during, of


def sampler(macs=0.5, **options):
    return kdfs.Sampler(kdfs.Sampled(macs=macs), **options)


# ---------------------------------------------------------------- the socket

@pytest.mark.parametrize("method", METHODS)
def test_training_cut_off_in_an_epoch_ends_as_one_that_was_not(method, configure, monkeypatch, tmp_path, dies):  # noqa: F811
    cfg = configure(f"method={method}", "recipe.sparse.epochs=3", "recipe.batch_size=100", "model=resnet8",
                    "dataset.limit=260")

    def train(name):
        of = build({**cfg.model, "_target_": "reprune.models.resnet", "in_channels": 1, "classes": 10})
        during, data = instantiate(cfg.method).during, instantiate(cfg.dataset)
        during.view = {"example": torch.zeros(1, 1, 8, 8), "data": data, "batch_size": 50, "seed": 0}
        facts = fit(of, data, cfg, "sparse", "sparse", during=during, teacher=copy.deepcopy(of),
                    unfinished=tmp_path / name)
        return of.state_dict(), facts

    torch.manual_seed(0)
    whole, facts = train("whole")
    torch.manual_seed(0)
    for step in (5, 3):                                           # of three batches an epoch: in the second, the third
        with monkeypatch.context() as patch, pytest.raises(Cut):
            signal_at(patch, step, signal.SIGTERM)
            torch.manual_seed(0)
            train("cut")
    torch.manual_seed(0)
    again, repeated = train("cut")
    assert facts["curve"] == repeated["curve"] and facts["carried"] == repeated["carried"]
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_scores_that_were_learned_follow_the_filters_and_nothing_learned_is_an_error():
    of = net()
    probe = Probe(of, EXAMPLE)
    inner = next(g for g in probe.groups if not g.coupled)
    carried = {"learned": {inner.name: list(range(inner.size))}}
    smaller = reprune.remove(of, {inner.name: torch.arange(inner.size) % 2 > 0})
    later = Probe(smaller, EXAMPLE, carried=carried)
    assert Learned()(later.groups, later) == {inner.name: pytest.approx(torch.arange(1., inner.size, 2))}
    with pytest.raises(UserError, match=r"^Learned: [^\n]*recipe\.sparse\.epochs[^\n]*$"):
        Learned()(probe.groups, probe)


def test_silencing_and_another_part_in_training_are_one_too_many():
    with pytest.raises(UserError, match=r"^method 'x': give one of silence_every, during and masks$"):
        Method("x", Learned(), Uniform(), OneShot(), silence_every=1, during=scop.Knockoff())


@pytest.mark.parametrize("method, knob", [("scop", "knockoff=gan"), ("scop", "knockoff=what"), ("ucp", "n_samples=0"),
                                          ("kdfs", "temperature=0"), ("manidp", "remain=0")])
def test_a_knob_out_of_range_is_one_line(method, knob, configure):
    with pytest.raises(Exception, match="during") as error:
        instantiate(configure(f"method={method}", f"method.during.{knob}").method)
    assert isinstance(error.value.__cause__ or error.value, UserError)


# ---------------------------------------------------------------- SCOP

def literal_scop(of, x, control, kappa):
    """Training mode, by hand: images and controls side by side. -> logits of the images"""
    def norm(bn, h):
        return F.batch_norm(h, None, None, bn.weight, bn.bias, training=True, eps=bn.eps)

    def mixed(name, h):
        k, n = kappa[name].view(1, -1, 1, 1), len(x)
        return torch.cat([h[:n] * k + h[n:] * (1 - k), h[n:]])

    h = F.relu(norm(of.bn1, of.conv1(torch.cat([x, control]))))
    for stage in (of.layer1, of.layer2, of.layer3):
        for i, block in enumerate(stage):
            name = f"layer{[of.layer1, of.layer2, of.layer3].index(stage) + 1}.{i}"
            out = F.relu(norm(block.bn1, mixed(f"{name}.conv1", block.conv1(h))))
            h = F.relu(norm(block.bn2, mixed(f"{name}.conv2", block.conv2(out))) + block.shortcut(h))
    return of.linear(h.mean((2, 3)))[:len(x)]


def test_scop_mixes_before_batch_norm_all_but_the_stem_and_the_loss_is_of_the_images(monkeypatch):
    during, of = started(scop.Knockoff())
    plain, x = net(), Images.x[:6]
    kappa = {name.replace("/", "."): m.kappa.data.uniform_(0, 1) for name, m in during.extra.items()}
    monkeypatch.setattr(during, "control", lambda x: x.flip(0))
    assert "conv1" not in kappa and len(kappa) == 6
    assert torch.allclose(of.train()(x), literal_scop(plain.train(), x, x.flip(0), kappa), atol=1e-5)
    assert torch.equal(of.eval()(x[:1]).argmax(1), of(x[:1]).argmax(1)) and of(x).shape == (6, 4)


def test_scop_learns_kappa_alone_between_0_and_1_and_gives_the_net_back():
    during, of = started(scop.Knockoff())
    before = copy.deepcopy(net().state_dict())
    optimizer = torch.optim.Adam(during.parameters(of), lr=0.4)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(of.train()(Images.x), Images.y).backward()
        optimizer.step()
        during.on_train_batch_end(None, None)
    kappa = torch.cat([m.kappa.detach() for m in during.extra.values()])
    assert (kappa.min(), kappa.max()) == (0, 1)
    assert not torch.equal(of.bn1.running_mean, before["bn1.running_mean"])       # they move meanwhile
    learned = during.finish(of)["learned"]
    assert all(torch.equal(before[name], tensor) for name, tensor in of.state_dict().items())
    assert all(p.requires_grad for p in of.parameters()) and not of._forward_hooks and not of.conv1._forward_hooks
    k = during.extra["layer2/0/conv1"].kappa.tolist()
    gamma = of.layer2[0].bn1.weight.tolist()
    assert learned["layer2.0.conv1"] == pytest.approx([abs(g) * (v - (1 - v)) for g, v in zip(gamma, k, strict=True)])


def test_shuffled_images_are_others_in_parts():
    x = torch.arange(2 * 3 * 8 * 4.).view(2, 3, 8, 4)
    made = scop.shuffled(x)
    assert made.shape == x.shape and not torch.equal(made, x.flip(0))
    for image, other in zip(made, x.flip(0), strict=True):
        assert torch.equal(image.flatten().sort().values, other.flatten().sort().values)
        corners = {tuple(image[:, r: r + 2, c].flatten().tolist()) for r in range(0, 8, 2) for c in range(4)}
        assert corners == {tuple(other[:, r: r + 2, c].flatten().tolist()) for r in range(0, 8, 2) for c in range(4)}


# ---------------------------------------------------------------- UCP

def test_ucp_rates_channels_by_the_mean_of_their_gates_and_multiplies_it_in():
    during, of = started(ucp.Gates())
    plain = net().eval()
    se, seen = during.extra["layer1/0/conv1"], []
    hook = of.layer1[0].conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    learned = during.finish(of)["learned"]
    hook.remove()
    (w, b), (v, c) = ((of_.weight.tolist(), of_.bias.tolist()) for of_ in (se.branch[0], se.branch[2]))
    literal, was = [0.0] * 16, plain.layer1[0].conv1.weight
    for x in torch.cat([F.conv2d(h, was, padding=1) for h in seen]).mean((2, 3)).tolist():
        hidden = max(0.0, b[0] + sum(wi * xi for wi, xi in zip(w[0], x, strict=True)))
        literal = [y + 1 / (1 + math.exp(-vi[0] * hidden - ci)) / 12 for y, vi, ci in zip(literal, v, c, strict=True)]
    assert learned["layer1.0.conv1"] == pytest.approx(literal, rel=1e-4)
    assert torch.allclose(of.layer1[0].conv1.weight, was * torch.tensor(literal).view(-1, 1, 1, 1), rtol=1e-4)
    # the stem does not decide; with zero padding its channels go on as 8 .. 23 of 32 and as 24 .. 39 of 64
    blocks = [during.means[f"layer{n}/0/conv2"][at: at + 16] for n, at in ((1, 0), (2, 8), (3, 24))]
    assert learned["conv1"] == pytest.approx((sum(blocks) / 3).tolist())
    assert not of.conv1._forward_hooks and of.state_dict().keys() == plain.state_dict().keys()


def test_what_scores_exactly_the_threshold_of_ucp_goes():
    of = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    probe, scores = Probe(of, EXAMPLE), {"0": torch.tensor([1., 2., 3., 2.])}
    assert ucp.BelowMean(factor=1)(scores, probe)["0"].tolist() == [False, False, True, False]
    assert ucp.BelowMean(factor=0.999)(scores, probe)["0"].tolist() == [False, True, True, True]
    assert ucp.BelowMean(factor=9)(scores, probe)["0"].sum() == 1


# ---------------------------------------------------------------- KDFS

def test_kdfs_masks_weights_and_not_batch_norm_and_counts_what_is_left():
    during, of = started(sampler())
    plain, x = net().eval(), Images.x
    assert torch.allclose(of.eval()(x), during_by_hand(during, plain)(x), atol=1e-5)
    gap = float(during.gap(Step(of, x, Images.y, of(x))))
    keep = {g.name: during.masks[g.name].bool() for g in during.groups}
    trace(plain, EXAMPLE)
    kept = reprune.cost(reprune.remove(plain, keep), EXAMPLE).macs / reprune.cost(plain, EXAMPLE).macs
    assert gap == pytest.approx(10_000 * (kept - 0.5) ** 2, rel=1e-4)
    learned = during.finish(of)["learned"]
    assert torch.allclose(of.eval()(x), during_by_hand(during, plain)(x), atol=1e-5)       # masks are in the weights
    plan = kdfs.Sampled(macs=0.5)({name: torch.tensor(s) for name, s in learned.items()}, Probe(of, EXAMPLE))
    assert not torch.allclose(reprune.remove(of, plan)(x), of(x), atol=1e-3)      # a dropped channel's shift goes, too


def test_filters_of_kdfs_that_stay_against_theta_keep_their_weights():
    allocation = kdfs.Sampled(macs=0.5, min_filters=12)
    during, of = started(kdfs.Sampler(allocation))
    scores = {name: torch.tensor(s) for name, s in during.finish(of)["learned"].items()}
    plan = allocation(scores, Probe(of, EXAMPLE))
    assert any(int((scores[name] <= 0).sum()) > int((~keep).sum()) for name, keep in plan.items())
    for group in during.groups:
        for s in group.producers(of):
            alive = of.get_submodule(s.module).weight[s.index].flatten(1).any(1)
            assert torch.equal(alive, plan[group.name])


def during_by_hand(during, plain):
    """The net with the filters of a group zeroed where theta says drop."""
    made = copy.deepcopy(plain)
    for group in during.groups:
        theta = during.extra[group.name.replace(".", "/")].theta
        for s in group.producers(made):
            for filter, row in enumerate(s.index.tolist()):
                if theta[filter, 0] >= theta[filter, 1]:
                    made.get_submodule(s.module).weight.data[row] = 0
    return made


def test_the_loss_of_kdfs_is_that_of_the_card():
    during, of = started(sampler(kl=0.05, features=1000, temperature=3))
    x, y, teacher = Images.x[:4], Images.y[:4], net().eval()
    logits = of.eval()(x)
    step = Step(of, x, y, logits, teacher=teacher)
    p, q = (logits / 3).softmax(1), (teacher(x) / 3).softmax(1)
    literal = sum(float(a * math.log(a / b)) for r, s in zip(p, q, strict=True) for a, b in zip(r, s, strict=True)) / 4
    assert float(during.imitate(step)) == pytest.approx(0.05 * 9 * literal, rel=1e-4)
    rc = 0
    for name in ("layer1", "layer2", "layer3"):
        own, theirs = during.extra[f"decoder/{name}"](during.mine[name]), during.theirs[name]
        for a, b in zip(own, theirs, strict=True):
            u, v = (sum(f.flatten() ** 2 for f in each) / len(each) for each in (a, b))
            rc += float(((u / u.norm() - v / v.norm()) ** 2).mean()) / 4 / 3
    assert float(during.reconstruct(step)) == pytest.approx(1000 * rc, rel=1e-3)
    assert not teacher.layer1._forward_hooks


def test_a_sample_is_0_or_1_and_has_a_gradient_and_theta_no_weight_decay():
    during, of = started(sampler())
    logits = of.train()(Images.x)
    assert all(((m == 0) | ((m - 1).abs() < 1e-6)).all() for m in during.masks.values())
    during.gap(Step(of, Images.x, Images.y, logits)).backward()
    theta = [m.theta for m in during.extra.values() if isinstance(m, kdfs.Choice)]
    assert all(t.grad.abs().sum() > 0 for t in theta)
    groups = torch.optim.Adamax(during.parameters(of), weight_decay=1e-4).param_groups
    assert [g["weight_decay"] for g in groups] == [1e-4, 0.0]
    assert {id(p) for p in groups[1]["params"]} == {id(t) for t in theta}


def test_what_the_sampler_drops_goes_in_equal_shares_over_rounds_and_one_filter_stays():
    of = net()
    probe = Probe(of, EXAMPLE)
    name = next(g.name for g in probe.groups if not g.coupled)
    scores = {name: torch.tensor([-1.] * 6 + [1.] * 10)}
    assert [int((~kdfs.Sampled(macs=0.5)(scores, Probe(of, EXAMPLE, share=share))[name]).sum())
            for share in (1 / 3, 2 / 3, 1)] == [2, 4, 6]
    assert int(kdfs.Sampled(macs=0.5)({name: -torch.ones(16)}, probe)[name].sum()) == 1


@pytest.mark.parametrize("options, said", [
    (["method=kdfs", "method/allocation=macs"], "method/allocation=sampled"),
    *((["model=lenet300", f"method={method}"], "no conv") for method in ("scop", "ucp", "manidp"))])
def test_a_net_or_an_allocation_that_does_not_fit_is_refused(options, said, configure, monkeypatch):
    monkeypatch.setattr("reprune.pipeline.fit", lambda *_, **__: pytest.fail("something trains"))
    with pytest.raises(UserError, match=said) as error:
        run(configure(*options))
    assert "\n" not in str(error.value)
