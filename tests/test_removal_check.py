"""`remove` never gives out a net that says something else than the silenced one: it is an error that names a layer."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from nets import build, is_rewritten, lively, random_plan, same, snapshot
from test_wiring import Net, conv, head
from torch import nn

import reprune
from reprune import models
from reprune.errors import UserError
from reprune.structure.check import RemovalError


class Counting(nn.Conv2d):
    """Tells forward code its number of filters: one that no tracer can see comes from a tensor."""

    def forward(self, x):
        out = super().forward(x)
        self.seen = out.shape[1]
        return out


def added_to_a_constant(net, x):
    x = F.relu(net.a(x))
    return head(net, net.b(x) + torch.zeros(1, net.a.seen, 1, 1))


def scaled(net, x):
    x = F.relu(net.a(x))
    return head(net, F.relu(net.b(x)) * net.a.seen ** -.5)


def scaled_in_place(net, x):
    h = F.relu(net.a(x))
    h *= net.a.seen
    return head(net, net.b(h))


def nothing_by_nothing(net, x):
    x = F.relu(net.a(x))
    return head(net, x / (x.abs() + net.b(x)))


def small(code, **modules):
    """The net, its plan, and a batch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    net = lively(Net(code, **({"a": Counting(3, 8, 3, padding=1), "b": conv(8, 8),
                             "fc": nn.Linear(8, 5)} | modules)), x, generator)
    reprune.trace(net, x)
    return net, random_plan(net, 0), x


WRONG = {
    "a constant with all channels": (added_to_a_constant, {}, "fc", "does not run: "),
    "a factor that counts channels": (scaled, {}, "fc", "differ by"),
    "a factor that works in place": (scaled_in_place, {}, "b", "differ by"),
    "0 / 0 where a channel is silent": (nothing_by_nothing, {}, "fc", "not finite"),
}


@pytest.mark.parametrize("name", WRONG)
@torch.no_grad()
def test_a_wrong_net_is_an_error_that_names_the_first_layer_that_differs(name):
    code, modules, layer, how = WRONG[name]
    net, plan, _ = small(code, **modules)
    before = snapshot(net)
    with pytest.raises(RemovalError) as caught:
        reprune.remove(net, plan)
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)
    assert f": the output of {layer} is the first that is not the silenced net's (" in str(caught.value)
    assert how in str(caught.value)
    assert same(snapshot(net), before)
    assert reprune.cost(net, torch.zeros(1, 3, 8, 8)).params > \
        sum(p.numel() for p in reprune.remove(net, plan, check=False).parameters())


EIGHT = SimpleNamespace(a=SimpleNamespace(seen=8))


@pytest.mark.parametrize("outputs", [
    lambda logits, net: (logits, logits * net.a.seen), lambda logits, net: [logits, (logits * net.a.seen,)],
    lambda logits, net: {"logits": logits, "more": {"scaled": logits * net.a.seen}},
    lambda logits, net: {"logits": logits, "top": logits.argmax(1) * net.a.seen},
], ids=["tuple", "list", "dict", "whole numbers"])
@torch.no_grad()
def test_all_outputs_are_compared(outputs):
    """Here no layer is wrong, and the first output is right."""
    def code(net, x):
        h = F.relu(net.a(x))
        return outputs(head(net, F.relu(net.b(h))), net)

    net, plan, _ = small(code)
    net.fc.bias[3] += 100                                         # the largest logit is not the first
    with pytest.raises(RemovalError, match="the output of the net is the first"):
        reprune.remove(net, plan)
    net.code = lambda net, x: outputs(head(net, F.relu(net.b(F.relu(net.a(x))))), EIGHT)
    reprune.trace(net, torch.zeros(1, 3, 8, 8))
    reprune.remove(net, plan)


class Restless(Net):
    """Counts its calls, draws random numbers, drops out, and normalises images in place."""

    def __init__(self, **modules):
        super().__init__(None, **modules, n=nn.BatchNorm2d(8), d=nn.Dropout())
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        h = self.d(self.n(self.a(x.sub_(0.5))))
        return head(self, F.relu(self.b(h)) + 0 * torch.rand(1))


def test_the_check_leaves_no_trace_in_either_net():
    torch.manual_seed(0)
    net = Restless(a=conv(3, 8), b=conv(8, 8), fc=nn.Linear(8, 5)).train()
    net.n.eval()
    net.d.register_forward_hook(lambda *_: None)
    reprune.trace(net, torch.zeros(1, 3, 8, 8))
    plan, before, state = random_plan(net, 0), snapshot(net), torch.get_rng_state()
    hooks = [len(m._forward_hooks) for m in net.modules()]
    smaller, unchecked = reprune.remove(net, plan), reprune.remove(net, plan, check=False)
    assert torch.equal(torch.get_rng_state(), state) and same(snapshot(net), before)
    assert same(snapshot(smaller), snapshot(unchecked))
    assert hooks == [len(m._forward_hooks) for m in net.modules()] == [len(m._forward_hooks) for m in smaller.modules()]
    loss = net(torch.randn(2, 3, 8, 8)).sum()
    reprune.remove(net, plan)                                     # between a forward and a backward pass
    loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["cifar-resnet20", "narrow-vgg11_bn", "mobilenet_v3_small"])
def test_rounding_is_no_difference(name, dtype):
    net, x = build(name)
    net, x = net.to(dtype), x.to(dtype)
    reprune.trace(net, x)
    for seed in (0, 1):
        reprune.remove(net, random_plan(net, seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_net_may_have_moved_since_it_was_traced(dtype):
    net, plan, _ = small(scaled)
    net.to(dtype).code = lambda net, x: head(net, F.relu(net.b(F.relu(net.a(x)))))
    reprune.trace(net, torch.zeros(1, 3, 8, 8, dtype=dtype))
    reprune.remove(net.float(), plan)
    net.code = scaled
    with pytest.raises(RemovalError):
        reprune.remove(net.to(dtype), plan)
    assert all(p.is_meta for p in reprune.remove(net.to("meta"), plan).parameters())     # no numbers to compare


def test_images_may_be_whole_numbers():
    net, plan, _ = small(lambda net, x: head(net, F.relu(net.b(F.relu(net.a(x / 255))))))
    reprune.trace(net, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    reprune.remove(net, plan)


def test_trained_weights_pass(weights):
    net = models.load_weights(models.resnet(56), weights / "resnet56-4bfd9763.th")
    reprune.trace(net, torch.zeros(1, 3, 32, 32))
    for seed in range(3):
        smaller = reprune.remove(copy.deepcopy(net), random_plan(net, seed))
        assert is_rewritten(smaller)
