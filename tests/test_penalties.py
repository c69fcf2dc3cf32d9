"""Penalties: equal to their formulas read literally, safe at exact zero, and harmless to the net they look at."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reprune.errors import UserError
from reprune.methods.distillation import Distillation
from reprune.methods.hgsr import HGSR, KINDS, regulariser
from reprune.methods.slimming import GammaL1
from reprune.pruning.sockets import Step

SHAPES = [(3, 4, 3, 3), (4, 2, 1, 1), (2, 3, 1, 3), (1, 5, 3, 2), (5, 1, 2, 2)]

# The table of the papers, by hand: (inner term of one kernel, outer function of a group's sum, degree in W).
LITERAL = {
    "l1": (lambda k: k.abs().sum(), lambda s: s, 1),
    "group_lasso": (lambda k: (k * k).sum(), lambda s: s.sqrt(), 1),
    "hierarchical_square_rooted_group_lasso": (lambda k: (k * k).sum().sqrt(), lambda s: s.sqrt(), 0.5),
    "hierarchical_squared_group_lasso": (lambda k: (k * k).sum().sqrt(), lambda s: s * s, 2),
    "exclusive_sparsity": (lambda k: k.abs().sum(), lambda s: s * s, 2),
    "hierarchical_square_rooted_exclusive_sparsity": (lambda k: k.abs().sum() ** 2, lambda s: s.sqrt(), 1),
    "hierarchical_squared_exclusive_sparsity": (lambda k: k.abs().sum() ** 2, lambda s: s * s, 4),
    "group_l12": (lambda k: k.abs().sum(), lambda s: s.sqrt(), 0.5),
    "hierarchical_square_rooted_group_l12": (lambda k: k.abs().sum().sqrt(), lambda s: s.sqrt(), 0.25),
    "hierarchical_squared_group_l12": (lambda k: k.abs().sum().sqrt(), lambda s: s * s, 1),
}
every_kind = pytest.mark.parametrize("kind", LITERAL)


def every_form(test):
    return every_kind(pytest.mark.parametrize("grouping", ["feature", "neuron"])(test))


def literal(w, kind, grouping):
    """R(W) as two loops over kernels. Exact zeros add nothing, so they are stepped over: no guard, no NaN."""
    inner, outer, _ = LITERAL[kind]
    total = w.new_zeros(())
    for group in w.unbind(1 if grouping == "feature" else 0):
        live = [inner(kernel) for kernel in group if kernel.any()]
        if live:
            total = total + outer(sum(live))
    return total


def value_and_grad(function, w, *args):
    w = w.clone().requires_grad_()
    value = function(w, *args)
    value.backward()
    return value.detach(), w.grad


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1),
                         nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))


def step_of(net, teacher=None):
    x, y = draw((6, 3, 5, 5)).float(), torch.tensor([0, 1, 2, 0, 1, 2])
    return Step(net=net, x=x, y=y, logits=net(x), teacher=teacher)


def test_there_are_exactly_the_ten_regularisers():
    assert list(KINDS) == list(LITERAL)


@every_form
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_regulariser_is_the_literal_double_loop(kind, grouping, shape):
    w = draw(shape)
    for layout in (w, w.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(value_and_grad(regulariser, layout, kind, grouping),
                                   value_and_grad(literal, w, kind, grouping), rtol=1e-12, atol=1e-12)


@every_form
def test_gradient_agrees_with_finite_differences(kind, grouping):
    w = draw((2, 3, 2, 1))
    w = (w + 0.5 * w.sign()).requires_grad_()  # away from the kinks of |w|, where a difference straddles two slopes
    assert torch.autograd.gradcheck(lambda v: regulariser(v, kind, grouping), w)


@every_form
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["f32", "f64"])
def test_exact_zeros_have_zero_gradient_and_change_nothing_else(kind, grouping, dtype, tolerance):
    w = draw((4, 5, 3, 3)).to(dtype)
    w[1, 2] = 0  # one kernel
    w[:, 4] = 0  # one feature group
    w[3] = 0     # one neuron group
    value, grad = value_and_grad(regulariser, w, kind, grouping)
    assert torch.equal(grad != 0, w != 0)
    torch.testing.assert_close((value, grad), value_and_grad(literal, w, kind, grouping), rtol=tolerance, atol=0)


@every_form
def test_an_all_zero_layer_costs_nothing_and_is_not_moved(kind, grouping):
    value, grad = value_and_grad(regulariser, torch.zeros(3, 2, 3, 3), kind, grouping)
    assert value == 0 and torch.equal(grad, torch.zeros(3, 2, 3, 3))


@every_kind
def test_neuron_is_feature_of_the_transposed_weight(kind):
    w = draw((3, 5, 2, 2))
    torch.testing.assert_close(regulariser(w, kind, "neuron"), regulariser(w.transpose(0, 1), kind, "feature"))


@every_form
def test_the_order_of_filters_and_channels_does_not_matter(kind, grouping):
    w = draw((4, 5, 3, 3))
    shuffled = w[[2, 0, 3, 1]][:, [4, 1, 0, 3, 2]]
    torch.testing.assert_close(regulariser(shuffled, kind, grouping), regulariser(w, kind, grouping))


@every_form
def test_scaling_the_weight_scales_the_value_by_its_degree(kind, grouping):
    w, c = draw((4, 5, 3, 3)), 3.7
    expected = c ** LITERAL[kind][2] * regulariser(w, kind, grouping)
    torch.testing.assert_close(regulariser(c * w, kind, grouping), expected)


@every_form
def test_per_kernel_pulls_as_hard_on_the_kernels_of_a_wide_layer_as_on_those_of_a_narrow_one(kind, grouping):
    def mean_pull(outputs, inputs):
        w = draw((outputs, inputs, 3, 3))
        return value_and_grad(regulariser, w, kind, grouping, "per_kernel")[1].abs().mean()
    narrow, wide, long = mean_pull(64, 64), mean_pull(512, 64), mean_pull(64, 512)
    assert abs(wide / narrow - 1) < 0.03 and abs(long / narrow - 1) < 0.03


@every_form
def test_per_kernel_is_the_sum_where_a_group_is_one_kernel_and_for_plain_l1(kind, grouping):
    w = draw((1, 1, 3, 3) if kind != "l1" else (4, 5, 3, 3))
    torch.testing.assert_close(regulariser(w, kind, grouping, "per_kernel"), regulariser(w, kind, grouping))


@every_form
def test_objective_mixes_regulariser_and_l1_over_the_convs_that_are_not_excluded(kind, grouping):
    net = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "downsample": nn.Conv2d(3, 4, 1), "fc": nn.Linear(4, 2)}).double()
    w = net["conv"].weight
    expected = 0.1 * (0.3 * literal(w, kind, grouping) + 0.7 * w.abs().sum())
    penalty = HGSR(kind, weight=0.1, mix=0.3, grouping=grouping)
    torch.testing.assert_close(penalty(Step(net, None, None, None)), expected, rtol=1e-12, atol=0)
    assert len(HGSR(exclude=()).weights(net)) == 2 and len(HGSR(exclude="conv").weights(net)) == 1


def test_slimming_is_the_sum_of_absolute_scale_factors():
    net = small_net()
    net[1].weight.data = torch.tensor([1.0, -2.0, 0.0, 0.5])
    net[4].weight.data = torch.tensor([3.0, 0.0, -1.0, 0.0, 0.25])
    penalty = GammaL1(weight=0.1)(step_of(net))
    penalty.backward()
    torch.testing.assert_close(penalty, torch.tensor(0.775))  # 0.1 * (3.5 + 4.25)
    torch.testing.assert_close(net[1].weight.grad, 0.1 * torch.tensor([1.0, -1.0, 0.0, 1.0]))
    assert net[0].weight.grad is None and net[1].bias.grad is None


@pytest.mark.parametrize("alpha, temperature", [(0.7, 4.0), (0.0, 1.0), (1.0, 2.5)])
def test_distillation_turns_cross_entropy_into_the_textbook_loss(alpha, temperature):
    teacher, student = small_net(1).eval(), small_net(2)
    step = step_of(student, teacher)
    ce = F.cross_entropy(step.logits, step.y)
    p = F.softmax(teacher(step.x) / temperature, dim=1)
    kl = F.kl_div(F.log_softmax(step.logits / temperature, dim=1), p, reduction="batchmean")
    total = ce + Distillation(alpha, temperature)(step)
    torch.testing.assert_close(total, (1 - alpha) * ce + alpha * temperature**2 * kl)
    q = F.softmax(step.logits / temperature, dim=1)  # and the same divergence written out
    torch.testing.assert_close(kl, (p * (p / q).log()).sum(1).mean())


def test_a_student_equal_to_its_teacher_pays_no_divergence():
    net = small_net().eval()
    step = step_of(net, copy.deepcopy(net))
    total = F.cross_entropy(step.logits, step.y) + Distillation(1.0, 4.0)(step)
    torch.testing.assert_close(total, torch.tensor(0.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("penalty", [*[HGSR(kind) for kind in KINDS], GammaL1(), Distillation()],
                         ids=[*KINDS, "slimming", "distillation"])
def test_a_penalty_gives_gradients_and_leaves_both_nets_as_they_were(penalty):
    net, teacher = small_net(1).train(), small_net(2).train()  # a teacher in train mode must not drift either
    step = step_of(net, teacher)
    before = copy.deepcopy([net.state_dict(), teacher.state_dict()])
    value = penalty(step)
    value.backward()
    assert value.shape == () and value.isfinite()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    assert any(g.any() for g in grads) and all(g.isfinite().all() for g in grads)
    assert net.training and all(p.grad is None for p in teacher.parameters())
    torch.testing.assert_close([net.state_dict(), teacher.state_dict()], before, rtol=0, atol=0)


@pytest.mark.parametrize("make, says", [
    (lambda: HGSR("lasso"), "hierarchical_squared_group_l12"),
    (lambda: HGSR(grouping="filter"), "feature, neuron"),
    (lambda: HGSR(scale="mean"), "sum, per_kernel"),
    (lambda: HGSR(weight=-1), "weight"),
    (lambda: HGSR(mix=1.5), "mix"),
    (lambda: HGSR()(Step(nn.Sequential(nn.Linear(2, 2)), None, None, None)), "Conv2d"),
    (lambda: GammaL1(weight=-1), "weight"),
    (lambda: GammaL1()(Step(nn.Sequential(nn.Linear(2, 2)), None, None, None)), "BatchNorm2d"),
    (lambda: Distillation(alpha=1.1), "alpha"),
    (lambda: Distillation(temperature=0), "temperature"),
    (lambda: Distillation()(step_of(small_net())), "teacher"),
])
def test_bad_input_is_one_clear_line(make, says):
    with pytest.raises(UserError, match=says) as error:
        make()
    assert "\n" not in str(error.value)
