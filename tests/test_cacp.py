"""cacp is its formulas: the walk against nets that are really cut, the agent's reward against what was measured."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ga_nets import images, lively, look, reading, resnet8
from torch import nn

import reprune
from reprune.errors import UserError
from reprune.methods import cacp
from reprune.methods.cacp import Conditional, Walk
from reprune.methods.cap import Compensate, Ranking

TARGETS = [0.3, 0.5, 0.7]


def walk(high: float = 1.0) -> Walk:
    probe = resnet8()
    groups = [g for g in probe.groups if not g.coupled]
    return Walk(groups, probe, [g.size - 1 for g in groups], high)


def macs(of: Walk, counts: list[int]) -> int:
    """Of the net itself; a layer that loses all counts as if it read and made nothing."""
    net = of.probe.net
    plan = {g.name: torch.arange(g.size) >= min(n, g.size - 1) for g, n in zip(of.groups, counts, strict=True)}
    whole = reprune.cost(reprune.remove(net, plan), of.probe.example).macs
    one = {g.name: torch.arange(g.size) >= min(n, g.size - 2) for g, n in zip(of.groups, counts, strict=True)}
    return whole - sum(reprune.cost(reprune.remove(net, {**plan, g.name: one[g.name]}), of.probe.example).macs - whole
                       for g, n in zip(of.groups, counts, strict=True) if n == g.size)


def test_a_walk_removes_what_later_layers_could_not_make_up_for():
    one = walk()
    sizes, whole = [g.size for g in one.groups], macs(one, [0, 0, 0])
    own = [(whole - macs(one, [n if i == at else 0 for i, n in enumerate(sizes)])) / whole for at in range(3)]
    target, gone, counts = 0.6 * sum(own), 0.0, [0, 0, 0]
    state = one.begin(target)
    for at, action in enumerate((0.05, 0.3, 0.05)):
        assert state[0] == pytest.approx(target) and state[1] == at / 2
        assert state[[11, 12]].tolist() == pytest.approx([gone, sum(own[at + 1:])], rel=1e-4, abs=1e-6)
        duty = target - (gone + sum(own[at + 1:]) * 0.9)
        rate = min(1, max(action, duty / own[at]))
        done, state = one.act(action), one.state()
        counts[at] = min(int(-(-(rate * sizes[at] - 1e-6) // 1)), sizes[at] - 1)
        gone = (whole - macs(one, counts)) / whole
        assert one.counts == counts and state[13] == pytest.approx(rate, rel=1e-4)
    assert done and gone >= target > 0.05 * sum(own)


def test_features_are_scaled_over_the_layers_but_those_that_all_share():
    one = walk()
    convs = [one.probe.net.get_submodule(g.name.replace("conv1", "conv2")) for g in one.groups]
    assert one.fixed[:, 0].tolist() == [0, 0.5, 1] and one.fixed[:, 1].tolist() == [0, 0, 0]         # convs
    assert one.fixed[:, 2].tolist() == pytest.approx([(c.out_channels - 16) / 48 for c in convs])
    assert one.fixed[:, 4].tolist() == pytest.approx([1, 1 / 3, 0])              # 16, 8 and 4 pixels
    assert one.fixed[:, 7].tolist() == [3, 3, 3] and len(one.state()) == 14


def test_what_is_left_is_refitted_by_least_squares_without_an_intercept():
    x = images(20)
    net = lively(reading(nn.Conv2d(6, 4, 3)), x)
    probe, keep = look(net, x), torch.tensor([True, False, True, True, False, True])
    with torch.no_grad():
        refit = Compensate(Ranking(share=1, eps=0, centre=False), rescale=False)
        small = refit(reprune.remove(net, {"0": keep}), probe)
        read = F.unfold(net[:3](x), 3).transpose(1, 2).reshape(-1, 6 * 9)
        some = read.view(-1, 6, 9)[:, keep].flatten(1)
        expected = torch.linalg.lstsq(some, read @ net[3].weight.flatten(1).T).solution.T
    assert torch.allclose(small[3].weight.flatten(1), expected, rtol=1e-6)
    assert torch.equal(small[3].bias, net[3].bias)


def env(options: Conditional, top1=lambda counts: 50.0 + sum(counts)):
    from reprune.methods.cacp_agent import Layers

    return Layers(walk(), top1, options, TARGETS)


@pytest.mark.parametrize("reward", ["acc", "moving_baseline"])
def test_targets_take_turns_and_the_best_net_of_each_is_kept(reward):
    layers = env(Conditional(macs=0.5, reward=reward))
    seen, rewards, usual = {}, [], [0.0, 0.0, 0.0]
    for episode in range(6):
        state, _ = layers.reset(seed=0)
        assert state[0] == pytest.approx(TARGETS[episode % 3])
        for _ in range(3):
            _, given, done, _, info = layers.step(np.array([0.9 if episode > 2 else 0.3]))
            assert done or given == 0
        top1 = 50.0 + sum(layers.walk.counts)
        seen[episode % 3] = top1, list(layers.walk.counts)
        rewards.append(given)
        assert given == pytest.approx((top1 - (usual[episode % 3] if reward != "acc" else 0)) / 100)
        usual[episode % 3] = 0.999 * usual[episode % 3] + 0.001 * top1
    assert done and info == {"steps": 3} and layers.best == seen  # the second round removes more


def test_all_steps_of_an_episode_have_its_reward_and_noise_fades_after_warm_up():
    from reprune.methods.cacp_agent import Fading, Shared

    layers = env(Conditional(macs=0.5))
    buffer = Shared(7, layers.observation_space, layers.action_space, device="cpu")
    for episode in range(3):                                      # the third goes round the end
        for step in range(3):
            o = np.zeros((1, 14), np.float32)
            buffer.add(o, o, np.zeros((1, 1)), np.array([0.0 if step < 2 else episode + 1.0]), np.array([step == 2]),
                       [{"steps": 3}])
    assert buffer.rewards.flatten().tolist() == [3, 3, 1, 2, 2, 2, 3]
    noise, deviations, silent = Fading(0.5, 0.9, 2), [], []
    for _ in range(5):
        noise.reset()
        deviations.append(float(noise._sigma[0]))
        silent.append(noise().item() == 0)
    assert silent == [True, True, False, False, False]            # two episodes of warm-up
    assert deviations[2:] == pytest.approx([0.5, 0.45, 0.405])


@pytest.mark.parametrize("action_is", ["prune", "preserve"])
def test_a_search_is_the_same_again_and_leaves_random_numbers_alone(action_is):
    from reprune.methods.cacp_agent import search

    options = Conditional(macs=0.5, warmup=2, episodes=4, action_is=action_is, low=0.2, high=0.9)
    walks = walk(), walk()
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()       # noqa: NPY002
    found = [search(each, lambda counts: 90.0 - sum(counts), options, TARGETS, 3) for each in walks]
    assert found[0] == found[1] and set(found[0]) == {0, 1, 2}
    assert random.getstate() == state[0] and np.random.get_state()[1].tolist() == state[1]    # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state[2])


def test_what_is_missing_or_asked_for_in_vain_is_one_line(monkeypatch):
    with pytest.raises(UserError, match="^allocation.macs must be what one of allocation.targets leaves, [^\n]*$"):
        Conditional(macs=0.4)
    probe = resnet8()
    groups = [g for g in probe.groups if not g.coupled]
    monkeypatch.setattr(cacp, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^cacp needs gymnasium and stable_baselines3: pip install 'reprune\[rl\]'$"):
        Conditional(macs=0.5, groups="inner").check(groups, probe)
