"""The agent of `cacp`: DDPG of stable-baselines3, on an environment of gymnasium. Imported only when it searches."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise

if TYPE_CHECKING:
    from reprune.methods.cacp import Conditional, Walk

HIDDEN, TAU, BATCH = [300, 300], 0.01, 64
ACTOR, CRITIC = 1e-4, 1e-3              # learning rates


class Layers(gymnasium.Env):
    """A walk over the layers, for one target after the other. best: of each target, the counts of the best net."""

    def __init__(self, walk: Walk, top1: Callable[[list[int]], float], options: Conditional, targets: list[float]):
        self.walk, self.top1, self.options, self.targets = walk, top1, options, targets
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (len(walk.state()),), np.float32)
        self.action_space = gymnasium.spaces.Box(options.low, options.high, (1,), np.float32)
        self.episode, self.best, self.usual = -1, {}, [0.0] * len(targets)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode += 1
        self.turn = self.episode % len(self.targets) if self.options.target_order == "round_robin" else \
            int(self.np_random.integers(len(self.targets)))
        return self.walk.begin(self.targets[self.turn]).numpy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        rate = float(action[0])
        done = self.walk.act(rate if self.options.action_is == "prune" else 1 - rate)
        return self.walk.state().numpy(), self.end() if done else 0.0, done, False, {"steps": len(self.walk.groups)}

    def end(self) -> float:
        """-> the reward"""
        top1 = self.top1(self.walk.counts)
        if self.turn not in self.best or top1 > self.best[self.turn][0]:
            self.best[self.turn] = top1, list(self.walk.counts)
        if self.options.reward == "acc":
            return top1 / 100
        reward = (top1 - self.usual[self.turn]) / 100
        self.usual[self.turn] = 0.999 * self.usual[self.turn] + 0.001 * top1
        return reward


class Shared(ReplayBuffer):
    """The reward of the last step is that of all steps of its episode."""

    def add(self, obs: np.ndarray, next_obs: np.ndarray, action: np.ndarray, reward: np.ndarray, done: np.ndarray,
            infos: list[dict[str, Any]]) -> None:
        super().add(obs, next_obs, action, reward, done, infos)
        if done[0]:
            self.rewards[(self.pos - 1 - np.arange(infos[0]["steps"])) % self.buffer_size] = reward


class Fading(NormalActionNoise):
    """None in warm-up, whose actions are random anyway; then less with every episode. reset() is called at the start
    and at the end of each."""

    def __init__(self, delta: float, decay: float, warmup: int):
        super().__init__(np.zeros(1), np.full(1, delta))
        self.decay, self.left = decay, warmup + 1

    def __call__(self) -> np.ndarray:
        return np.zeros(1) if self.left > 0 else super().__call__()

    def reset(self) -> None:
        self.left -= 1
        if self.left < 0:
            self._sigma = self._sigma * self.decay


class Agent(DDPG):
    """With a learning rate for the actor and one for the critic."""

    def _update_learning_rate(self, optimizers: Any) -> None:
        for net, rate in ((self.actor, ACTOR), (self.critic, CRITIC)):
            for group in net.optimizer.param_groups:
                group["lr"] = rate


def search(walk: Walk, top1: Callable[[list[int]], float], options: Conditional, targets: list[float],
           seed: int) -> dict[int, list[int]]:
    """-> filters to remove from each group, by the number of the target"""
    env, steps = Layers(walk, top1, options, targets), len(walk.groups)
    unit = 2 / (options.high - options.low)                       # actions are scaled to -1 .. 1
    state = random.getstate(), np.random.get_state()              # noqa: NPY002  (what the library seeds)
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            agent = Agent("MlpPolicy", env, buffer_size=options.warmup * steps, learning_starts=options.warmup * steps,
                          batch_size=BATCH, tau=TAU, gamma=1.0, train_freq=(1, "episode"), gradient_steps=-1,
                          action_noise=Fading(options.delta * unit, options.decay, options.warmup),
                          replay_buffer_class=Shared, policy_kwargs={"net_arch": HIDDEN}, seed=seed % 2**31,
                          device="cpu")
            agent.learn((options.warmup + options.episodes) * steps)
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])                             # noqa: NPY002
    return {turn: counts for turn, (_, counts) in env.best.items()}
