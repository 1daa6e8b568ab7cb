"""Small networks of every kind, with weights in which no two channels are alike."""

import torch
from torch import nn

from mirepoix.models import NetworkSpec
from mirepoix.types import Outputs


def mlp():
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)]
    return nn.Sequential(*layers), torch.randn(5, 4)


def resnet():
    return NetworkSpec(name="cifar_resnet20", classes=3).build(seed=torch.initial_seed()), torch.randn(
        2, 3, 16, 16
    )


def wide_resnet():
    return NetworkSpec(name="wrn28_1", classes=3).build(seed=torch.initial_seed()), torch.randn(2, 3, 16, 16)


def bottleneck_resnet():
    from timm.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, (1, 1, 1, 1), channels=(4, 6, 6, 8), num_classes=3), torch.randn(2, 3, 32, 32)


def group_norm():
    return NetworkSpec(name="mnist_cnn", classes=3, width=16).build(seed=torch.initial_seed()), torch.randn(
        2, 3, 12, 12
    )


def vgg(batch_norm=True):
    from torchvision.models.vgg import VGG, make_layers

    with torch.device("meta"):  # its own classifier is a gigabyte
        model = VGG(nn.Identity(), num_classes=3, init_weights=False)
    model.features = make_layers([8, "M", 12, 10, "M"], batch_norm=batch_norm)
    model.classifier = nn.Sequential(
        nn.Linear(10 * 49, 16),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(16, 12),
        nn.ReLU(True),
        nn.Linear(12, 3),
    )
    return model, torch.randn(2, 3, 28, 28)


def torchvision_vit():
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 4, 2, 4, 24, 32, num_classes=3), torch.randn(2, 3, 16, 16)


def timm_vit(**options):
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        16, 4, embed_dim=24, depth=2, num_heads=4, mlp_ratio=2, num_classes=3, **options
    )
    return model, torch.randn(2, 3, 16, 16)


def swin():
    from timm.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        16, 2, num_classes=3, embed_dim=8, depths=(2, 1), num_heads=(2, 4), window_size=4, mlp_ratio=2
    )
    return model, torch.randn(1, 3, 16, 16)


def mobile():
    """Depthwise convolutions, and channels that are scaled by themselves (squeeze and excitation)."""
    from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig

    block = InvertedResidual(InvertedResidualConfig(8, 3, 16, 8, True, "HS", 1, 1, 1.0), nn.BatchNorm2d)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), block, *head), torch.randn(2, 3, 12, 12)


def densenet():
    from torchvision.models import DenseNet

    return DenseNet(4, (2, 2), 8, num_classes=3), torch.randn(2, 3, 32, 32)


ALL = {
    build.__name__: build
    for build in (
        mlp, resnet, wide_resnet, bottleneck_resnet, group_norm, vgg, torchvision_vit, timm_vit, swin, mobile,
        densenet,
    )
}  # fmt: skip


def built(name, seed=0, **options):
    """The network in float64 and evaluation mode, every weight and statistic random, and an input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, images = ALL[name](**options)
        model = randomised(model)
    return model, images.double()


def randomised(model):
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
        elif tensor.is_floating_point():
            fan_in = max(1, tensor[0].numel()) if tensor.ndim else 1
            tensor.add_(0.2 * torch.randn(tensor.shape) / fan_in**0.5)
    return model.double().eval()


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def outputs(model, theta, images):
    model.load_state_dict(theta)
    out = model.eval()(images)
    return out.logits if isinstance(out, Outputs) else out


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
