"""Backbones: the ConvNet against a forward pass written out, and one contract for everything in the registry."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distill.app.registry import find_methods
from distill.data import facts_named
from distill.errors import InputError
from distill.models import BACKBONES, build


def made(spec: str, channels: int = 3, size: int = 32, classes: int = 10, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return build(spec, channels=channels, image_size=size, num_classes=classes, generator=generator)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_he_is_the_papers_initialisation() -> None:
    network, usual = made("convnet:init=he"), made("convnet")
    for module, other in zip(network.modules(), usual.modules(), strict=True):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            inputs = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / inputs) ** 0.5, rel=0.05)
            assert abs(module.weight.mean().item()) < 0.1 * (2 / inputs) ** 0.5
            assert not module.bias.any()
            assert other.weight.std().item() == pytest.approx((3 * inputs) ** -0.5, rel=0.05)
    again = made("convnet:init=he")
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("spec", "channels", "size", "parameters"),
    [
        # by hand: 3 convolutions with bias, 3 norms, one linear layer from 128 * 4 * 4
        ("convnet", 3, 32, (27 + 1 + 2) * 128 + 2 * (9 * 128 + 1 + 2) * 128 + 2049 * 10),
        ("convnet", 1, 28, (9 + 1 + 2) * 128 + 2 * (9 * 128 + 1 + 2) * 128 + 2049 * 10),
        ("convnet:width=64,depth=2", 1, 8, (9 + 1 + 2) * 64 + (9 * 64 + 1 + 2) * 64 + (64 * 4 + 1) * 10),
        ("convnet:norm=none", 3, 32, (27 + 1) * 128 + 2 * (9 * 128 + 1) * 128 + 2049 * 10),
        ("mlp", 1, 28, 785 * 128 + 129 * 128 + 129 * 10),
        ("lenet", 3, 32, 76 * 6 + 151 * 16 + 401 * 120 + 121 * 84 + 85 * 10),
        ("lenet", 1, 28, 26 * 6 + 151 * 16 + 401 * 120 + 121 * 84 + 85 * 10),
        ("alexcifarnet", 3, 32, 76 * 64 + 1601 * 64 + 4097 * 384 + 385 * 192 + 193 * 10),
    ],
)
def test_sizes_are_the_published_ones(spec: str, channels: int, size: int, parameters: int) -> None:
    assert count(made(spec, channels, size)) == parameters


def test_the_official_classifiers() -> None:
    """Last layers of the official code at its own image sizes."""
    for channels, size in ((3, 32), (1, 28)):
        ends = {
            name: [m for m in made(name, channels, size).modules() if isinstance(m, nn.Linear)][-1]
            for name in BACKBONES
        }
        features = {name: layer.in_features for name, layer in ends.items()}
        assert features == {
            "convnet": 2048,
            "frepo_convnet": 512 * 16,
            "mlp": 128,
            "lenet": 84,
            "alexnet": 192 * 16,
            "alexcifarnet": 192,
            "vgg11": 512,
            "resnet18": 512,
            "resnet18_ap": 512 * (16 if channels == 3 else 9),
        }


def test_all_recipes_have_the_depth_of_the_images_size() -> None:
    """The field's rule: depth 3 at 32 px, 4 at 64, 5 above; students of one table are then of one depth."""
    found = {"cifar10": set(), "tiny_imagenet": set(), "imagenette": set(), "imagenet": set()}
    for name, method in find_methods().items():
        if name.endswith(("sre2l", "cda", "rded")) or name in ("dd", "at_dd", "sldd", "dim"):  # other networks
            continue
        for dataset, depths in found.items():
            for preset in ("paper", "quick"):
                backbone = method.recipes[preset](facts_named(dataset), 10).config.backbone
                depths.add(int(backbone.partition("depth=")[2] or 3))
    assert found == {"cifar10": {3}, "tiny_imagenet": {4}, "imagenette": {5}, "imagenet": {5}}


