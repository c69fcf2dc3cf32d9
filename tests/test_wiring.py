"""One small net per way of wiring channels: its groups, counted by hand, and silence == remove."""

import pytest
import torch
import torch.nn.functional as F
from nets import build, check_removal, is_rewritten, lively, quiet_trace, random_plan
from torch import nn

import reprune
from reprune.errors import UserError
from reprune.structure.cost import CostTable
from reprune.structure.groups import traced


class Net(nn.Module):
    """Named modules and the forward code that joins them."""

    def __init__(self, code, **modules):
        super().__init__()
        self.code = code
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.code(self, x)


def conv(c_in, c_out, **options):
    return nn.Conv2d(c_in, c_out, 3, padding=1, **options)


def head(net, h):
    return net.fc(h.mean((2, 3)))


def option_a(net, x):
    h = F.relu(net.a(x))
    return head(net, F.relu(net.b(h) + F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))))


def chunk(net, x):
    u, v = net.a(x).chunk(2, dim=1)
    return head(net, torch.cat([net.b(F.relu(u)), v], 1))


def gate(net, x):
    u, v = torch.chunk(net.a(x), 2, 1)
    return head(net, u * torch.sigmoid(v))


def split(net, x):
    u, v = torch.split(net.a(x), [3, 5], dim=1)
    return head(net, net.b(u) + net.c(v))


def sliced(net, x):
    h = net.a(x)
    return head(net, net.b(h[:, :3]) + net.c(h[:, -5:, 1:]).mean((2, 3), keepdim=True))


def squeeze_excite(net, x):
    h = F.relu(net.a(x))
    s = F.relu(net.down(F.adaptive_avg_pool2d(h, 1)))
    return head(net, h * torch.sigmoid(net.up(s)))


