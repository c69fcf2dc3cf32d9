r"""HRank: filters whose feature maps have a low rank.                      Lin et al., CVPR 2020, arXiv:2002.10179

    s_c = 1/N sum_n rank( A_nc )                             (1)   small: little information, removed first

    A_nc     feature map c after its ReLU, for image n       [H, W]; singular values below max(H, W) eps sigma_max
    N        training images: 5 batches of 128                      count as zeros

Layer by layer: int(P C) filters of one layer go, the net is fine-tuned, the next layer follows (`rounds:
layer_by_layer`). HRankPlus removes them in all layers at once and fine-tunes longer (`rounds: one_shot`).

Needs: images.

Deviations: images are not augmented (the authors': they are; the ranks hardly depend on them). Filters are removed,
the authors mask them and batch norm until the end, and keep the best epoch of every fine-tuning where this keeps the
last. Each layer is ranked on the net as it is by then; the authors rank all layers of the unpruned net. In residual
nets the rows prune inner widths; the authors mask block outputs too. What several layers read at several places has
the mean of (1).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from reprune.errors import UserError
from reprune.pruning.maps import Maps
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Criterion, Scores
from reprune.structure.groups import FilterGroup
from reprune.structure.modes import eval_mode


def ranks(maps: Tensor) -> Tensor:
    """Of every map, all at once; NaN where a value is no number. [..., H, W] -> float [...]

    >>> ranks(torch.tensor([[[1., 0.], [0., 1.]], [[1., 2.], [2., 4.]], [[0., 0.], [0., 0.]]]))
    tensor([2., 1., 0.])
    """
    known = maps.isfinite().all(-1).all(-1)
    values = torch.linalg.svdvals(maps.float().where(known[..., None, None], 0))   # [..., min(H, W)], falling
    least = max(maps.shape[-2:]) * torch.finfo(values.dtype).eps * values[..., :1]   # as torch.linalg.matrix_rank
    found = (values > least).sum(-1).float()
    return found.where(known, torch.nan)


class Rank(Criterion):
    """Eq. 1.

    n_samples    N, training images (or all there are)
    """

    def __init__(self, n_samples: int = 640):
        if n_samples < 1:
            raise UserError(f"hrank: n_samples must be at least 1, got {n_samples}")
        self.n_samples = n_samples

    @torch.no_grad()
    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        sizes: dict[str, int] = {}                                # node -> the shorter side of its maps

        def see(node: str, value: Tensor) -> None:
            sizes[node] = min(value.shape[2:]) if value.dim() == 4 else 1

        with eval_mode(probe.net):
            maps = Maps(probe.net, groups, see)
            maps.run(probe.example)
        for name, places in maps.places.items():
            if places and max(sizes[place.node] for place in places) == 1:
                raise UserError(f"hrank: the feature maps of {name} have one row or column, of rank 0 or 1: skip it "
                                "(allocation.skip), or take larger images")

    @torch.no_grad()
    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        total: dict[str, Tensor] = {}                             # node -> sum over images [C]

        def see(node: str, value: Tensor) -> None:
            found = ranks(value if value.dim() == 4 else value[..., None, None]).double().sum(0)
            total[node] = total.get(node, 0) + found

        n, groups = min(self.n_samples, len(probe.data.parts.train)), list(groups)
        with eval_mode(probe.net):
            maps = Maps(probe.net, groups, see)
            for x, _ in probe.data.plain(probe.batch_size, probe.seed, n, str(probe.example.device.type)):
                maps.run(x)
        return {g.name: torch.stack([place.of(total[place.node] / n).mean(1) for place in maps.places[g.name]])
                .mean(0).float().cpu() for g in groups}
