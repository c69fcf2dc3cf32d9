"""Methods that prune or recode single weights, each against its card, taken literally."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from test_masks import look, small, steps

from reprune.errors import UserError
from reprune.methods.crossfilter import CrossFilter, Levels
from reprune.methods.deepcomp import Shared, cluster
from reprune.methods.dns import Surgery
from reprune.methods.huffman import Huffman, canonical, expand, gaps, lengths
from reprune.methods.iht import Thresholding
from reprune.methods.obs import Surgeon, _unfolded, delete, inverse, order
from reprune.pruning.probe import Probe

EXAMPLE = torch.zeros(1, 3, 20, 20)


def literal_threshold(w: list[float], c: float) -> float:
    w = [v for v in w if v != 0]
    n, mu = len(w), sum(map(abs, w)) / len(w)
    return max(mu + c * math.sqrt((sum(v * v for v in w) - n * mu * mu) / n), 0)


def test_surgery_is_its_equations_weight_by_weight():
    """With plain SGD: the gradient with respect to the masked weights moves all of them."""
    net, mask = small(), Surgery(c_rate=0.2, gamma=0.0, stop_conv=7, stop_linear=6)
    with torch.no_grad():
        net.conv1.weight[0, 0, 0] = 0                             # does not count for mu and sigma
    w = {name: p.detach().clone() for name, p in net.named_parameters()}
    t = {layer: literal_threshold(torch.cat([w[f"{layer}.weight"].flatten(), w[f"{layer}.bias"]]).tolist(), 0.2)
         for layer in ("conv1", "conv2", "fc1", "fc2")}
    kept = {name: torch.ones_like(v) for name, v in w.items()}

    def operate() -> None:
        for name, v in w.items():
            limit = t[name.split(".")[0]]
            for i, value in enumerate(v.flatten().tolist()):
                if kept[name].view(-1)[i] and abs(value) <= 0.9 * limit:
                    kept[name].view(-1)[i] = 0
                elif not kept[name].view(-1)[i] and abs(value) > 1.1 * limit:
                    kept[name].view(-1)[i] = 1

    operate()
    mask.start(net, look(net, EXAMPLE))
    optimizer, back = torch.optim.SGD(net.parameters(), lr=2.0), 0
    for step in range(8):
        for name, p in net.named_parameters():
            assert torch.allclose(p, w[name] * kept[name], atol=1e-6), (step, name)
        steps(net, mask, 1, optimizer, step)
        frozen, before = step + 1 >= 7, {name: k.clone() for name, k in kept.items()}
        w = {name: v - 2.0 * p.grad for (name, v), p in zip(w.items(), net.parameters(), strict=True)}
        assert any(p.grad[kept[name] == 0].any() for name, p in net.named_parameters())
        if not frozen:
            fixed = {name: k.clone() for name, k in kept.items() if name.startswith("fc") and step + 1 >= 6}
            operate()
            kept |= fixed
        back += sum(int(((before[name] == 0) & (kept[name] == 1)).sum()) for name in kept)
    assert back                                                   # some weight was spliced in again
    assert all(torch.equal(mask.latent[name].ne(0), w[name].ne(0)) for name in w)


def test_surgery_looks_less_and_less_often_each_layer_on_its_own():
    mask, net, looked = Surgery(gamma=1.0, power=1.0), small(), []
    mask.start(net, look(net, EXAMPLE))
    weights = mask.weights(net)
    for step in range(400):
        mask.masks = {name: torch.full_like(w, name.endswith("bias"), dtype=torch.bool) for name, w in weights.items()}
        mask.latent = {name: torch.full_like(w, math.inf) for name, w in weights.items()}
        mask.update(weights, step, 400)
        looked.append({name.split(".")[0] for name in weights if name.endswith("weight") and mask.masks[name].all()})
    expected = sum(1 / (1 + step) for step in range(400))
    assert looked[0] == {"conv1", "conv2", "fc1", "fc2"}
    assert 0.4 * expected < sum(map(len, looked)) / 4 < 2 * expected
    assert any(0 < len(some) < 4 for some in looked)


def test_a_threshold_far_out_prunes_nearly_everything_at_first():
    net, mask = small(), Surgery(c_rate=3.0)
    with pytest.raises(UserError, match=r"leaves no weight of conv1, .*c_rates=\{conv1: 1\}"):       # uniform: no tails
        mask.start(net, look(net, EXAMPLE))
    mask = Surgery(c_rate=3.0, c_rates={"conv1": 1.0, "conv2": 1.0, "fc2": 1.0})      # layers of a few dozen weights
    for weight in net.parameters():
        weight.data.cauchy_()
    whole = copy.deepcopy(net)
    mask.start(net, look(net, EXAMPLE))
    kept = sum(int(m.sum()) for m in mask.masks.values()) / sum(m.numel() for m in mask.masks.values())
    assert kept < 0.1
    looser = Surgery(c_rate=3.0, c_rates=mask.c_rates | {"fc1": 0.0})
    looser.start(whole, look(whole, EXAMPLE))
    more = {name for name, m in looser.masks.items() if int(m.sum()) > int(mask.masks[name].sum())}
    assert more == {"fc1.weight", "fc1.bias"}
    with pytest.raises(UserError, match="'fc9' is no layer with masks; there are conv1, conv2, fc1, fc2"):
        Surgery(c_rates={"fc9": 1.0}).start(net, look(net, EXAMPLE))


def literal_kmeans(values: list[float], k: int) -> tuple[list[float], list[int]]:
    least, most = min(values), max(values)
    c = [least + (most - least) * i / (k - 1) for i in range(k)]
    for _ in range(100):
        nearest = [min(range(k), key=lambda j: (abs(v - c[j]), j)) for v in values]
        groups = [[v for v, j in zip(values, nearest, strict=True) if j == i] for i in range(k)]
        c = [sum(g) / len(g) if g else c[i] for i, g in enumerate(groups)]
    return c, nearest


def test_clusters_are_those_of_lloyd_from_evenly_spread_centroids():
    values = torch.randn(60, generator=torch.Generator().manual_seed(0))
    centroids, found = cluster(values, 4)
    c, nearest = literal_kmeans(values.tolist(), 4)
    assert centroids.tolist() == pytest.approx(c, abs=1e-5) and found.tolist() == nearest


def test_centroids_move_by_the_sum_of_the_gradients_of_their_weights():
    net, mask = small(), Shared(rate=0.5, conv=2, linear=1, share_from=0.5, centroid_rate=0.3)
    mask.start(net, look(net, EXAMPLE))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    steps(net, mask, 6, optimizer)
    name, weight = "conv2.weight", net.conv2.weight
    c = mask.clusters[name]
    for of, k in (("conv2", 4), ("fc1", 2)):
        assert len(net.get_submodule(of).weight[mask.clusters[f"{of}.weight"] > 0].unique()) == k
    before, after = weight.detach().clone(), {}
    mask.before_step = lambda weights: (after.update({n: w.grad.clone() for n, w in weights.items()}),
                                        Shared.before_step(mask, weights))
    steps(net, mask, 1, optimizer, 6)
    for k in range(1, 5):
        moved = before[c == k][0] - 0.1 * 0.3 * sum(after[name][c == k].tolist())
        assert weight[c == k].tolist() == pytest.approx([float(moved)] * int((c == k).sum()), rel=1e-4)
    assert not weight[c == 0].any() and (c == 0).sum() == weight.numel() // 2


def test_a_share_goes_of_each_layer_or_of_all_or_what_lies_below_a_threshold():
    for prune, rate in (("layer", 0.5), ("global", 0.5), ("std", 1.0)):
        net, mask = small(), Shared(rate=rate, prune=prune)
        before = {name: w.detach().clone() for name, w in mask.weights(net).items()}
        sizes = {name: w.abs() for name, w in before.items()}
        mask.start(net, look(net, EXAMPLE))
        for name, size in sizes.items():
            every = sorted(v for s in (sizes.values() if prune == "global" else [size]) for v in s.flatten().tolist())
            limit = float(before[name].std()) if prune == "std" else every[len(every) // 2]
            assert torch.equal(mask.masks[name], size >= limit), (prune, name)


def test_thresholding_goes_through_its_phases_and_ends_skinny():
    """2 rounds in 10 steps: (I) 0 to 1, (II) 2 to 4, (I) 5 to 10. Against phases written out."""
    net, mask = small(), Thresholding(rate=0.8, rounds=2, skinny=2, dense=3, last=5)
    mask.start(net, look(net, EXAMPLE))
    optimizer, woken = None, 0
    for step in range(10):
        skinny, rate = (step < 2 or step >= 5), (0.7 if step < 5 else 0.8)
        for name, weight in mask.weights(net).items():
            zero = mask.masks[name].logical_not()
            assert int(zero.sum()) == (int(rate * weight.numel() + 1e-9) if skinny else 0), (step, name)
            assert not weight[zero].any()
        if step in (2, 5):
            masks = {name: m.clone() for name, m in mask.masks.items()}
            frozen = {name: w.detach().clone() for name, w in mask.weights(net).items()}
        optimizer = steps(net, mask, 1, optimizer, step, 10)
        if step == 2:                                             # from zero on, without a momentum
            woken = sum(int((w != 0)[frozen[name] == 0].sum()) for name, w in mask.weights(net).items())
            assert woken
            for name, weight in mask.weights(net).items():
                asleep = frozen[name] == 0
                fresh = -0.05 * weight.grad[asleep]
                assert torch.allclose(weight.detach()[asleep], fresh, rtol=1e-4, atol=1e-7)
    assert all(torch.equal(mask.masks[name], masks[name]) for name in masks)         # of step 5


def test_thresholding_keeps_the_largest_and_reaches_its_rate_in_a_single_step():
    for scope in ("layer", "global"):
        net, mask = small(), Thresholding(rate=0.6, scope=scope)
        mask.start(net, look(net, EXAMPLE))
        steps(net, mask, 1, of=1)
        sizes = {name: w.detach().abs().flatten() for name, w in mask.weights(net).items()}
        zero = {name: int((s == 0).sum()) for name, s in sizes.items()}
        whole = sum(len(s) for s in sizes.values())
        if scope == "layer":
            assert all(zero[name] == int(0.6 * len(s) + 1e-9) for name, s in sizes.items())
        assert sum(zero.values()) == pytest.approx(0.6 * whole, abs=4)


def literal_surgeon(w: torch.Tensor, h: torch.Tensor, n: int) -> tuple[torch.Tensor, list]:
    """Weight by weight, over all filters, with H inverted anew each time. w [filters, d]"""
    w, gone = w.clone(), []
    for _ in range(n):
        best = None
        for r in range(len(w)):
            left = [q for q in range(len(h)) if (r, q) not in gone]
            inv = torch.linalg.inv(h[left][:, left])
            for i, q in enumerate(left):
                loss = float(w[r, q] ** 2 / (2 * inv[i, i]))
                if best is None or loss < best[0]:
                    best = loss, r, q, left, i, inv
        _, r, q, left, i, inv = best
        w[r, left] -= w[r, q] / inv[i, i] * inv[:, i]
        w[r, q] = 0
        gone.append((r, q))
    return w, gone


def problem(rows: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(40, d, generator=draw, dtype=torch.double)
    x[:, 1:] += x[:, :1]                                          # inputs that say nearly the same, and some that say
    x *= torch.linspace(0.05, 2, d)                               # little
    return torch.randn(rows, d, generator=draw, dtype=torch.double), 2 * x.T @ x / len(x)


def test_the_surgeon_takes_weight_by_weight_from_a_layer():
    w, h = problem(3, 6)
    expected, gone = literal_surgeon(w, h, 9)
    new, keep = Surgeon(rate=0.5, damp=1e-12).surgery(w, h, 1)
    assert {tuple(at) for at in (~keep).nonzero().tolist()} == set(gone)
    assert torch.allclose(new, expected, atol=1e-6)
    magnitude = w.abs().flatten().argsort()[:9]
    assert {(int(i) // 6, int(i) % 6) for i in magnitude} != set(gone)            # the difference was visible
    turns, losses = order(w, torch.linalg.inv(h))
    for r, turn in enumerate(turns.tolist()):                     # its own order: that of a layer of one filter
        assert turn == [q for _, q in literal_surgeon(w[r:r + 1], h, 6)[1]]
    errors = [float((e := (new - w)[r]) @ h @ e / 2) for r in range(3)]           # L is what the error grows by
    counts = (~keep).sum(1).tolist()
    assert errors == pytest.approx([float(losses[r, :n].sum()) for r, n in enumerate(counts)], rel=1e-6)


def test_a_block_goes_where_the_error_grows_least_and_what_is_left_is_least_squares():
    w, h = problem(2, 8)
    turns, losses = order(w, torch.linalg.inv(h), 2)
    for r in range(2):
        left, now = [0, 1, 2, 3], w[r].clone()
        for q, loss in zip(turns[r].tolist(), losses[r].tolist(), strict=True):
            found = {}
            for block in left:
                stay = [i for b in left if b != block for i in (2 * b, 2 * b + 1)]
                new = torch.zeros_like(now)
                if stay:
                    new[stay] = torch.linalg.solve(h[stay][:, stay], (h @ w[r])[stay])
                found[block] = float((new - w[r]) @ h @ (new - w[r]) / 2 - (now - w[r]) @ h @ (now - w[r]) / 2), new
            best = min(found, key=lambda b: found[b][0])
            assert q == best and loss == pytest.approx(found[best][0], rel=1e-6, abs=1e-9)
            left.remove(best)
            now = found[best][1]


def test_the_inverse_is_built_pattern_by_pattern():
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    assert torch.allclose(inverse(x, 1e-3), torch.linalg.inv(1e-3 * torch.eye(5).double() + x.T @ x / 20))
    w, inv = torch.randn(5).double(), inverse(x, 1e-3)
    for q in (3, 1):
        w, inv = delete(w, inv, q)
    left = [0, 2, 4]
    whole = torch.linalg.inv(1e-3 * torch.eye(5).double() + x.T @ x / 20)
    h = torch.linalg.inv(whole)
    assert torch.allclose(inv[left][:, left], torch.linalg.inv(h[left][:, left])) and not w[[1, 3]].any()


@pytest.mark.parametrize(("layer", "groups"), [
    (torch.nn.Conv2d(4, 6, 3, stride=2, padding=1), 1), (torch.nn.Conv2d(4, 4, 3, groups=2, dilation=2), 2),
    (torch.nn.Linear(5, 3), 1), (torch.nn.Conv2d(4, 4, 3, padding="same", bias=False), 1)])
def test_the_error_of_a_layer_is_that_of_its_outputs(layer, groups):
    """w H w / 2 summed over filters is the mean over N of |X w|^2."""
    layer.requires_grad_(False)
    x = torch.randn(2, 5) if isinstance(layer, torch.nn.Linear) else torch.randn(2, 4, 9, 9)
    parts = _unfolded(layer, x)
    weights = layer.weight.flatten(1).chunk(groups)
    bias = 0 if layer.bias is None else layer.bias.view(-1, *[1] * (x.dim() - 2))
    out = sum(float((part @ w.T).square().sum()) for part, w in zip(parts, weights, strict=True))
    assert out == pytest.approx(float((layer(x) - bias).square().sum()), rel=1e-4)


def xor() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """Solved by two tanh units; a third, the largest, says the same of both classes."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    values = ([2, 2, -2, -2, 3, -2], [-1.5, -1.5, 0.7], [-1.2, -1.2, 2, 1.2, 1.2, 2], [-0.7, 0.7])
    with torch.no_grad():
        for p, v in zip(net.parameters(), values, strict=True):
            p.copy_(torch.tensor(v).view(p.shape))
    x = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]]).view(4, 2, 1, 1)
    return net, x, torch.tensor([1, 0, 0, 1])