def shuffle(net, x):
    h = net.a(x)
    b, c, height, width = h.shape
    h = h.view(b, 2, c // 2, height, width).transpose(1, 2).reshape(b, c, height, width)
    return head(net, net.b(h))


def tied(net, x):
    return head(net, net.c(F.relu(net.b(F.relu(net.a(x))))))


def add_one_channel(net, x):
    return head(net, net.a(x) + net.one(x))


def chain(*between):
    """conv a -> what stands between -> conv b -> head."""
    def code(net, x):
        h = net.a(x)
        for step in between:
            h = getattr(net, step)(h) if isinstance(step, str) else step(h)
        return head(net, net.b(h))
    return code


def two_layers(flatten):
    return lambda net, x: net.out(F.relu(net.fc(flatten(F.max_pool2d(F.relu(net.a(x)), 4)))))


PAIR = {"a": lambda: conv(3, 8), "b": lambda: conv(8, 6), "fc": lambda: nn.Linear(6, 5)}
FLAT = {"a": lambda: conv(3, 8), "fc": lambda: nn.Linear(32, 7), "out": lambda: nn.Linear(7, 5)}
ENDS = {("a", "in"), ("fc", "out")}
FLAT_ENDS = {("a", "in"), ("out", "out")}

# name: (forward code, modules beside those of PAIR, size of each group, what is protected, is forward code rewritten?)
WIRINGS = {
    "option-A shortcut": (option_a, {"a": conv(3, 4), "b": conv(4, 8, stride=2), "fc": nn.Linear(8, 5)},
                          {"a": 4, "b": 4}, ENDS, True),
    "concat": (lambda net, x: head(net, net.b(torch.cat([F.relu(net.a(x)), net.c(x)], 1))),
               {"c": conv(3, 4), "b": conv(12, 6)}, {"a": 8, "c": 4, "b": 6}, ENDS | {("c", "in")}, False),
    "chunk": (chunk, {"b": conv(4, 6), "fc": nn.Linear(10, 5)}, {"a": 4, "a#2": 4, "b": 6}, ENDS, True),
    "chunk, half gates half": (gate, {"b": nn.Identity(), "fc": nn.Linear(4, 5)}, {"a": 4}, ENDS, True),
    "split": (split, {"b": conv(3, 6), "c": conv(5, 6)}, {"a": 3, "a#2": 5, "b": 6}, ENDS, True),
    "slice": (sliced, {"b": conv(3, 6), "c": conv(5, 6)}, {"a": 3, "a#2": 5, "b": 6}, ENDS, True),
    "squeeze and excite": (squeeze_excite, {"down": nn.Conv2d(8, 2, 1), "up": nn.Conv2d(2, 8, 1), "b": nn.Identity(),
                                            "fc": nn.Linear(8, 5)}, {"a": 8, "down": 2}, ENDS, False),
    "grouped conv": (chain("g", F.relu), {"g": conv(8, 16, groups=4), "b": conv(16, 6)}, {"a": 4, "b": 6}, ENDS, False),
    "depthwise conv": (chain(F.relu, "g", "n"), {"g": conv(8, 8, groups=8), "n": nn.BatchNorm2d(8)},
                       {"a": 8, "b": 6}, ENDS, False),
    "depthwise with multiplier": (chain("g"), {"g": conv(8, 16, groups=8), "b": conv(16, 6)}, {"a": 8, "b": 6}, ENDS,
                                  False),
    "module called twice": (chain(F.relu, "s", F.relu, "s"), {"s": conv(8, 8)}, {"a": 8, "b": 6}, ENDS, False),
    "tied weights": (tied, {"a": conv(3, 6), "b": conv(6, 6), "c": conv(6, 6)}, {},
                     ENDS | {("a", "out"), ("b", "in"), ("b", "out"), ("c", "in"), ("c", "out"), ("fc", "in")}, False),
    "one channel added to all": (add_one_channel, {"one": conv(3, 1), "b": nn.Identity(), "fc": nn.Linear(8, 5)},
                                 {"a": 8}, ENDS | {("one", "in"), ("one", "out")}, False),
    "a tensor to the power of another": (lambda net, x: head(net, torch.pow(net.a(x).abs() + 1, net.b(x).tanh())),
                                         {"b": conv(3, 8), "fc": nn.Linear(8, 5)}, {"a": 8}, ENDS | {("b", "in")},
                                         False),
    "sigmoid between convs": (chain(torch.sigmoid), {}, {"a": 8, "b": 6}, ENDS, False),
    "softplus module, then + 1": (chain("act", lambda h: h + 1), {"act": nn.Softplus()}, {"a": 8, "b": 6}, ENDS, False),
    "in-place forms": (chain(F.relu_, lambda h: h.mul_(2), lambda h: h.sigmoid_()), {}, {"a": 8, "b": 6}, ENDS, False),
    "BN without scale": (chain("n", F.relu), {"n": nn.BatchNorm2d(8, affine=False)}, {"a": 8, "b": 6}, ENDS, False),
    "PReLU, one slope per channel": (chain("act"), {"act": nn.PReLU(8)}, {"a": 8, "b": 6}, ENDS, False),
    "PReLU, one slope": (chain("act"), {"act": nn.PReLU()}, {"a": 8, "b": 6}, ENDS, False),
    "channel shuffle": (shuffle, {}, {"a": 8, "b": 6}, ENDS, True),
    "view with a literal size": (two_layers(lambda h: h.view(-1, 32)), FLAT, {"a": 8, "fc": 7}, FLAT_ENDS, True),
    "view with a size and -1": (two_layers(lambda h: h.view(h.size(0), -1)), FLAT, {"a": 8, "fc": 7}, FLAT_ENDS, False),
    "flatten": (two_layers(lambda h: torch.flatten(h, 1)), FLAT, {"a": 8, "fc": 7}, FLAT_ENDS, False),
    "flatten after permute": (two_layers(lambda h: h.permute(0, 2, 3, 1).flatten(1)), FLAT, {"a": 8, "fc": 7},
                              FLAT_ENDS, False),
    "squeeze": (lambda net, x: net.fc(F.adaptive_avg_pool2d(net.b(net.a(x)), 1).squeeze()), {}, {"a": 8, "b": 6}, ENDS,
                False),
    "Conv1d": (lambda net, x: net.fc(net.b(F.relu(net.n(net.a(x.flatten(2))))).mean(2)),
               {"a": nn.Conv1d(3, 8, 3), "n": nn.BatchNorm1d(8), "b": nn.Conv1d(8, 6, 3)}, {"a": 8, "b": 6}, ENDS,
               False),
    "Conv3d": (lambda net, x: net.fc(net.b(F.relu(net.n(net.a(x.unsqueeze(2))))).mean((2, 3, 4))),
               {"a": nn.Conv3d(3, 8, (1, 3, 3)), "n": nn.BatchNorm3d(8), "b": nn.Conv3d(8, 6, (1, 3, 3))},
               {"a": 8, "b": 6}, ENDS, False),
}


def wired(name):
    code, modules, *expected = WIRINGS[name]
    modules = {k: m() if callable(m) and not isinstance(m, nn.Module) else m
               for k, m in (PAIR | modules if modules is not FLAT else FLAT).items()}
    net = Net(code, **modules).double()
    if name == "tied weights":
        net.c.weight = net.b.weight
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=generator)
    return lively(net, x, generator), x, *expected


@pytest.mark.parametrize("name", WIRINGS)
@pytest.mark.filterwarnings("ignore:b is never called")
def test_groups_are_those_counted_by_hand_and_removal_equals_silence(name):
    net, x, sizes, protected, rewritten = wired(name)
    groups = reprune.trace(net, x)
    assert {g.name: g.size for g in groups} == sizes
    assert {key for key, atoms in traced(net).axes.items() if (atoms < 0).any()} == protected
    for seed in range(5 if sizes else 0):
        plan = random_plan(net, seed)
        smaller = check_removal(net, x, plan)
        assert is_rewritten(smaller) == rewritten
        assert reprune.cost(smaller, x) == CostTable(net).plan(plan)
        reprune.trace(smaller, x)                             # a rewritten net can be pruned again
        twice = random_plan(smaller, seed)
        torch.testing.assert_close(reprune.remove(smaller, twice)(x), reprune.silence(smaller, twice)(x))


