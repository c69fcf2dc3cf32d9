"""Dynamic nets: gates by hand, one image computed with what its masks leave, and what a run of ManiDP says of them."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from test_learning import Images, net, started
from torch import nn

import reprune
from reprune.errors import UserError
from reprune.methods import manidp
from reprune.models import build, dynamic
from reprune.pipeline import run
from reprune.pruning.probe import evaluate
from reprune.pruning.sockets import Step
from reprune.schema import Record

NETS = {"resnet8": {"_target_": "reprune.models.resnet", "depth": 8},
        "vgg13": {"_target_": "reprune.models.vgg", "depth": 13},
        "resnet18": {"_target_": "reprune.models.narrow_resnet", "depth": 18}}


def gated(name="resnet8", share=0.5):
    """With thresholds that close about that share of all channels."""
    torch.manual_seed(0)
    of = dynamic.gate(build(NETS[name]).train())
    of(torch.randn(8, 3, 32, 32))                                 # statistics of batch norm
    for conv in dynamic.gates(of):
        conv.threshold.copy_(conv.pi.quantile(share))
    return of.eval()


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_one_image_skips_what_its_masks_close_and_says_the_same(name):
    of, x = gated(name), torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    seen = []
    hooks = [conv.register_forward_hook(lambda conv, _, out: seen.append((out.shape[1], conv.out_channels)))
             for conv in dynamic.gates(of)]
    batch = of(x)
    assert all(channels == whole for channels, whole in seen)
    seen.clear()
    alone = torch.cat([of(image.unsqueeze(0)) for image in x])
    assert torch.allclose(alone, batch, atol=1e-4 * float(batch.abs().max()))
    assert sum(channels < whole for channels, whole in seen) > len(seen) / 2
    assert not torch.equal(alone[0], alone[1])
    for hook in hooks:
        hook.remove()
    copy.deepcopy(of)                                             # nothing of the last image stays


def test_a_gate_is_that_of_the_card():
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 96, 3, padding=1),
                         nn.BatchNorm2d(96), nn.ReLU(), nn.Conv2d(96, 8, 1), nn.BatchNorm2d(8))
    conv = dynamic.gate(conv)
    wide, narrow = dynamic.gates(conv)
    assert [m.gate[0].weight.shape for m in (wide, narrow)] == [(48, 4), (8, 96)]          # squeezed from 80 up
    assert all(m.gate[0].bias is None and (m.gate[2].bias == 1).all() for m in (wide, narrow))
    x = Images.x[:3]
    h = F.relu(F.batch_norm(conv[0](x), None, None, conv[1].weight, conv[1].bias, training=True))
    pi = F.relu(F.relu(h.mean((2, 3)) @ wide.gate[0].weight.T) @ wide.gate[2].weight.T + 1).clamp_max(1000)
    wide.threshold.fill_(float(pi.median()))
    mask = torch.where(pi >= pi.median(), pi, 0.0)                # real, not binary
    after = F.relu(F.batch_norm(F.conv2d(h, wide.weight, wide.bias, padding=1), None, None, training=True))
    expected = F.conv2d(after * mask[:, :, None, None], narrow.weight, narrow.bias)
    out = conv(x)
    expected = F.batch_norm(expected, None, None, training=True) * narrow.mask[:, :, None, None]
    assert torch.allclose(out, expected, atol=1e-4)
    assert torch.allclose(wide.features, after.mean((2, 3)), atol=1e-5)       # before masking, after the ReLU


def test_mean_macs_are_counted_image_by_image():
    of, images = gated(share=0.4), torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    total, masks, size = 0, {}, 32
    with torch.no_grad():
        for x in images:
            hooks = [m.register_forward_hook(lambda m, _, out: masks.__setitem__(m, int((m.mask != 0).sum())))
                     for m in dynamic.gates(of)]
            of(x.unsqueeze(0))
            for hook in hooks:
                hook.remove()
            total += 3 * 9 * 16 * size**2 + 64 * 10               # stem and head
            for block, width, side in ((of.layer1[0], 16, 32), (of.layer2[0], 32, 16), (of.layer3[0], 64, 8)):
                total += 9 * side**2 * (block.conv1.in_channels * masks[block.conv1]
                                        + masks[block.conv1] * masks[block.conv2])
                for conv in (block.conv1, block.conv2):           # the gate, hidden as wide as the conv
                    total += conv.in_channels * width + width * width
    assert dynamic.macs_mean(of, [(images, None)]) == pytest.approx(total / 5)
    assert dynamic.macs_mean(of, [(images[:2], None), (images[2:], None)]) == pytest.approx(total / 5)
    dense = reprune.cost(of, images[:1])                          # one image skips; what it costs at most does not
    plain = reprune.cost(build(NETS["resnet8"]), images[:1])
    assert total / 5 < dense.macs > plain.macs and dense.params > plain.params


def test_the_loss_of_manidp_is_that_of_the_card():
    during, of = started(manidp.Manifold(lasso=0.01, graph=0.5, limit=0.5, gates="kaiming"))
    plain, batches = net(), Images().plain(5, 0, None, "cpu")
    assert during.limit == pytest.approx(0.5 * evaluate(plain, batches)[0])       # of the trained net, in eval mode
    x, y = Images.x[:4], Images.y[:4]
    step = Step(of, x, y, of.train()(x))
    during.limit = 2.0
    losses = [-math.log(float(p[c])) for p, c in zip(step.logits.softmax(1), y, strict=True)]
    w = [max(1e-10, (2.0 - loss) / 2.0 if loss < 2.0 else 0.0) for loss in losses]
    lasso, graph = 0.0, 0.0
    for conv in dynamic.gates(of):
        pi, f = conv.pi.tolist(), conv.features.tolist()
        lasso += sum(wi * sum(p) / len(p) for wi, p in zip(w, pi, strict=True)) / 4
        graph += sum((cosine(f[i], f[j]) - cosine(pi[i], pi[j])) ** 2 for i in range(4) for j in range(4)) / 16
    assert float(during.sparse(step)) == pytest.approx(0.01 * lasso, rel=1e-4)
    assert float(during.alike(step)) == pytest.approx(0.5 * graph, rel=1e-3)
    during.sparse(step).backward()
    assert of.linear.weight.grad.abs().sum() > 0                  # through w_i, too
    groups = torch.optim.SGD(during.parameters(of), lr=0.1, weight_decay=5e-4).param_groups
    assert [g["weight_decay"] for g in groups] == [5e-4, 0.0]
    assert len(groups[0]["params"]) == len(list(plain.parameters())) and len(groups[1]["params"]) == 3 * 6


def test_a_net_starts_as_it_was_trained_or_with_gates_as_they_are_drawn():
    plain = net().train()
    with torch.no_grad():
        same, drawn = (started(manidp.Manifold(gates=how))[1].train()(Images.x) for how in ("identity", "kaiming"))
    assert torch.equal(same, plain(Images.x)) and not torch.allclose(drawn, same, atol=0.1)
    with pytest.raises(UserError, match="identity or kaiming, got 'open'"):
        manidp.Manifold(gates="open")


def cosine(a, b):
    return sum(u * v for u, v in zip(a, b, strict=True)) / max(1e-12, math.hypot(*a) * math.hypot(*b))


def test_thresholds_follow_each_epoch_but_the_first(configure, monkeypatch):
    seen, end = [], manidp.Manifold.on_train_epoch_end

    def spy(self, trainer, module):
        sums = copy.deepcopy(self.sums)
        end(self, trainer, module)
        conv = dynamic.gates(module.net)[0]
        seen.append((float(conv.threshold), (sums["0"] / sums["images"]).sort(descending=True).values.tolist(),
                     self.limit, float(0.5 * sums["loss"] / sums["images"])))

    monkeypatch.setattr(manidp.Manifold, "on_train_epoch_end", spy)
    record = run(configure("method=manidp", "recipe.sparse.epochs=3"))
    (first, *_), (second, of_second, *_), (third, of_third, *_) = seen
    assert first == dynamic.OPEN
    assert second == pytest.approx(of_second[math.ceil((0.2 * math.cos(math.pi * 2 / 3) + 0.8) * 16) - 1])
    assert third == pytest.approx(of_third[math.ceil(0.6 * 16) - 1])
    assert all(limit == pytest.approx(half) for *_, limit, half in seen)
    pruned, base = record["pruned"], record["baseline"]
    assert pruned["macs_mean"] < base["macs"] < pruned["macs"] and pruned["params"] > base["params"]
    assert record["epochs"]["recover"] == 0


def test_a_dynamic_net_is_saved_with_its_gates(tmp_path):
    of, x = gated(), torch.randn(3, 3, 32, 32)
    reprune.save(of, tmp_path / "net.safetensors")
    again = reprune.load(tmp_path / "net.safetensors")
    assert torch.equal(again(x), of(x)) and len(dynamic.gates(again)) == 6
    assert reprune.load(tmp_path / "net.safetensors")(x[:1]).shape == (1, 10)


def test_only_a_dynamic_net_has_mean_macs(configure):
    record = run(configure("method=l1"))
    assert "macs_mean" not in record["pruned"]
    assert not dynamic.gates(net()) and "macs_mean" in Record.model_json_schema()["$defs"]["Pruned"]["properties"]


def test_a_net_without_batch_norm_cannot_be_dynamic():
    with pytest.raises(UserError, match=r"^Sequential cannot be dynamic: [^\n]*$"):
        dynamic.gate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)))