def test_the_convnet_is_what_its_docstring_says() -> None:
    network = made("convnet:width=6").double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    values = list(network.parameters())
    out = x
    for block in range(3):
        weight, bias, gain, offset = values[4 * block : 4 * block + 4]
        out = F.conv2d(out, weight, bias, padding=1)
        mean, variance = out.mean((2, 3), keepdim=True), out.var((2, 3), keepdim=True, unbiased=False)
        out = (out - mean) / (variance + 1e-5).sqrt() * gain.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1)
        out = out.clamp_min(0)
        out = (out[..., ::2, ::2] + out[..., 1::2, ::2] + out[..., ::2, 1::2] + out[..., 1::2, 1::2]) / 4
    torch.testing.assert_close(network.features(x), out.flatten(1))
    torch.testing.assert_close(network(x), out.flatten(1) @ values[12].T + values[13])
    assert torch.equal(network(x), network.eval()(x))  # no running statistics


def test_alexcifarnet_is_what_its_docstring_says() -> None:
    """Pooling before the first normalisation over channels, after the second; four channels: two before, one after."""
    network = made("alexcifarnet").double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    kernel, offset, *rest = network.parameters()

    def normalized(x: torch.Tensor) -> torch.Tensor:
        squares = F.pad(x.square(), (0, 0, 0, 0, 2, 1))
        return x / (1 + 0.001 / 9 / 4 * sum(squares[:, shift : shift + 64] for shift in range(4))) ** 0.75

    out = normalized(F.max_pool2d(F.conv2d(x, kernel, offset, padding=2).relu(), 3, 2, 1))
    out = F.max_pool2d(normalized(F.conv2d(out, rest[0], rest[1], padding=2).relu()), 3, 2, 1).flatten(1)
    out = F.linear(F.linear(F.linear(out, *rest[2:4]).relu(), *rest[4:6]).relu(), *rest[6:8])
    assert out.shape == (2, 10)
    torch.testing.assert_close(network(x), out)


@pytest.mark.parametrize("norm", ["instance", "batch", "layer", "group", "none"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "leakyrelu", "swish"])
@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
def test_every_convnet_forwards(norm: str, activation: str, pooling: str) -> None:
    network = made(f"convnet:width=8,depth=2,norm={norm},activation={activation},pooling={pooling}", size=8, classes=4)
    assert network(torch.rand(3, 3, 8, 8)).shape == (3, 4)
    kinds = {"instance": nn.GroupNorm, "batch": nn.BatchNorm2d, "layer": nn.LayerNorm, "group": nn.GroupNorm}
    assert sum(isinstance(m, kinds.get(norm, ())) for m in network.modules()) == (0 if norm == "none" else 2)


BATCH_NORM = ["convnet:norm=batch", "alexnet:norm=batch", "vgg11:norm=batch", "resnet18:norm=batch"]
SPECS = [*BACKBONES, *BATCH_NORM, "test_resnet", "timm:test_vit"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.long
def test_contract(spec: str) -> None:
    before = torch.get_rng_state()
    for channels, size in ((1, 28), (3, 32)):
        network, same, other = (
            made(spec, channels, size),
            made(spec, channels, size),
            made(spec, channels, size, seed=1),
        )
        assert all(map(torch.equal, network.state_dict().values(), same.state_dict().values()))
        assert not all(map(torch.equal, network.parameters(), other.parameters()))
        assert all(module.training for module in network.modules())
        assert network(torch.zeros(2, channels, size, size)).shape == (2, 10)
    assert torch.equal(before, torch.get_rng_state())

    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    network.eval()
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        logits = network(x)
    assert logits.shape == (2, 10)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([1, 2])), x, create_graph=True)
    parameters = [p for p in network.parameters() if p.requires_grad]
    second = torch.autograd.grad(gradient.square().sum(), parameters, allow_unused=True)
    found = [g for g in second if g is not None]
    assert all(g.isfinite().all() for g in found)
    assert any(g.abs().max() > 0 for g in found)
    for module in made(spec).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked == 0
            assert (module.running_mean == 0).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 12, 16, 28, 32, 64])