def test_an_unknown_operation_is_named_once_and_protects_what_reaches_it():
    """A net with it can still be pruned elsewhere."""
    net, x = Net(chain(lambda h: h.cumsum(1), lambda h: h.cumsum(1)), a=conv(3, 8), b=conv(8, 6),
                 fc=nn.Linear(6, 5)).eval(), torch.randn(2, 3, 8, 8)
    with pytest.warns(UserWarning) as caught:
        groups = reprune.trace(net, x)
    assert [str(w.message) for w in caught] == \
        ["the tracer does not know cumsum: the channels that reach it are kept"]
    assert {g.name: g.size for g in groups} == {"b": 6}
    check_removal(net.double(), x.double(), random_plan(net, 0))


def test_a_module_that_forward_never_calls_is_left_as_it_is_and_named():
    net = Net(chain(F.relu), a=conv(3, 8), b=conv(8, 6), fc=nn.Linear(6, 5), spare=conv(8, 8)).eval()
    x = torch.randn(2, 3, 8, 8)
    with pytest.warns(UserWarning, match="^spare is never called: left as it is$"):
        reprune.trace(net, x)
    assert torch.equal(reprune.remove(net, random_plan(net, 0)).spare.weight, net.spare.weight)


def test_functional_dropout_stays_switchable_where_forward_code_is_rewritten():
    """torch.fx writes training=False into the code it traces in eval mode: fine-tuning would go on without dropout."""
    def code(net, x):
        u, v = F.dropout(net.a(x), 0.5, net.training).chunk(2, 1)
        return head(net, torch.cat([net.b(u), v], 1))

    net = Net(code, a=conv(3, 8), b=conv(4, 6), fc=nn.Linear(10, 5)).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for _ in range(2):                                        # the second round rewrites rewritten code
        quiet_trace(net, x)
        net = check_removal(net, x, random_plan(net, 0, rate=0.1))
        assert is_rewritten(net)
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))


def test_auxiliary_heads_are_pruned_with_the_trunk_they_read():
    """They exist in training mode only: all three logits of the silenced and the smaller net are equal there too
    (dropout off, BN frozen)."""
    net, x = build("googlenet")
    quiet_trace(net, x)
    plan = random_plan(net, 0)
    silent, smaller = reprune.silence(net, plan), reprune.remove(net, plan)
    for each in (silent, smaller):
        each.training = True                                  # only the net itself takes the training branch
    for a, b in zip(silent(x), smaller(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert smaller.aux1.conv.conv.in_channels < net.aux1.conv.conv.in_channels
    assert smaller.aux1.fc1.out_features < net.aux1.fc1.out_features


class BranchesOnValues(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def mask(size, *gone):
    kept = torch.ones(size, dtype=torch.bool)
    kept[list(gone)] = False
    return kept


@pytest.mark.parametrize(("plan", "words"), [
    ({"b": mask(6, *range(6))}, "plan would leave b without output channels"),
    ({"a": mask(8, *range(4)), "a#2": mask(4, *range(4))}, "plan for 'a' must be a bool mask of shape [4]"),
    ({"a": mask(4, *range(4))}, "plan would leave b without input channels"),
    ({"a": mask(4), "b": mask(5)}, "plan for 'b' must be a bool mask of shape [6], got torch.bool [5]"),
    ({"b": torch.ones(6)}, "plan for 'b' must be a bool mask of shape [6], got torch.float32 [6]"),
    ({"b": [True] * 6}, "plan for 'b' must be a bool mask of shape [6], got list"),
    ({"layer9": mask(6)}, "a group 'layer9' that this net does not have; it has a, a#2, b"),
])
@pytest.mark.parametrize("surgery", [reprune.silence, reprune.remove])
def test_a_plan_that_does_not_fit_is_refused_in_one_line(surgery, plan, words):
    net, x, *_ = wired("chunk")
    quiet_trace(net, x)
    with pytest.raises(UserError) as caught:
        surgery(net, plan)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: reprune.silence(nn.Conv2d(3, 4, 3), {}), "this Conv2d has not been traced"),
    (lambda: reprune.remove(nn.Conv2d(3, 4, 3), {}), "this Conv2d has not been traced"),
    (lambda: CostTable(nn.Conv2d(3, 4, 3)), "this Conv2d has not been traced"),
    (lambda: reprune.trace(BranchesOnValues(), torch.zeros(1, 3, 8, 8)), "torch.fx cannot trace BranchesOnValues"),
    (lambda: reprune.trace(nn.Sequential(conv(3, 4)), torch.zeros(1, 1, 8, 8)),
     "Sequential does not run on an example of shape [1, 1, 8, 8]"),
])
def test_what_cannot_be_traced_or_was_not_is_refused_in_one_line(call, words):
    with pytest.raises(UserError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_removed_net_must_be_traced_again():
    """The groups of the net it was cut from do not fit it."""
    net, x = build("cifar-resnet8")
    quiet_trace(net, x)
    with pytest.raises(UserError, match="not been traced"):
        reprune.silence(reprune.remove(net, random_plan(net, 0)), {})
