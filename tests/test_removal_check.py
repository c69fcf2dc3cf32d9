"""`remove` never gives out a net that says something else than the silenced one: it is an error that names a layer."""

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import build, lively, random_plan, same, snapshot
from test_wiring import Net, conv, head
from torch import nn

import reprune
from reprune import models
from reprune.errors import UserError
from reprune.structure.check import RemovalError


def view_of_another(net, x):
    x = F.relu(net.a(x))
    return head(net, net.b(x).flatten(2).view(x.shape))


def scaled(net, x):
    x = F.relu(net.a(x))
    return head(net, F.relu(net.b(x)) * x.shape[1] ** -.5)


def in_place_on_a_part(net, x):
    h = F.relu(net.a(x))
    p, q = h.chunk(2, 1)
    p += net.c(q)
    return head(net, net.b(h))                                    # reads what the part has become


def nothing_by_nothing(net, x):
    x = F.relu(net.a(x))
    return head(net, x / (x.abs() + net.b(x)))


def parts_put_together(net, x):
    p, q = F.relu(net.a(x)).chunk(2, 1)
    p += net.c(q)
    return head(net, torch.cat([p, q], 1))


def small(code, **modules):
    """The net, its plan, and a batch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    net = lively(Net(code, **({"a": conv(3, 8), "b": conv(8, 8), "fc": nn.Linear(8, 5)} | modules)), x, generator)
    reprune.trace(net, x)
    return net, random_plan(net, 0), x


WRONG = {
    "a view of another tensor's shape": (view_of_another, {}, "fc", "does not run: shape"),
    "a factor that counts channels": (scaled, {}, "fc", "differ by"),
    "a part changed in place": (in_place_on_a_part, {"c": conv(4, 4)}, "b", "differ by"),
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


@torch.no_grad()
def test_what_is_changed_in_place_and_put_together_is_right():
    net, plan, x = small(parts_put_together, c=conv(4, 4), b=nn.Identity())
    torch.testing.assert_close(reprune.remove(net, plan)(x), reprune.silence(net, plan)(x))


@pytest.mark.parametrize("outputs", [
    lambda logits, h: (logits, logits * h.shape[1]), lambda logits, h: [logits, (logits * h.shape[1],)],
    lambda logits, h: {"logits": logits, "more": {"scaled": logits * h.shape[1]}},
    lambda logits, h: {"logits": logits, "top": logits.argmax(1) * h.shape[1]},
], ids=["tuple", "list", "dict", "whole numbers"])
@pytest.mark.filterwarnings("ignore:the tracer does not know argmax")
@torch.no_grad()
def test_all_outputs_are_compared(outputs):
    """Here no layer is wrong, and the first output is right."""
    def code(net, x):
        h = F.relu(net.a(x))
        return outputs(head(net, F.relu(net.b(h))), h)

    net, plan, _ = small(code)
    net.fc.bias[3] += 100                                         # the largest logit is not the first
    with pytest.raises(RemovalError, match="the output of the net is the first"):
        reprune.remove(net, plan)
    net.code = lambda net, x: outputs(head(net, F.relu(net.b(F.relu(net.a(x))))), torch.zeros(1, 8))
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
    net.code = lambda net, x: head(net, F.relu(net.b(F.relu(net.a(x)))) * net.a(x).shape[1])
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
        assert isinstance(smaller, torch.fx.GraphModule)