def test_a_net_that_solves_xor_outlives_the_surgeon_and_not_the_loss_of_its_smallest_weights():
    for n in (3, 6):                                              # of 17
        net, x, y = xor()
        data = SimpleNamespace(parts=SimpleNamespace(train=range(4)), plain=lambda *_, batch=(x, y): [batch])
        Surgeon(rate=n / 17 + 1e-6, scope="net").start(net, Probe(net, x[:1], data))
        assert sum(int((p == 0).sum()) for p in net.parameters()) == n
        assert net(x).argmax(1).tolist() == y.tolist()
        net, *_ = xor()
        smallest = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
        smallest[smallest.abs().argsort(stable=True)[:n]] = 0
        torch.nn.utils.vector_to_parameters(smallest, net.parameters())
        assert net(x).argmax(1).tolist() != y.tolist()


def test_a_layer_or_a_net_too_large_for_a_matrix_is_named():
    probe = look(small(), EXAMPLE)
    with pytest.raises(UserError, match=r"^method\.masks: obs inverts [^\n]*the net \([\d,]+\); use scope=layer$"):
        Surgeon(scope="net").check(Probe(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1200, 9)), EXAMPLE))
    wide = torch.nn.Sequential(torch.nn.Conv2d(3, 300, 3), torch.nn.Conv2d(300, 4, 3), torch.nn.Flatten())
    with pytest.raises(UserError, match=r": 1 \(2,700\); name such layers in method\.masks\.skip$"):
        Surgeon().check(Probe(wide, EXAMPLE))
    Surgeon().check(probe)


