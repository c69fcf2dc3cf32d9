"""What disappears together when a filter goes: traced from the net, not declared.

`trace` runs the net once with every channel of every tensor labelled (`labels.py`), unites the labels that arithmetic
couples, and calls each united set an *atom*: the smallest thing that can be removed. Atoms that touch the same axes of
the same modules form one `FilterGroup`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.structure.examples import check_net, device_of, first_image, on_meta
from reprune.structure.labels import PROTECTED, Call, Edit, Ledger
from reprune.structure.layers import PRODUCERS, filters_first
from reprune.structure.modes import tidy, training_branch, untouched
from reprune.structure.notes import note, notes
from reprune.structure.tracer import label

Plan = dict[str, Tensor]
"""Group name -> keep mask, bool [size]. The only thing criteria, searches, surgery and checkpoints exchange."""


@dataclass(frozen=True)
class Slice:
    """The channels of one axis of one module that belong to a group. `index` [size, k]: row i goes with filter i."""

    module: str
    axis: str           # "out": filters, biases, BN entries; "in": the inputs that read them; "0", "1": of a parameter
                        # or buffer that forward code uses itself, which `module` then names
    index: Tensor


@dataclass(frozen=True)
class FilterGroup:
    """`size` filters that can be removed one by one, each together with everything that is coupled to it."""

    name: str           # the first conv or linear layer that produces these channels
    size: int
    slices: tuple[Slice, ...]
    coupled: bool = False   # the channels are added up with others: the trunk of a residual stage

    def __repr__(self) -> str:
        """Two lines: its indices would fill a screen."""
        return (f"FilterGroup({self.name!r}, {self.size} filters{', coupled' * self.coupled};\n"
                f"    {', '.join(f'{s.module}:{s.axis}' for s in self.slices)})")

    def producers(self, net: nn.Module) -> list[Slice]:
        """The conv and linear layers whose filters these are, in order of execution."""
        return [s for s in self.slices if s.axis == "out" and isinstance(net.get_submodule(s.module), PRODUCERS)]

    def norms(self, net: nn.Module) -> list[Slice]:
        """The normalisation layers the channels pass through."""
        return [s for s in self.slices if s.axis == "out" and not isinstance(net.get_submodule(s.module), PRODUCERS)]

    def readers(self) -> list[Slice]:
        """The layers that read the channels."""
        return [s for s in self.slices if s.axis == "in"]

    def filters(self, net: nn.Module) -> list[Tensor]:
        """The filters of each producing layer, flattened: [size, k * c_in * kh * kw] each."""
        return [filters_first(net.get_submodule(s.module))[s.index.flatten()].flatten(1).reshape(self.size, -1)
                for s in self.producers(net)]

    def kernels(self, net: nn.Module) -> list[Tensor]:
        """The weights of each layer that reads the channels, flattened: [size, k * c_out * kh * kw] each."""
        layers = [(net.get_submodule(s.module), s) for s in self.readers()]
        return [filters_first(m).transpose(0, 1)[s.index.flatten()].flatten(1).reshape(self.size, -1)
                for m, s in layers if getattr(m, "groups", 1) == 1]


@dataclass
class Trace:
    """All that surgery and cost need to know of a net; pure data, travels with the net (`notes`)."""

    groups: list[FilterGroup]
    axes: dict[tuple[str, str], Tensor]          # (module, axis) -> atom of every channel, [channels], -1 = always kept
    edits: list[Edit]                            # literals in the forward code that count channels
    calls: list[Call]                            # conv and linear calls of layers, for counting MACs
    macs: int                                    # of all conv and linear calls
    folded: set[str]                             # layers that compute their weights: plain ones after surgery
    example: Any                                 # the inputs, of one image, on the meta device
    device: torch.device                         # where they were
    offsets: dict[str, int] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[C, H, W] of one image; () of a net with several inputs."""
        return tuple(self.example.shape[1:]) if isinstance(self.example, Tensor) else ()

    def keep(self, plan: Plan) -> Tensor:
        """Keep mask over all atoms, bool [atoms]; the groups a plan does not name are kept whole.

        Raises UserError for a group this net does not have, a mask of the wrong size, or a layer left empty."""
        sizes = {g.name: g.size for g in self.groups}
        keep = torch.ones(sum(sizes.values()), dtype=torch.bool)
        for name, mask in plan.items():
            if name not in sizes:
                raise UserError(f"plan names a group {name!r} that this net does not have; "
                                f"it has {', '.join(list(sizes)[:8])}{', ...' if len(sizes) > 8 else ''}")
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (sizes[name],):
                given = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
                raise UserError(f"plan for {name!r} must be a bool mask of shape [{sizes[name]}], got {given}")
            keep[self.offsets[name]: self.offsets[name] + sizes[name]] = mask.cpu()
        for (module, axis), atoms in self.axes.items():
            if not kept(atoms, keep).any():
                raise UserError(f"plan would leave {module} without {axis}put channels: keep at least one filter of it "
                                "(reprune.keep_best(scores, remove) does)")
        return keep

    def empties(self, keep: Tensor) -> bool:
        """Whether a part that the forward code splits off is left without channels: not all functions take that."""
        parts = [v for edit in self.edits if edit.kind in ("split", "slice")
                 for v in edit.vectors[edit.kind == "slice":]]    # the first of a slice is what stands before it
        return any(len(v) and not kept(v, keep).any() for v in parts)


