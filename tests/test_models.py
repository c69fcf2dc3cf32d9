"""Our nets against published counts; every conf/model option; bad names and numbers. Checkpoints: test_weights.py."""

import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from reprune import models
from reprune.errors import UserError

CONF = Path(__file__).parents[1] / "conf" / "model"


def params(net):
    return sum(p.numel() for p in net.parameters())


def macs(net, size=32, channels=3):
    """Multiply-adds of one sample in conv and linear layers, counted by hooks. The net may live on the meta device."""
    total = 0

    def count(module, _, out):
        nonlocal total
        total += out[0].numel() * module.weight[0].numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    net.eval()(torch.zeros(1, channels, size, size, device=next(net.parameters()).device))
    return total


def from_conf(path, **dataset):
    """The plain resolved node `build` gets from Hydra."""
    config = OmegaConf.create({"dataset": {"classes": 10, "channels": 3, **dataset}, "model": OmegaConf.load(path)})
    return OmegaConf.to_container(config, resolve=True)["model"]


# ---------------------------------------------------------------- counts

@pytest.mark.parametrize(("name", "published_params", "published_macs"), [
    ("resnet20", 269_722, 40_551_040),          # published as 40.55 M
    ("resnet20b", 272_474, 40_813_184),         # 272,474 in IntelLabs/distiller's trained one
    ("resnet32", 464_154, 68_862_592),
    ("resnet44", 658_586, 97_174_144),
    ("resnet56", 853_018, 125_485_696),         # 125.49 M
    ("resnet110", 1_727_962, 252_887_680),      # 1.73 M, 252.89 M
    ("resnet164", 1_703_258, 247_646_720),      # 1.71 M with 8,080 channel indices in Eric-mingjie/network-slimming
    ("densenet40", 1_059_298, 282_917_328),     # 1.07 M with 9,360 indices there; 282 M in Chen et al. 2020
    ("googlenet", 6_166_250, 1_521_756_160),    # 6.17 M in JingfeiChang/UCP; 1520 M in HRankPlus
    ("mobilenet_v1", 3_217_226, 46_354_432),    # of kuangliu/pytorch-cifar's layers; Lubana et al. 2020 print none
    ("mobilenet_v2", 2_236_682, 87_976_448),    # 2.24 M, 87.98 M in chenyaofo/pytorch-cifar-models
    ("vgg13", 9_416_010, 228_267_008),          # 228.79 M with two more layers of 512 in chenyaofo's; none in OrthoReg
    ("vgg16", 14_724_042, 313_201_664),         # 313.20 M
    ("vgg19", 20_035_018, 398_136_320),         # 20.04 M in Liu et al. 2017
    ("resnet18", 11_173_962, 555_422_720),      # 11.17 M, 0.56 G in kuangliu/pytorch-cifar
    ("resnet34", 21_282_122, 1_159_402_496),    # 21.28 M, 1.16 G
])
def test_params_and_macs_are_the_published_ones(name, published_params, published_macs):
    with torch.device("meta"):
        net = models.build(from_conf(CONF / f"{name}.yaml"))
    assert params(net) == published_params
    assert macs(net) == published_macs


@pytest.mark.parametrize(("make", "arch", "authors_params"), [
    (models.narrow_alexnet, "alexnet", 63_674),
    (lambda: models.narrow_resnet(18), "resnet18", 177_362), (lambda: models.narrow_resnet(34), "resnet34", 336_114),
    (lambda: models.narrow_resnet(50), "resnet50", None),
    (models.narrow_vgg, "vgg11", 611_434), (lambda: models.narrow_vgg(batch_norm=True), "vgg11_bn", 612_810),
], ids=["alexnet", "resnet18", "resnet34", "resnet50", "vgg11", "vgg11_bn"])
def test_narrow_nets_have_the_authors_counts_and_torchvisions_layers(make, arch, authors_params):
    net = make()
    with torch.device("meta"):
        wide = models.torchvision(arch, classes=10)
    assert authors_params in (None, params(net))
    assert list(net.state_dict()) == list(wide.state_dict())
    kinds = [[type(m) for m in n.modules() if not list(m.children())] for n in (net, wide)]
    assert kinds[0] == kinds[1]
    for size in (32, 64):
        assert net(torch.randn(2, 3, size, size)).shape == (2, 10)


