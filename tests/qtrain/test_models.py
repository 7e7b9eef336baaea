from __future__ import annotations

import pytest
import torch
from torch import nn

from qtrain import models


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)],
)
def test_imagenet_resnets_have_the_published_parameter_count(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = models.get(name, num_classes=1000, in_channels=3, image_size=224)
    assert count(model) == parameters


def derived_cifar_count(n: int, width: int, classes: int) -> int:
    """3x3 convolutions, two numbers a channel for each batch-norm, the classifier; no shortcut."""
    w1, w2, w3 = width, 2 * width, 4 * width
    convs = 9 * (3 * w1 + 2 * n * w1 * w1)
    convs += 9 * (w1 * w2 + (2 * n - 1) * w2 * w2) + 9 * (w2 * w3 + (2 * n - 1) * w3 * w3)
    norms = 2 * (w1 + 2 * n * (w1 + w2 + w3))
    return convs + norms + w3 * classes + classes


@pytest.mark.parametrize(
    ("name", "n", "parameters"), [("resnet20", 3, 269_722), ("resnet56", 9, 853_018)]
)
def test_cifar_resnets_have_the_derived_parameter_count(name: str, n: int, parameters: int) -> None:
    model = models.get(name, num_classes=10, in_channels=3, image_size=32)
    assert count(model) == derived_cifar_count(n, 16, 10) == parameters


@pytest.mark.parametrize("name", models.names("images"))
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (32, 3), (65, 3)])
def test_every_model_maps_images_to_logits(name: str, size: int, channels: int) -> None:
    model = models.get(name, num_classes=7, in_channels=channels, image_size=size)
    x = torch.zeros(2, channels, size, size)
    with torch.no_grad():
        assert model.train()(x).shape == (2, 7)
        assert model.eval()(x[:1]).shape == (1, 7)


@pytest.mark.parametrize("name", models.names("images"))
def test_every_relu_is_used_once_a_forward(name: str) -> None:
    model = models.get(name, num_classes=3, in_channels=1, image_size=8)
    calls: list[nn.Module] = []
    relus = [m for m in model.modules() if isinstance(m, nn.ReLU)]
    for relu in relus:
        relu.register_forward_hook(lambda module, *_: calls.append(module))
    model(torch.zeros(2, 1, 8, 8))
    assert len(calls) == len(relus) == len({id(m) for m in calls})


def test_the_stem_follows_the_image_size() -> None:
    with torch.device("meta"):
        for size, kernel in [(64, (3, 3)), (65, (7, 7))]:
            model = models.get("resnet18", num_classes=2, in_channels=3, image_size=size)
            assert isinstance(model, models.ResNet)
            assert model.conv1.kernel_size == kernel
            assert isinstance(model.maxpool, nn.MaxPool2d) == (size > 64)


def test_names_are_those_of_torchvision_checkpoints() -> None:
    with torch.device("meta"):
        names = set(models.resnet50().state_dict())
    expected = {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer4.2.bn3.bias"}
    expected |= {"layer1.0.downsample.0.weight", "layer2.0.downsample.1.num_batches_tracked"}
    assert expected | {"fc.weight", "fc.bias"} <= names
    assert len(names) == 320  # torchvision's resnet50 has 320 entries
    assert not {n.split(".")[0] for n in names} - {
        "conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"
    }  # fmt: skip


def test_initialisation_is_kaiming_fan_out_and_unit_norms() -> None:
    torch.manual_seed(0)
    model = models.resnet18(stem="cifar", num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            k, _ = module.kernel_size
            expected = (2 / (module.out_channels * k * k)) ** 0.5
            n = module.weight.numel()
            # 5 sigma of a standard deviation estimated from n normal samples
            assert abs(module.weight.std() / expected - 1) < 5 / (2 * n) ** 0.5
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())


def test_zero_init_residual_makes_every_block_pass_its_input_on() -> None:
    model = models.resnet50(stem="cifar", width=8, num_classes=2, zero_init_residual=True)
    block = model.get_submodule("layer1.1")
    x = torch.rand(2, 32, 4, 4)
    assert torch.equal(block(x), x)


RESIDUAL = ("resnet18", "resnet34", "resnet50", "resnet20", "resnet56")


@pytest.mark.parametrize("name", RESIDUAL)
def test_zero_init_residual_changes_the_last_scales_alone(name: str) -> None:
    found = []
    for options in ({}, {"zero_init_residual": True}):
        torch.manual_seed(0)
        net = models.get(name, num_classes=3, in_channels=1, image_size=8, **options)
        found.append(net.state_dict())
    plain, zero = found
    last = "bn3.weight" if name == "resnet50" else "bn2.weight"
    ends = {key for key in plain if key.endswith(last)}
    assert len(ends) == {"20": 9, "56": 27, "18": 8, "34": 16, "50": 16}[name[6:]]
    for key in plain:
        same = torch.equal(plain[key], zero[key])
        assert same is (key not in ends) and (same or not zero[key].any())


def test_zero_init_residual_where_there_is_none() -> None:
    for name in set(models.names()) - {*RESIDUAL}:
        sizes = {"in_channels": 1, "image_size": 8} if name in models.names("images") else {}
        with pytest.raises(ValueError, match=f"zero_init_residual: got True for '{name}'"):
            models.get(name, num_classes=3, zero_init_residual=True, **sizes)  # type: ignore[arg-type]
    for make in (models.resnet20, models.resnet18):
        with pytest.raises(TypeError, match="zero_init_residual: got 1, need True or False"):
            make(zero_init_residual=1)  # type: ignore[arg-type]


def test_the_padding_shortcut_keeps_values_and_adds_zeros() -> None:
    shortcut = models.resnet20().get_submodule("layer2.0.downsample")
    x = torch.randn(2, 16, 5, 4)
    y = shortcut(x)
    assert y.shape == (2, 32, 3, 2)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2]) and not y[:, 16:].any()


def test_width_scales_the_channels() -> None:
    model = models.resnet18(width=16, stem="cifar", num_classes=10)
    assert model.fc.in_features == 128


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'resnet-18'.*did you mean 'resnet18'"):
        models.get("resnet-18", num_classes=10, in_channels=3, image_size=32)


@pytest.mark.parametrize("bad", [0, -1, True, 2.5], ids=repr)
def test_bad_sizes_are_refused(bad: int) -> None:
    good = {"num_classes": 10, "in_channels": 3, "image_size": 32}
    for name in ["mlp", "resnet20", "resnet18", "vgg11"]:
        for what in good:
            with pytest.raises((ValueError, TypeError), match="need an integer of at least 1"):
                models.get(name, **{**good, what: bad})
    with pytest.raises(ValueError, match="stem: got 'big'"):
        models.resnet18(stem="big")  # type: ignore[arg-type]