@pytest.mark.parametrize("spec", [*BACKBONES, *BATCH_NORM])
@pytest.mark.long
def test_a_size_is_refused_or_its_logits_tell_images_apart(spec: str, size: int, channels: int) -> None:
    """GroupNorm with a group a channel makes a map of one pixel constant, and the network with it."""
    try:
        network = made(spec, channels, size)
    except InputError as error:
        network, message = None, str(error)
    if network is None:
        assert message.startswith(f"images of {size} px")
        assert "\n" not in message
        assert size < 32
    else:
        logits = network(torch.rand(3, channels, size, size, generator=torch.Generator().manual_seed(0)))
        assert logits.std(0).max() > 1e-4


@pytest.mark.parametrize("name", ["timm:resnet18", "vit_tiny_patch16_224"])
def test_timm_models_get_stems_for_small_images(name: str) -> None:
    network = made(name)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    if "vit" in name:
        assert network.patch_embed.num_patches == 64
    else:
        assert network.conv1.kernel_size == (3, 3)
        assert network.forward_features(torch.rand(1, 3, 32, 32)).shape[-2:] == (4, 4)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("convnex", "unknown backbone 'convnex'; did you mean 'convne.*Known: .*convnet, mlp,.* timm"),
        ("timm:nothing_like_it", "unknown backbone 'nothing_like_it'"),
        ("convnet:witdh=3", "unknown option of backbone convnet 'witdh'; did you mean 'width'"),
        ("convnet:width=big", "width of backbone convnet is 'big'; it takes a whole number"),
        ("convnet:width=0", "width is 0"),
        ("convnet:width=8,width=16", "width of backbone convnet is given twice"),
        ("convnet:norm=batchnorm", "unknown norm of backbone convnet 'batchnorm'; did you mean 'batch'"),
        ("convnet:width=6,norm=group", "must be divisible by 4"),
        ("convnet:depth=6", "halved to nothing by depth 6"),
        ("mlp:width=3", "unknown option of backbone mlp 'width'. Known: none"),
        ("test_resnet:width=3", "unknown option of backbone test_resnet 'width'. Known: stem"),
    ],
)
def test_other_specs_are_refused(spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        made(spec)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("lenet", "images of 8 px are too small for this backbone"),
        ("vgg11:norm=batch", "images of 8 px are too small for this backbone"),
        ("vgg11", "images of 8 px shrink to one pixel"),
        (
            "resnet18",
            "images of 8 px shrink to one pixel, which instance norm makes constant; take convnet.*norm=batch",
        ),
        ("resnet18_ap", "images of 8 px shrink to one pixel"),
        ("test_convnext", "timm's test_convnext takes no images of 8 px"),
    ],
)
def test_impossible_sizes_are_told(spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        made(spec, 1, 8)


@pytest.mark.parametrize(
    ("stem", "stride", "pooled"), [("stride1", 1, False), ("stride2", 2, False), ("imagenet", 2, True)]
)
def test_stems_of_timm_resnets(stem: str, stride: int, pooled: bool) -> None:
    shape = {"channels": 3, "image_size": 64, "num_classes": 10, "generator": torch.Generator()}
    net = build(f"timm:resnet18:stem={stem}", **shape)
    assert net.conv1.stride == (stride, stride)
    assert net.conv1.kernel_size == ((7, 7) if pooled else (3, 3))
    assert isinstance(net.maxpool, torch.nn.MaxPool2d) == pooled
    with pytest.raises(InputError, match="Known: auto, imagenet, stride1, stride2"):
        build("timm:resnet18:stem=tiny", **shape)


@pytest.mark.parametrize("spec", ["timm:resnet18", "timm:resnet18:stem=imagenet", "timm:resnet50", "regnetx_002"])
def test_timm_residual_networks_start_as_torchvision_s(spec: str) -> None:
    """All scales of a fresh network are 1; kernels are He's normal ones by outgoing values, as torchvision has them."""
    network = made(spec, 3, 64)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) >= 20
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)
    if "resnet" in spec:
        for name, kernel in network.named_parameters():
            if name.startswith("layer") and kernel.ndim == 4:
                expected = (2 / (kernel.shape[0] * kernel.shape[2] * kernel.shape[3])) ** 0.5
                assert 0.97 < kernel.std() / expected < 1.03, name
