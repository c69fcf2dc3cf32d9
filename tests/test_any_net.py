"""Nets as users write them: what a tracer gets wrong, each as its smallest forward. Silence equals remove, the cost is
known before, and what cannot be followed is kept, with one line that says so."""

import copy
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from nets import check_removal, is_rewritten, lively, quiet_trace, random_plan, same, snapshot
from test_wiring import Net, conv, head
from torch import nn
from torch.nn.utils import parametrizations, prune

import reprune
from reprune.errors import UserError
from reprune.structure.cost import CostTable
from reprune.structure.groups import traced
from reprune.structure.surgery import silenced, zero_filters

A = {"a": 8}
AB = {"a": 8, "b": 8}


class Param(nn.Module):
    """A factor or a shift per channel, as LayerScale, or a buffer, as in a frozen batch norm."""

    def __init__(self, tensor, buffer=False, op=torch.mul):
        super().__init__()
        self.op = op
        if buffer:
            self.register_buffer("t", tensor)
        else:
            self.t = nn.Parameter(tensor)

    def forward(self, x):
        return self.op(x, self.t)


class FrozenNorm(nn.Module):
    def __init__(self, n):
        super().__init__()
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.rand(n) + .5)

    def forward(self, x):
        scale = self.weight.reshape(1, -1, 1, 1) * (self.var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.mean.reshape(1, -1, 1, 1) * scale)


class NormAct(nn.BatchNorm2d):
    """As in timm: a batch norm with its activation."""

    def __init__(self, n):
        super().__init__(n)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias))


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, padding=1)


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class DropPath(nn.Module):
    """Its own code counts channels, and drops in training mode only."""

    def forward(self, x):
        p, q = x.chunk(2, 1)
        if self.training:
            q = q * (torch.rand(q.shape[0], 1, 1, 1, dtype=q.dtype) < .5)
        return torch.cat([F.relu(q), p], 1)


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = torch.jit.script(nn.Hardswish())

    def forward(self, x):
        return self.act(x)


def between(*steps):
    """conv a -> steps -> ReLU -> conv b -> ReLU -> head"""
    def code(net, x):
        h = net.a(x)
        for step in steps:
            h = step(net, h) if not isinstance(step, str) else getattr(net, step)(h)
        return head(net, F.relu(net.b(F.relu(h))))
    return code


def after(step):
    """step(net, what a makes of x, what b makes of that)"""
    def code(net, x):
        x = F.relu(net.a(x))
        return head(net, step(net, x, net.b(x)))
    return code


def in_place_on_a_part(net, x):
    h = F.relu(net.a(x))
    p, q = h.chunk(2, 1)
    p += net.c(q)
    return head(net, net.b(h))                                    # reads what the part has become


def shape_branch(net, x):
    h = net.a(x)
    if h.shape[2] % 2:
        h = F.pad(h, (0, 1, 0, 1))
    b, c, *rest = h.shape
    return head(net, net.b(F.relu(h)) * len(rest))