def kept(atoms: Tensor, keep: Tensor) -> Tensor:
    """Which channels stay. atoms [channels] (-1 = always kept), keep [atoms] -> bool [channels].

    >>> kept(torch.tensor([0, -1, 1]), torch.tensor([False, True]))
    tensor([False,  True,  True])
    """
    return torch.cat([keep, keep.new_ones(1)])[atoms]             # -1 reads the extra last entry


def trace(net: nn.Module, example: Any) -> list[FilterGroup]:
    """The filter groups of a net, in order of execution.

    net: any module, left unchanged; example: one input of the size it will see, [B, C, H, W] (only its first image is
    used), or a tuple of inputs, or a dict of them by name. An operation the tracer does not know, and a module whose
    code cannot be followed, protect the channels that reach them, with a warning.
    Raises UserError where the net's own forward code cannot be followed, or the example does not fit it.
    """
    check_net(net)
    first, ledger = first_image(example), Ledger()
    with untouched(net, device_of(first)), tidy(net):
        label(net, first, ledger)
        if ledger.edits or _unreached(net, ledger):               # code, and heads, that training mode alone has
            _label_training_branch(net, ledger, first)
    found = _assemble(ledger, first)
    note(net, trace=found)
    return found.groups


def traced(net: nn.Module) -> Trace:
    """The trace that travels with the net. Raises UserError where there is none."""
    found = notes(net).get("trace")
    if found is None:
        raise UserError(f"this {type(net).__name__} has not been traced: call reprune.trace(net, example) first")
    return found


def _unreached(net: nn.Module, ledger: Ledger) -> set[str]:
    """The top-level parts with modules that hold parameters and were not called."""
    return {name.split(".")[0] for name, module in net.named_modules()
            if name not in ledger.called and any(True for _ in module.parameters(recurse=False))} - {""}


def _label_training_branch(net: nn.Module, ledger: Ledger, first: Any) -> None:
    heads = ", ".join(sorted(_unreached(net, ledger)))
    try:
        training_branch(net)
        label(net, first, ledger, training=True)
    except UserError as error:
        if heads:
            warnings.warn(f"{heads} cannot be followed in training mode, after pruning it may not run: {error}",
                          stacklevel=3)
    if unused := ", ".join(sorted(_unreached(net, ledger))):
        warnings.warn(f"{unused} is never called: left as it is", stacklevel=3)


def _assemble(ledger: Ledger, inputs: Any) -> Trace:
    """Labels and the pairs united -> atoms -> groups."""
    left = torch.cat([a for a, _ in ledger.edges]).numpy() if ledger.edges else np.empty(0, int)
    right = torch.cat([b for _, b in ledger.edges]).numpy() if ledger.edges else np.empty(0, int)
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(ledger.size, ledger.size))
    component = connected_components(graph, directed=False)[1]    # [labels]
    keys = list(ledger.axes)
    axis_of = np.concatenate([np.full(len(v), i) for i, v in enumerate(ledger.axes.values())] or [np.empty(0, int)])
    channel_of = np.concatenate([np.arange(len(v)) for v in ledger.axes.values()] or [np.empty(0, int)])
    atom_of = component[torch.cat(list(ledger.axes.values())).numpy()] if keys else np.empty(0, int)
    order = np.lexsort((channel_of, axis_of, atom_of))
    order = order[atom_of[order] != component[PROTECTED]]
    bounds = np.flatnonzero(np.diff(atom_of[order], prepend=-1, append=-1))
    filters = np.array([key in ledger.filters for key in keys], bool)

    signatures: dict[bytes, list[np.ndarray]] = {}                # atoms that touch the same axes, equally often
    axes_by_atom = axis_of[order]
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        if filters[axes_by_atom[start:stop]].any():
            signatures.setdefault(axes_by_atom[start:stop].tobytes(), []).append(order[start:stop])
    found = []
    for atoms in signatures.values():
        touched = np.stack(atoms)                                 # [size, channels an atom touches]
        axes = axis_of[touched[0]]
        first = next(a for a in axes if keys[a] in ledger.filters)   # axes are numbered in order of execution
        lead = np.flatnonzero(axes == first)[0]
        touched = touched[np.argsort(channel_of[touched[:, lead]])]
        slices = tuple(Slice(*keys[a], torch.from_numpy(channel_of[touched[:, axes == a]]))
                       for a in dict.fromkeys(axes))
        found.append((first, int(channel_of[touched[0, lead]]), keys[first][0], slices, atom_of[touched[:, 0]]))
    found.sort(key=lambda f: f[:2])

    added = np.zeros(component.max() + 1, bool)
    added[component[torch.cat(ledger.added).numpy() if ledger.added else np.empty(0, int)]] = True
    groups, offsets, number, total = [], {}, np.full(ledger.size, -1), 0
    for _, _, layer, slices, atoms in found:
        name, n = layer, 1
        while name in offsets:                                    # one layer may feed several groups
            name, n = f"{layer}#{n + 1}", n + 1
        groups.append(FilterGroup(name, len(atoms), slices, bool(added[atoms].any())))
        offsets[name] = total
        number[atoms] = np.arange(total, total + len(atoms))
        total += len(atoms)
    atoms_at = torch.from_numpy(number[component])                # [labels] -> atom
    axes = {key: atoms_at[vector] for key, vector in ledger.axes.items()}
    edits = [edit.map(lambda vector: atoms_at[vector]) for edit in ledger.edits.values()]
    return Trace(groups, axes, edits, ledger.calls, ledger.macs, ledger.folded & {layer for layer, _ in axes}, 
                 on_meta(inputs), device_of(inputs), offsets)