def test_the_convs_of_the_narrow_alexnet():
    convs = [m for m in models.narrow_alexnet().modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [8, 16, 32, 16, 16]
    assert sum(m.weight.numel() for m in convs) == 12_888


def test_widths_of_the_narrow_resnets():
    for depth, expansion in ((18, 1), (50, 4)):
        net = models.narrow_resnet(depth)
        stages = [net.layer1, net.layer2, net.layer3, net.layer4]
        assert [stage[0].conv1.out_channels for stage in stages] == [8, 16, 32, 64]
        assert (net.conv1.out_channels, net.conv1.stride, net.fc.in_features) == (8, (2, 2), 64 * expansion)


@pytest.mark.parametrize(("arch", "size", "published_params"), [
    ("resnet18", 224, 11_689_512), ("alexnet", 224, 61_100_840), ("mobilenet_v2", 224, 3_504_872),
    ("densenet121", 224, 7_978_856),
    ("googlenet", 224, 6_624_904), ("inception_v3", 299, 23_834_568),   # both without auxiliary heads
])
def test_torchvision_nets(arch, size, published_params):
    with torch.device("meta"):
        net = models.torchvision(arch)
        assert params(net) == published_params
        x = torch.zeros(2, 3, size, size)
        assert net.train()(x).shape == (2, 1000)            # plain logits while training too
        gray = models.torchvision(arch, classes=7, in_channels=1)
        assert gray(x[:, :1]).shape == (2, 7)


def test_a_wider_mobilenet_has_the_parameters_of_its_paper():
    wide = models.torchvision("mobilenet_v2", width_mult=1.4)                  # Sandler et al. 2018, table 4
    assert round(sum(p.numel() for p in wide.parameters()) / 1e6, 1) == 6.1
    for arch, width in (("resnet18", 2), ("mobilenet_v2", 0), ("mobilenet_v2", "wide")):
        with pytest.raises(UserError, match=f"model.width_mult={width} of {arch}: MobileNetV2"):
            models.torchvision(arch, width_mult=width)


def test_nets_of_timm():
    pytest.importorskip("timm", reason="pip install 'reprune[zoo]'")
    net = models.timm("lcnet_035", classes=7, in_channels=1)
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(UserError, match="timm has no classification model 'lcnet_037'; did you mean .*lcnet_035"):
        models.timm("lcnet_037")
    with pytest.raises(UserError, match="model.arch=lcnet_050.mine: timm says: "):
        models.timm("lcnet_050.mine")


def test_a_net_of_timm_where_there_is_no_timm_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"model=timm: timm is not installed; pip install 'reprune\[zoo\]'"):
        models.build({"_target_": "reprune.models.timm", "name": "timm", "arch": "resnet50", "weights": "pretrained"})


def test_hook_count_agrees_with_torch():
    net = models.resnet(20).eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == 2 * macs(net)


def test_vgg_with_the_hidden_layer_of_li2017():
    with torch.device("meta"):
        net, plain = models.vgg(16, hidden=512), models.vgg(16)
        assert params(net) - params(plain) == 512 * 512 + 512 + 2 * 512      # linear and BN
        assert macs(net) - macs(plain) == 512 * 512


# ---------------------------------------------------------------- behaviour

