r"""ACP: clusters of channels, and widths by a swarm.           Chang et al., JingfeiChang/ACP-Automatic-Channel-Pruning

    d(c, c') = 1 - < A_c, A_c' > / ( |A_c| |A_c'| )          A_c: the mean map of channel c over images, flattened   (1)
    c joins the first cluster whose leader is within eps of it, or leads one of its own                              (2)
    v <- w v + c_1 u_1 (p* - p) + c_2 u_2 (g* - p),   p <- p + v           u ~ U(0, 1)                               (3)

    p        a particle: how many channels each layer keeps
    p*, g*   the best that this particle, and any, has come to

As many channels stay as there are clusters; then particles around these widths move by (3) to others that cost no more
MACs. The narrow net is trained from scratch (recipe chang2020).

Needs: training images, labels.
Deviations: known are the steps (clustering by similar maps with a threshold eps, then particle swarm optimisation) and
the results; all else is a reconstruction: (1), the order of (2), strongest map first, the constants of (3), and that a
particle is worth the loss of the silenced net on training images. Of a layer, leaders of large clusters stay first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reprune.errors import UserError
from reprune.pruning.allocation import Limits, keep_best
from reprune.pruning.maps import Maps, channels
from reprune.pruning.probe import Probe, eval_mode
from reprune.pruning.sockets import Criterion, Scores
from reprune.structure.groups import FilterGroup, Plan


def clusters(maps: Tensor, eps: float) -> Tensor:
    """Eq. 1 and 2, as scores: for leaders 1, the share of channels in the cluster, and less than one channel's for the
    strength of the map; for others d / 2 to their leader. maps [C, M] -> [C]

    >>> clusters(torch.tensor([[1., 0.], [2., 0.], [0., 1.]]), eps=0.1)          # 1 + 2/3 + 1/6;  1 + 1/3 + 1/12
    tensor([0.0000, 1.8333, 1.4167])
    >>> clusters(torch.tensor([[1., 0.], [0., 0.], [0., 0.]]), eps=0.1)          # dead channels lead none
    tensor([1.5000, 0.0000, 0.0000])
    """
    unit, strength = F.normalize(maps, dim=1), maps.norm(dim=1)
    scores, leaders = torch.zeros(len(maps)), []
    for c in strength.argsort(descending=True, stable=True).tolist():
        if leaders and not strength[c]:
            continue                                              # dead: like no other, as its map has no direction
        d = 1 - unit[leaders] @ unit[c]                           # [leaders]
        if near := (d <= eps).nonzero().flatten().tolist():
            scores[c] = d[near[0]].clamp(0, 1) / 2
            scores[leaders[near[0]]] += 1 / len(maps)
        else:
            leaders.append(c)
            scores[c] = 1 + (1 + strength[c] / strength.max().clamp_min(1e-12) / 2) / len(maps)
    return scores + 0 * maps.sum(1)                               # NaN where a map is


class Clusters(Criterion):
    """What `Swarm` takes widths from.

    eps          of (2)
    n_samples    training images of the mean maps, or all there are
    """

    def __init__(self, eps: float = 0.035, n_samples: int = 1000):
        if not 0 <= eps < 1 or n_samples < 1:
            raise UserError(f"acp: eps must be at least 0 and below 1, n_samples at least 1, got {eps}, {n_samples}")
        self.eps, self.n_samples = eps, n_samples

    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        total: dict[str, Tensor] = {}                             # node -> sum of maps [C, M]

        def see(node: str, value: Tensor) -> None:
            total[node] = total.get(node, 0) + channels(value).double().sum(0)

        n = min(self.n_samples, len(probe.data.parts.train))
        with eval_mode(probe.net):
            maps = Maps(probe.net, groups, see)
            for x, _ in probe.data.plain(probe.batch_size, probe.seed, n, str(probe.example.device.type)):
                maps.run(x)
        mean = {name: [place.of((total[place.node] / n).T).movedim(0, -1).flatten(1) for place in places]
                for name, places in maps.places.items()}          # [size, k M] at every place
        return {name: clusters(torch.cat(each, 1).cpu(), self.eps) for name, each in mean.items()}


@dataclass(kw_only=True)
class Swarm(Limits):
    """As many filters as there are clusters, or other widths of no more MACs that eq. 3 finds.

    particles, steps     of the swarm; 0 particles: the clusters' widths
    inertia, own, all    w, c_1, c_2
    spread               of the particles around the clusters' widths, as a fraction of these
    n_samples            training images that a particle is worth its loss on
    """

    particles: int = 8
    steps: int = 5
    inertia: float = 0.5
    own: float = 1.5
    all: float = 1.5
    spread: float = 0.2
    n_samples: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.particles, self.steps, self.spread) < 0 or self.n_samples < 1:
            raise UserError("allocation: particles, steps and spread must be at least 0, n_samples at least 1, got "
                            f"{self.particles}, {self.steps}, {self.spread}, {self.n_samples}")

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        groups = self.candidates(probe, scores)
        start = torch.tensor([float((scores[g.name] >= 1).sum()) for g in groups])
        most = probe.cost(self.plan(groups, scores, start, probe)).macs

        def worth(p: Tensor) -> float:
            """The loss at these widths, which are brought down in place to what they may cost."""
            while probe.cost(self.plan(groups, scores, p, probe)).macs > most:
                p.mul_(0.98)
            return probe.loss(self.plan(groups, scores, p, probe), self.n_samples)

        return self.plan(groups, scores, self.search(start, worth, probe.generator()), probe)

    def search(self, start: Tensor, worth: Callable[[Tensor], float], generator: torch.Generator) -> Tensor:
        """Eq. 3. -> the best widths [groups]"""
        if not self.particles:
            return start
        noise = torch.randn(self.particles, len(start), generator=generator)
        noise[0] = 0                                              # one is the clusters' own
        at, speed = start * (1 + self.spread * noise), torch.zeros_like(noise)
        losses = torch.tensor([worth(p) for p in at])
        best = at.clone()
        for _ in range(self.steps):
            u = torch.rand(2, *at.shape, generator=generator)
            leader = best[losses.argmin()]
            speed = self.inertia * speed + self.own * u[0] * (best - at) + self.all * u[1] * (leader - at)
            at = (at + speed).clamp_min(1)
            now = torch.tensor([worth(p) for p in at])
            best = torch.where((now < losses).unsqueeze(1), at, best)
            losses = torch.minimum(now, losses)
        return best[losses.argmin()]

    def plan(self, groups: list[FilterGroup], scores: Scores, widths: Tensor, probe: Probe) -> Plan:
        kept = [(g, min(g.size, max(1, round(n)))) for g, n in zip(groups, widths.tolist(), strict=True)]
        return {g.name: keep_best(scores[g.name], self.to_remove(n, g, probe)) for g, n in kept}