def literal_levels(w: list, bits: int, size: int, over: str) -> torch.Tensor:
    """w [c_out][c_in][k k]"""
    found = [[[0.0] * len(kernel) for kernel in f] for f in w]
    for o, f in enumerate(w):
        for i, kernel in enumerate(f):
            if over == "out_channels":
                group = [v for f2 in w[o // size * size:o // size * size + size] for k2 in f2 for v in k2]
            else:
                group = [v for k2 in f[i // size * size:i // size * size + size] for v in k2]
            alpha = sum(map(abs, group)) / len(group) if bits == 1 else max(map(abs, group))
            n = 2 ** (bits - 1) - 1
            for j, v in enumerate(kernel):
                found[o][i][j] = alpha * (1 if v >= 0 else -1) if bits == 1 else (
                    alpha * round(max(-1, min(1, v / alpha)) * n) / n)
    return torch.tensor(found)


@pytest.mark.parametrize("over", ["out_channels", "in_channels"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_filters_share_a_scale_and_the_file_has_their_levels(bits, over, tmp_path):
    """Five filters of seven channels: neither is a multiple of the group."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 7, 1), torch.nn.Conv2d(7, 5, 3), torch.nn.Conv2d(5, 2, 1))
    with torch.no_grad():
        net[1].weight[0, 0, 0, 0] = 0                             # sign(0) = 1
    mask, w = CrossFilter(bits, 3, over), net[1].weight.detach().clone()
    mask.start(net, None)
    expected = literal_levels(w.flatten(2).tolist(), bits, 3, over)
    assert torch.allclose(net[1].weight.flatten(2), expected, atol=1e-6)
    assert mask.weights(net).keys() == {"1.weight"}               # the ends stay as they are
    codec, packed = Levels(bits, 3, over), Levels(bits, 3, over).pack(net[1].weight.detach())
    assert len(packed["levels"]) == -(-w.numel() * bits // 8) and not len(packed["raw"])
    assert len(packed["scales"]) == (2 if over == "out_channels" else 5 * 3)
    assert torch.equal(codec.unpack(packed, w.shape), net[1].weight.detach())
    assert torch.equal(codec.unpack(codec.pack(w), w.shape), w) and len(codec.pack(w)["raw"])      # no levels


def test_gradients_go_straight_through_where_a_weight_is_not_above_one():
    net, mask = small(), CrossFilter(group_size=2)
    with torch.no_grad():
        net.conv2.weight[0, 0, 0, 0], net.conv2.weight[0, 0, 0, 1] = 1.5, 1.0
    before = net.conv2.weight.detach().clone()
    mask.start(net, look(net, EXAMPLE))
    assert len(net.conv2.weight[:2].abs().unique()) == 1          # what the net computes with
    steps(net, mask, 1, torch.optim.SGD(net.parameters(), lr=0.1))
    moved = before - 0.1 * net.conv2.weight.grad
    assert torch.allclose(mask.latent["conv2.weight"], moved) and net.conv2.weight.grad[0, 0, 0, 0] == 0
    assert net.conv2.weight.grad.count_nonzero() > 0.9 * before.numel()


def test_a_net_without_a_conv_to_quantise_is_told():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 18 * 18, 2))
    with pytest.raises(UserError, match=r"^method\.masks: crossfilter finds no conv beside the first [^\n]*$"):
        CrossFilter().check(Probe(net, EXAMPLE))


def test_gaps_are_cut_by_fillers_where_they_are_too_long_for_their_bits():
    places, width = [3, 4, 70, 71, 200], 5
    found, real, before = [], [], -1
    for place in places:                                          # as the paper says it, entry by entry
        while place - before - 1 > 2**width - 1:
            found, real, before = [*found, 2**width - 1], [*real, False], before + 2**width
        found, real, before = [*found, place - before - 1], [*real, True], place
    assert [each.tolist() for each in gaps(torch.tensor(places).numpy(), width)] == [found, real]
    assert max(found) == 2**width - 1 and real.count(False) > 4


def test_no_prefix_code_is_shorter():
    """Of all codes that Kraft's inequality allows, for few symbols tried one by one."""
    from itertools import product

    symbols = [0] * 9 + [1] * 5 + [2] * 2 + [4]
    bits = lengths(symbols, 5)
    words = [f"{word:0{n}b}" for n, word in canonical(bits).values()]
    assert not any(a != b and b.startswith(a) for a in words for b in words) and bits[3] == 0
    counts = [9, 5, 2, 1, 1]                                      # and the end, once
    best = min(sum(n * b for n, b in zip(counts, each, strict=True)) for each in product(range(1, 6), repeat=5)
               if sum(2.0**-b for b in each) <= 1)
    assert sum(counts[i] * bits[s] for i, s in enumerate((0, 1, 2, 4, 5))) == best


def test_a_file_holds_a_prefix_code_as_documented():
    """Read here by nothing but what the docstring says."""
    weight = torch.tensor([[0.0, 0.5, 0.0, 0.0, -1.0, 0.5, 0.0, 0.5]])
    parts = Huffman(linear=2).pack(weight)
    bits = "".join(f"{byte:08b}" for byte in parts["indices"].tolist())
    words, word, before = {}, 0, 0
    for n, symbol in sorted((n, s) for s, n in enumerate(parts["index_bits"].tolist()) if n):
        word = (word + 1) << (n - before) if words else 0
        words[f"{word:0{n}b}"], before = symbol, n
    read, code = [], ""
    for bit in bits:
        code += bit
        if code in words:
            read, code = [*read, words[code]], ""
    assert read[:4] == [2, 1, 2, 2] and parts["codebook"].tolist() == [-1.0, 0.5]
    assert expand(parts["gap_bits"], parts["gaps"]) == [1, 2, 0, 1]


@pytest.mark.parametrize(("method", "option"), [
    ("dns", "power=-1"), ("dns", "stop_conv=-1"), ("deepcomp", "rate=1.5"), ("deepcomp", "prune=some"),
    ("deepcomp", "conv=0"), ("deepcomp", "centroid_rate=-1"), ("iht", "rounds=0"),
    ("iht", "rate=1"), ("iht", "scope=x"), ("obs", "damp=0"), ("obs", "scope=all"), ("crossfilter", "bits=9"),
    ("crossfilter", "share_over=x")])
def test_a_bad_option_is_told_in_one_line(method, option, configure):
    with pytest.raises(InstantiationException, match=r"UserError\(.[^\n]*method\.masks[^\n]*\)"):
        instantiate(configure(f"method={method}", f"method.masks.{option}").method)


def test_density_bits_and_bytes_are_in_the_record_where_they_mean_something(configure):
    from reprune.pipeline import run

    coded = run(configure("method=deepcomp", "method.masks.rate=0.75"))["pruned"]
    assert 20 < coded["density"] < 35 and coded["bytes"] * 8 == pytest.approx(coded["bits"] * coded["params"], rel=1e-3)
    assert coded["bytes"] < coded["bytes_dense"] / 4
    masked = run(configure("method=dns", "method.masks.c_rate=0"))["pruned"]
    assert masked["density"] < 100 and not {"bits", "bytes", "bytes_dense"} & masked.keys()
    assert not {"density", "bits", "bytes"} & run(configure("method=baseline"))["pruned"].keys()
