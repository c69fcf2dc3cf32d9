r"""Optimal brain surgeon: the weight whose loss costs least goes, and all others make up for it.
   Hassibi & Stork, NIPS 5 (1992), pp. 164-171

    L_q = w_q^2 / (2 [H^-1]_qq),       dw = -w_q / [H^-1]_qq  H^-1 e_q                                           (eq. 5)
    H_(m+1)^-1 = H_m^-1 - H_m^-1 x x^T H_m^-1 / (P + x^T H_m^-1 x),      H_0^-1 = I / alpha                      (eq. 8)
    block q:  L_q = w_q^T ([H^-1]_qq)^-1 w_q / 2,      dw = -H^-1[:, q] ([H^-1]_qq)^-1 w_q

    scope net     x: gradient of the loss at one of P images, with respect to all weights and biases of the net
    scope layer   H = 2/N X^T X + damp I: the error in the outputs of a layer; X: its inputs, unfolded, N rows.
                  The same H for every filter; a filter makes up for its own weights

Once q is gone, H^-1 is that of the weights that are left (the Schur complement). In a layer each filter loses its
weights in an order of its own; which filter is next is decided by L_q over all of the layer. What is left is solved for
at once.

Needs: images, labels.

Deviations: equations are the textbook form, numbered as in the paper as far as is known. The layer-wise H and its
damping are a reconstruction: the paper's H is that of the whole net, which small perceptrons alone have room for. For
cross-entropy x is the gradient of the loss (the empirical Fisher information), where the paper has squared errors. It
stops at a share of the weights, where the paper stops once L_q is no longer small beside the error. Retraining is the
sparse part of the recipe (0 epochs: none).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.pruning.allocation import choice
from reprune.pruning.masks import WeightMask, share
from reprune.pruning.probe import Probe
from reprune.structure.modes import eval_mode

LARGEST = 2400                          # weights of a filter, or of a net: H^-1 has the square of them
ROOM = 2**25                            # numbers: of the inverses of the filters that are looked at together


def inverse(x: Tensor, alpha: float) -> Tensor:
    """Eq. 8. x [P, n] -> H^-1 [n, n]

    >>> inverse(torch.tensor([[2., 0.]]), 1.0)                    # H = I + x x^T
    tensor([[0.2000, 0.0000],
            [0.0000, 1.0000]])
    """
    inv = torch.eye(x.shape[1], dtype=x.dtype, device=x.device) / alpha
    for row in x:
        v = inv @ row
        inv -= torch.outer(v, v) / (len(x) + row @ v)
    return inv


def delete(w: Tensor, inv: Tensor, q: int) -> tuple[Tensor, Tensor]:
    """Eq. 5. w [n], H^-1 [n, n] -> both without weight q, which is zero in them

    >>> delete(torch.tensor([1., 2.]), torch.tensor([[2., 1.], [1., 2.]]), 0)
    (tensor([0.0000, 1.5000]), tensor([[0.0000, 0.0000],
            [0.0000, 1.5000]]))
    """
    step = inv[:, q] / inv[q, q]
    w, inv = w - w[q] * step, inv - torch.outer(step, inv[q])
    w[q] = inv[q] = inv[:, q] = 0
    return w, inv


def order(w: Tensor, inv: Tensor, size: int = 1) -> tuple[Tensor, Tensor]:
    """In which order each filter loses its blocks of `size` weights, and L_q of each by then. w [filters, d], H^-1
    [d, d] -> both [filters, d / size]"""
    rows, n = len(w), w.shape[1] // size
    w, inv = w.clone(), inv.expand(rows, -1, -1).clone()
    names = torch.arange(n, device=w.device).expand(rows, n)
    gone, every = torch.zeros_like(names, dtype=torch.bool), torch.arange(rows, device=w.device)
    found, losses = [], []
    for left in range(n, 0, -1):
        if left < 0.85 * names.shape[1]:                          # smaller matrices, now and then
            keep = (~gone).nonzero()[:, 1].view(rows, left)
            at = (keep.unsqueeze(2) * size + torch.arange(size, device=w.device)).flatten(1)
            w = w.gather(1, at)
            inv = inv.gather(1, at.unsqueeze(2).expand(-1, -1, inv.shape[2])).gather(
                2, at.unsqueeze(1).expand(-1, at.shape[1], -1))
            names, gone = names.gather(1, keep), torch.zeros_like(keep, dtype=torch.bool)
        loss = _losses(w, inv, size, gone).masked_fill(gone, torch.inf)
        q = loss.argmin(1)
        found, losses = [*found, names[every, q]], [*losses, loss[every, q]]
        at = q.unsqueeze(1) * size + torch.arange(size, device=w.device)                       # [rows, size]
        columns = inv.gather(2, at.unsqueeze(1).expand(-1, inv.shape[1], -1))                  # [rows, d, size]
        block = columns.gather(1, at.unsqueeze(2).expand(-1, -1, size))
        steps = columns @ torch.linalg.inv(block)
        w = w - (steps @ w.gather(1, at).unsqueeze(2)).squeeze(2)
        inv.baddbmm_(steps, columns.transpose(1, 2), alpha=-1)
        gone[every, q] = True
    return torch.stack(found, 1), torch.stack(losses, 1)


def _losses(w: Tensor, inv: Tensor, size: int, gone: Tensor) -> Tensor:
    """L_q of every block. -> [rows, blocks]"""
    if size == 1:
        return w.square() / (2 * inv.diagonal(dim1=1, dim2=2).clamp_min(torch.finfo(w.dtype).tiny))
    blocks = inv.unflatten(1, (-1, size)).unflatten(3, (-1, size)).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    parts, one = w.unflatten(1, (-1, size)), torch.eye(size, dtype=w.dtype, device=w.device)
    blocks = torch.where(gone[:, :, None, None], one, blocks)     # of those that are gone it is zero
    return 0.5 * (parts * torch.linalg.solve(blocks, parts)).sum(2)


def first(losses: Tensor, n: int) -> Tensor:
    """How many of its blocks each filter has lost once n are gone, always the one with the least L_q next. [filters]

    >>> first(torch.tensor([[1., 9., 2.], [3., 4., 5.]]), 4)      # 1; 3, 4, 5; and not yet 9
    tensor([1, 3])
    """
    gone = losses.cummax(1).values.flatten().argsort(stable=True)[:n]          # one behind a 9 waits for it
    return torch.bincount(gone // losses.shape[1], minlength=len(losses))


def make_up(w: Tensor, inv: Tensor, gone: Tensor) -> Tensor:
    """w once the weights `gone` (bool) of one filter are: what removing them one by one ends in. w [d], H^-1 [d, d]"""
    lost = gone.nonzero().squeeze(1)
    w = w - inv[:, lost] @ torch.linalg.solve(inv[lost][:, lost], w[lost])
    return w.masked_fill(gone, 0)


class Surgeon(WeightMask):
    """rate: share of the weights that go; scope: layer | net; unit: weight | kernel; n_samples: training images; damp:
    of the mean diagonal of H, in layers; alpha: of the net's; recompute_every: removals from the net until gradients
    are taken anew, 0 = never."""

    def __init__(self, rate: float = 0.5, scope: str = "layer", unit: str = "weight", n_samples: int = 512,
                 damp: float = 1e-2, alpha: float = 1e-6, recompute_every: int = 1, skip: Sequence[str] = ()):
        super().__init__(skip, bias=scope == "net")
        choice("method.masks.scope", scope, ("layer", "net"))
        choice("method.masks.unit", unit, ("weight", "kernel"))
        if n_samples < 1 or min(damp, alpha) <= 0 or recompute_every < 0 or (scope, unit) == ("net", "kernel"):
            raise UserError("method.masks: n_samples must be at least 1, damp and alpha above 0, recompute_every at "
                            f"least 0, unit=weight with scope=net, got {n_samples}, {damp}, {alpha}, "
                            f"{recompute_every}, {unit}")
        self.rate, self.scope, self.unit, self.n_samples = share("rate", rate), scope, unit, n_samples
        self.damp, self.alpha, self.recompute_every = damp, alpha, recompute_every

    def check(self, probe: Probe) -> None:
        weights = self.weights(probe.net)
        sizes = {"the net": sum(w.numel() for w in weights.values())} if self.scope == "net" else {
            name.removesuffix(".weight"): w[0].numel() for name, w in weights.items()}
        if large := [f"{name} ({n:,})" for name, n in sizes.items() if n > LARGEST]:
            raise UserError("method.masks: obs inverts a matrix with a row for each weight of a filter, or of the net, "
                            f"{LARGEST:,} at most: {', '.join(large)}; " + (
                                "use scope=layer" if self.scope == "net" else "name such layers in method.masks.skip"))

    @torch.no_grad()
    def start(self, net: nn.Module, probe: Probe) -> None:
        (self.in_net if self.scope == "net" else self.in_layers)(net, probe)
        self.apply(self.weights(net))

    def in_layers(self, net: nn.Module, probe: Probe) -> None:
        for name, grams in self.inputs(net, probe).items():
            weight = net.get_parameter(name)
            size = weight[0, 0].numel() if self.unit == "kernel" else 1
            parts = [self.surgery(w, gram, size) for w, gram in
                     zip(weight.flatten(1).double().chunk(len(grams)), grams, strict=True)]
            new = torch.cat([w for w, _ in parts]).view(weight.shape)
            self.masks[name] = torch.cat([keep for _, keep in parts]).view(weight.shape)
            weight.copy_(new)

    def surgery(self, w: Tensor, h: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Of filters that read the same inputs. w [filters, d], h [d, d] -> w, what stays of it"""
        h = h + self.damp * h.diagonal().mean().clamp_min(1e-12) * torch.eye(len(h), dtype=h.dtype, device=h.device)
        inv = torch.cholesky_inverse(torch.linalg.cholesky(h))
        some = max(1, ROOM // inv.numel())
        parts = [order(each.float(), inv.float(), size) for each in w.split(some)]
        turns, losses = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        counts = first(losses, int(self.rate * losses.numel() + 1e-9))
        late = torch.arange(turns.shape[1], device=w.device) >= counts.unsqueeze(1)
        keep = torch.zeros_like(late).scatter_(1, turns, late).repeat_interleave(size, 1)
        return torch.stack([make_up(row, inv, ~stays) for row, stays in zip(w, keep, strict=True)]), keep

    def inputs(self, net: nn.Module, probe: Probe) -> dict[str, list[Tensor]]:
        """2/N X^T X of every layer, for each of its conv groups."""
        found: dict[str, list[Tensor]] = {}
        rows: dict[str, int] = {}

        def see(name: str, module: nn.Module, given: tuple[Tensor]) -> None:
            for i, x in enumerate(_unfolded(module, given[0])):
                found.setdefault(name, [torch.zeros(()) for _ in range(getattr(module, "groups", 1))])
                found[name][i] = found[name][i].to(x.device) + (2 * x.T @ x).double()
            rows[name] = rows.get(name, 0) + len(x)

        hooks = [net.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda module, given, name=name: see(name, module, given)) for name in self.weights(net)]
        try:
            with eval_mode(net):
                for x, _ in self.images(probe):
                    net(x)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: [gram / rows[name] for gram in grams] for name, grams in found.items()}

    def images(self, probe: Probe):
        n = min(self.n_samples, len(probe.data.parts.train))
        return probe.data.plain(probe.batch_size, probe.seed, n, str(probe.example.device.type))

    def in_net(self, net: nn.Module, probe: Probe) -> None:
        weights = self.weights(net)
        keep = torch.ones(sum(w.numel() for w in weights.values()), dtype=torch.bool, device=probe.example.device)
        w, inv = None, None
        for number in range(int(self.rate * len(keep) + 1e-9)):
            if inv is None or self.recompute_every and number % self.recompute_every == 0:
                inv = self.of_net(net, probe, keep)
                w = nn.utils.parameters_to_vector(weights.values()).double()
            cost = (w.square() / (2 * inv.diagonal())).masked_fill(~keep, torch.inf)
            q = int(cost.argmin())
            w, inv = delete(w, inv, q)
            keep[q] = False
            nn.utils.vector_to_parameters(w.float(), weights.values())
        parts = keep.split([weight.numel() for weight in weights.values()])
        self.masks = {name: part.view(weight.shape)
                      for (name, weight), part in zip(weights.items(), parts, strict=True)}

    def of_net(self, net: nn.Module, probe: Probe, keep: Tensor) -> Tensor:
        """H^-1 of the weights that are left, zero for the others."""
        named = {name: weight.detach() for name, weight in self.weights(net).items()}

        def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(net, values, (x[None],)), y[None])

        each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))
        with eval_mode(net):
            found = [torch.cat([g.flatten(1) for g in each(named, x, y).values()], 1) for x, y in self.images(probe)]
        inv = inverse(torch.cat(found).double()[:, keep], self.alpha)
        whole = torch.zeros(len(keep), len(keep), dtype=inv.dtype, device=inv.device)
        at = keep.nonzero().squeeze(1)
        whole[at.unsqueeze(1), at] = inv
        return whole


def _unfolded(module: nn.Module, x: Tensor) -> list[Tensor]:
    """X of a layer, for each of its conv groups. [rows, d]"""
    if isinstance(module, nn.Linear):
        return [x.flatten(0, -2)]
    x = F.pad(x, module._reversed_padding_repeated_twice)
    return [F.unfold(part, module.kernel_size, module.dilation, 0, module.stride).transpose(1, 2).flatten(0, 1)
            for part in x.chunk(module.groups, 1)]