@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_option_builds_under_its_name_and_follows_the_dataset(path):
    if path.stem == "timm":
        pytest.importorskip("timm", reason="pip install 'reprune[zoo]'")
    config = from_conf(path, classes=7, channels=1)
    assert config["name"] == path.stem
    with torch.device("meta"):
        net = models.build(config)
        assert net(torch.zeros(2, 1, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("make", [
    lambda: models.resnet(8), lambda: models.vgg(16), lambda: models.vgg(16, hidden=32),
    lambda: models.resnet_cifar_stem(18), lambda: models.torchvision("googlenet", 10),
    models.narrow_alexnet, models.narrow_vgg, lambda: models.narrow_resnet(18),
    lambda: models.resnet_b(8), lambda: models.preresnet(20), lambda: models.densenet(10), models.googlenet,
    models.mobilenet_v1, models.mobilenet_v2, lambda: models.vgg(13, bn_last=True),
    lambda: models.lenet5(in_channels=3), lambda: models.lenet300(in_channels=3),
    lambda: models.mlp(4, in_channels=3),
], ids=["resnet", "vgg", "vgg-hidden", "stem", "googlenet", "narrow-alexnet", "narrow-vgg", "narrow-resnet",
        "resnet-b", "preresnet", "densenet", "cifar-googlenet", "mobilenet-v1", "mobilenet-v2", "vgg-bn-last",
        "lenet5", "lenet300", "mlp"])
def test_nets_are_traceable(make):
    net, x = make().eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(net)(x), net(x))


def test_option_a_shortcut_subsamples_and_pads_with_zeros():
    block = models.resnet(8).layer2[0].eval()
    nn.init.zeros_(block.bn2.weight)                        # only the shortcut is left
    x = torch.rand(2, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].count_nonzero() == out[:, 24:].count_nonzero() == 0


def test_initial_convs_keep_the_variance_of_what_they_read():
    weight = models.vgg(16).features[-3].weight             # [512, 512, 3, 3]
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_the_global_seed_decides_the_initial_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return models.build({"_target_": "reprune.models.resnet", "depth": 8}).conv1.weight

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


# ---------------------------------------------------------------- bad names and numbers

@pytest.mark.parametrize("target", [None, "os.system", "torch.hub.load", "reprune.models.build", "resnet", ["x"]])
def test_only_our_builders_are_called(target):
    with pytest.raises(UserError, match="not a model builder.*reprune.models.resnet,"):
        models.build({"_target_": target})


def test_a_dotted_path_is_never_imported(tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError):
        models.build({"_target_": "stranger.net"})


@pytest.mark.parametrize(("options", "message"), [
    ({"_target_": "reprune.models.resnet", "dpth": 20}, "no option dpth; it takes: depth, classes, in_channels"),
    ({"_target_": "reprune.models.resnet"}, "needs the option depth"),
    ({"_target_": "reprune.models.resnet", "depth": 21}, "no depth 21; allowed are 8, 20, 32, 44, 56, 110"),
    ({"_target_": "reprune.models.resnet", "depth": "20"}, "no depth '20'"),
    ({"_target_": "reprune.models.resnet", "depth": 20, "classes": 0}, "model.classes=0"),
    ({"_target_": "reprune.models.vgg", "depth": 11}, "allowed are 13, 16, 19"),
    ({"_target_": "reprune.models.vgg", "depth": 13, "bn_last": 1}, "model.bn_last=1 must be true or false"),
    ({"_target_": "reprune.models.preresnet", "depth": 20.5}, "allowed are 20, 29, 56, 83, 110, 164"),
    ({"_target_": "reprune.models.densenet", "depth": 41}, r"model.depth=41 of a CIFAR DenseNet must be 3 n \+ 4"),
    ({"_target_": "reprune.models.densenet", "growth": 0}, "model.growth=0"),
    ({"_target_": "reprune.models.mobilenet_v2", "classes": -1}, "model.classes=-1"),
    ({"_target_": "reprune.models.vgg", "depth": 16, "hidden": -1}, "model.hidden=-1"),
    ({"_target_": "reprune.models.resnet_cifar_stem", "depth": 50}, "allowed are 18, 34"),
    ({"_target_": "reprune.models.mlp", "hidden": 0}, "model.hidden=0"),
    ({"_target_": "reprune.models.narrow_alexnet", "in_channels": 0}, "model.in_channels=0"),
    ({"_target_": "reprune.models.narrow_resnet", "depth": 20}, "allowed are 18, 34, 50"),
    ({"_target_": "reprune.models.narrow_vgg", "batch_norm": "yes"}, "model.batch_norm='yes' must be true or false"),
    ({"_target_": "reprune.models.narrow_vgg", "classes": 1.5}, "model.classes=1.5"),
    ({"_target_": "reprune.models.torchvision", "arch": "resnet19"}, "'resnet19'; did you mean resnet18"),
    ({"_target_": "reprune.models.torchvision", "arch": "zzzz"}, "there are: alexnet, .*wide_resnet50_2"),
    ({"_target_": "reprune.models.torchvision", "arch": "maskrcnn_resnet50_fpn"}, "no classification model"),
])
def test_bad_options_are_one_line_that_says_what_is_allowed(options, message):
    with pytest.raises(UserError, match=message) as error:
        models.build(options)
    assert "\n" not in str(error.value)


def test_a_net_that_does_not_fit_the_dataset_is_one_line():
    """What a run asks before anything trains."""
    net = models.resnet(8, classes=5).train()
    models.check_task(net, torch.zeros(1, 3, 32, 32), 5)
    assert all(m.training for m in net.modules())
    for example, classes, words in ((torch.zeros(1, 3, 32, 32), 10, "model.classes=5, but the dataset has 10 classes"),
                                    (torch.zeros(1, 1, 32, 32), 5, "does not take the 1 x 32 x 32 images of the")):
        with pytest.raises(UserError, match=words) as error:
            models.check_task(net, example, classes)
        assert "\n" not in str(error.value)


def test_a_builder_that_takes_any_option_needs_none_by_that_name():
    def plain(width=2, *layers, **more):
        return nn.Linear(width, more["out"])

    assert models.build({"_target_": "mine", "out": 3}, plain).out_features == 3