def split_attention(net, x):
    h = F.relu(net.a(x))
    b, c, height, width = h.shape
    h = h.reshape(b, 2, c // 2, height, width)
    gate = net.up(F.relu(net.down(h.sum(1).mean((2, 3), keepdim=True))))
    gate = gate.view(b, 1, 2, -1).transpose(1, 2).softmax(1).reshape(b, 2, c // 2, 1, 1)
    return head(net, net.b((h * gate).sum(1)))


def selective_kernels(net, x):
    h = torch.stack([F.relu(net.a(x)), F.relu(net.c(x))], 1)
    gate = net.down(h.sum(1).mean((2, 3), keepdim=True)).sigmoid()
    return head(net, net.b((h * gate.unsqueeze(1).expand_as(h)).sum(1)))


def patched(net, h):
    b, c, height, width = h.shape
    h = h.reshape(b, c, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return h.reshape(b, c * 4, height // 2, width // 2)


def many_outputs(net, x):
    h = F.relu(net.a(x))
    return {"logits": head(net, net.b(h)), "more": [(net.b(h), None)]}


def scale(n=8):
    return torch.rand(n) + .5


# name: (forward code, modules beside a, b and fc, the groups and their sizes)
RIGHT = {
    "a view with another tensor's shape": (after(lambda n, x, y: y.flatten(2).view(x.shape)), {}, A),
    "view_as": (after(lambda n, x, y: y.flatten(2).view_as(x)), {}, A),
    "reshape by keywords": (between(lambda n, h: torch.reshape(input=h, shape=(1, 8, -1)).view(-1, 8, 8, 8)), {}, AB),
    "a number of channels as a factor": (after(lambda n, x, y: y * x.shape[1] ** -.5), {}, {"b": 8}),
    "its square root": (after(lambda n, x, y: y / math.sqrt(y.size(1))), {}, A),
    "an assertion on channels": (between(lambda n, h: torch._assert(h.shape[1] == 8, "8") or h), {}, {"b": 8}),
    "a part that changes in place": (in_place_on_a_part, {"c": conv(4, 4)}, {"a": 4, "a#2": 4, "b": 8}),
    "a part that is written": (between(lambda n, h: h.__setitem__((slice(None), slice(0, 4)), n.c(x_half(h))) or h),
                               {"c": conv(4, 4)}, {"a": 4, "a#2": 4, "b": 8}),
    "pooling over channels": (lambda n, x: n.fc(F.avg_pool2d(n.b(F.relu(n.a(x))).flatten(2), 2).flatten(1)),
                              {"fc": nn.Linear(128, 5)}, A),
    "a temperature": (after(lambda n, x, y: x + n.t(y)), {"t": Param(torch.tensor(.7))}, A),
    "max pooling with indices": (between(lambda n, h: F.max_pool2d(h, 2, return_indices=True)[0]), {}, AB),
    "a layer scale": (after(lambda n, x, y: x + n.t(y)), {"t": Param(scale().view(8, 1, 1))}, A),
    "a shift for every place": (between("t"), {"t": Param(torch.rand(8, 8, 8), op=torch.add)}, AB),
    "a buffer per channel": (between("t"), {"t": Param(scale().view(1, 8, 1, 1), buffer=True)}, AB),
    "a frozen norm": (between("t"), {"t": FrozenNorm(8)}, AB),
    "a norm with its activation": (between("t"), {"t": NormAct(8)}, AB),
    "a conv that calls conv2d": (between("t"), {"t": OwnConv(8, 8, 3)}, {"a": 8, "t": 8, "b": 8}),
    "a conv that standardises its weight": (between("t"), {"t": Standardised(8, 8, 1)}, {"a": 8, "t": 8, "b": 8}),
    "weight_norm": (between(), {"b": lambda: parametrizations.weight_norm(conv(8, 8))}, AB),
    "spectral_norm": (between(), {"b": lambda: parametrizations.spectral_norm(conv(8, 8))}, AB),
    "the old weight_norm": (between(), {"b": lambda: nn.utils.weight_norm(conv(8, 8))}, AB),
    "a mask on weights": (between(), {"b": lambda: prune.random_unstructured(conv(8, 8), "weight", .3)}, AB),
    "blurring with a buffer": (between(lambda n, h: F.conv2d(h, n.t.t, padding=1, groups=8)),
                               {"t": Param(torch.rand(8, 1, 3, 3), buffer=True)}, AB),
    "concatenation over images": (lambda n, x: head(n, n.b(torch.cat([n.a(x), n.c(x)], 0)).chunk(2)[0]),
                                  {"c": conv(3, 8)}, AB),
    "concatenation over space": (lambda n, x: head(n, n.b(torch.cat([n.a(x), n.c(x)], 2))), {"c": conv(3, 8)}, AB),
    "split attention": (split_attention, {"down": nn.Conv2d(4, 3, 1), "up": nn.Conv2d(3, 8, 1), "b": conv(4, 8)},
                        {"a": 4, "down": 3, "b": 8}),
    "selective kernels": (selective_kernels, {"c": conv(3, 8), "down": nn.Conv2d(8, 8, 1)}, AB),
    "pixel shuffle": (between(lambda n, h: F.pixel_shuffle(h, 2)), {"b": conv(2, 8)}, {"a": 2, "b": 8}),
    "pixel unshuffle": (between(lambda n, h: F.pixel_unshuffle(h, 2)), {"b": conv(32, 8)}, AB),
    "nn.ChannelShuffle": (between(lambda n, h: F.channel_shuffle(h, 2)), {}, {"a": 4, "b": 8}),
    "patches beside channels": (between(patched), {"b": conv(32, 8)}, AB),
    "transposed conv": (between("t"), {"t": nn.ConvTranspose2d(8, 6, 2, 2), "b": conv(6, 8)},
                        {"a": 8, "t": 6, "b": 8}),
    "grouped transposed conv": (between("t"), {"t": nn.ConvTranspose2d(8, 12, 2, 2, groups=4), "b": conv(12, 8)},
                                {"a": 4, "b": 8}),
    "group norm": (between("t"), {"t": nn.GroupNorm(4, 8)}, {"a": 4, "b": 8}),
    "instance norm": (between("t"), {"t": nn.InstanceNorm2d(8, affine=True)}, AB),
    "gated linear unit": (between(lambda n, h: F.glu(h, 1)), {"b": conv(4, 8)}, {"a": 4, "b": 8}),
    "a branch on a size": (shape_branch, {}, AB),
    "drops in training mode": (between("t"), {"t": DropPath()}, AB),
    "a scripted activation": (between("t"), {"t": Scripted()}, AB),
    "zeros beside channels": (between(lambda n, h: torch.cat([h, h.new_zeros(h.shape[0], 4, *h.shape[2:])], 1)),
                              {"b": conv(12, 8)}, AB),
    "expanded to as many": (between(lambda n, h: h * h.mean((1,), keepdim=True).expand(-1, h.shape[1], -1, -1)), {},
                            {"b": 8}),
    "a list of modules called twice": (between("t", "t"), {"t": nn.Sequential(conv(8, 8), nn.ReLU())},
                                       {"a": 8, "b": 8}),
    "a residual in a module called twice": (between("t", "t"), {"t": DropPath()}, {"a": 4, "b": 8}),
}


def x_half(h):
    return h[:, 4:]


def made(code, modules):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=generator)
    parts = {"a": conv(3, 8), "b": conv(8, 8), "fc": nn.Linear(8, 5)} | {
        n: copy.deepcopy(m) if isinstance(m, nn.Module) else m() for n, m in modules.items()}
    return lively(Net(code, **parts).double(), x, generator), x


WARNED: set[str] = set()


@pytest.mark.parametrize("name", RIGHT)
@torch.no_grad()
def test_silence_equals_remove_and_the_cost_is_known(name):
    code, modules, sizes = RIGHT[name]
    net, x = made(code, modules)
    before, attributes = snapshot(net), {n: set(vars(m)) for n, m in net.named_modules()}
    image = x.clone()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        groups = reprune.trace(net, x)
    assert not caught or name in WARNED, [str(w.message) for w in caught]
    assert {g.name: g.size for g in groups} == sizes
    assert torch.equal(x, image) and same(snapshot(net), before)
    assert attributes == {n: set(vars(m)) - {"_reprune"} for n, m in net.named_modules()}
    for seed in range(3):
        plan = random_plan(net, seed)
        smaller = check_removal(net, x, plan)
        assert reprune.cost(smaller, x) == CostTable(net).plan(plan)
        quiet_trace(smaller, x)                                   # it can be pruned again
        reprune.remove(smaller, random_plan(smaller, seed))
        for mode in (True, False):                                # and runs in both modes, also as a copy
            copy.deepcopy(smaller).train(mode)(x)


@torch.no_grad()
def test_code_that_is_rewritten_keeps_its_class_its_attributes_and_both_modes():
    """Also what only training mode does, and what a copy or a pickle of the net does."""
    net, x = made(between("t"), {"t": DropPath()})
    net.t.note = "mine"
    quiet_trace(net, x)
    smaller = reprune.remove(net, random_plan(net, 0))
    assert type(smaller) is Net and isinstance(smaller.t, DropPath) and smaller.t.note == "mine"
    h = torch.randn(64, smaller.a.out_channels, 2, 2, dtype=x.dtype)
    for block in (smaller.t, copy.deepcopy(smaller.t), pickle.loads(pickle.dumps(smaller.t))):
        assert is_rewritten(block)
        assert torch.equal(block(h), smaller.t(h)) and not (block(h) == 0).all((1, 2, 3)).any()
        dropped = (block.train()(h)[:, :smaller.b.in_channels // 2] == 0).flatten(1).all(1)
        assert 0 < dropped.sum() < 64
        block.eval()


@torch.no_grad()
def test_outputs_may_be_nested_and_inputs_several():
    net, x = made(many_outputs, {})
    quiet_trace(net, x)
    assert {g.name: g.size for g in traced(net).groups} == A
    plan = random_plan(net, 0)
    out, expected = reprune.remove(net, plan)(x), reprune.silence(net, plan)(x)
    torch.testing.assert_close(out["logits"], expected["logits"])
    torch.testing.assert_close(out["more"][0][0], expected["more"][0][0])

    class Two(Net):
        def forward(self, image, other, mask=None, *, scale=1.):
            h = F.relu(self.a(image)) + self.c(other["low"])
            return head(self, self.b(h if mask is None else h * mask) * scale)

    net = Two(None, a=conv(3, 8), b=conv(8, 8), c=conv(1, 8), fc=nn.Linear(8, 5)).double().eval()
    low = {"low": x[:, :1]}
    for example in ((x, low), {"image": x, "other": low, "scale": 2.}, (x, low, torch.ones(4, 1, 8, 8).double())):
        quiet_trace(net, example)
        assert {g.name: g.size for g in traced(net).groups} == AB
        plan = random_plan(net, 0)
        smaller = reprune.remove(net, plan)
        torch.testing.assert_close(smaller(x, low), reprune.silence(net, plan)(x, low))
        assert reprune.cost(smaller, example) == CostTable(net).plan(plan)


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_module_that_cannot_be_followed_keeps_its_channels_and_is_named():
    """The rest of the net is pruned."""
    net, x = made(between("t"), {"t": Branches()})
    with pytest.warns(UserWarning) as caught:
        reprune.trace(net, x)
    line = "t cannot be followed, Branches (test_any_net.py:"
    message, = [str(w.message) for w in caught]
    assert message.startswith(line) and "return x if x.sum() > 0 else -x): it depends on the values" in message
    assert {g.name: g.size for g in traced(net).groups} == {"b": 8}
    check_removal(net, x, random_plan(net, 0))


@pytest.mark.parametrize(("net", "example", "words"), [
    (Branches(), torch.zeros(1, 3), "Branches (test_any_net.py:"),
    (nn.DataParallel(nn.Conv2d(3, 4, 3)), torch.zeros(1, 3, 8, 8), "trace net.module"),
    (torch.compile(nn.Conv2d(3, 4, 3)), torch.zeros(1, 3, 8, 8), "trace the net before torch.compile"),
    (torch.jit.script(nn.Conv2d(3, 4, 3)), torch.zeros(1, 3, 8, 8), "trace the net before it was scripted"),
    (nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8).numpy(), "pass torch.as_tensor(example)"),
    (nn.Conv2d(3, 4, 3), {}, "example must be a tensor [B, C, H, W]"),
    (nn.Conv2d(3, 4, 3), torch.zeros(1, 1, 8, 8), "does not run on an example of shape [1, 1, 8, 8]"),
    ("conv", torch.zeros(1, 1, 8, 8), "trace wants a torch.nn.Module"),
])
def test_what_cannot_be_traced_is_one_line_that_says_what_to_do(net, example, words):
    with pytest.raises(UserError) as caught:
        reprune.trace(net, example)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@torch.no_grad()
def test_layers_that_compute_their_weights_become_plain_ones_and_only_on_the_copy():
    net, x = made(between("t"), {"t": Standardised(8, 8, 1), "b": nn.utils.weight_norm(conv(8, 8))})
    kinds, expected = [type(m) for m in net.modules()], net(x)
    quiet_trace(net, x)
    for copied in (reprune.remove(net, random_plan(net, 0)), reprune.silence(net, {})):
        assert type(copied.t) is type(copied.b) is nn.Conv2d
    torch.testing.assert_close(copied(x), expected)
    with silenced(net, random_plan(net, 0)):
        pass
    assert [type(m) for m in net.modules()] == kinds and torch.equal(net(x), expected)
    with pytest.raises(UserError, match="b computes its weight"):
        zero_filters(net, {"b": torch.ones(8, dtype=torch.bool)})
