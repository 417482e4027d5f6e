"""torchvision's ResNet-18 and ResNet-50 without their classifier, so that the peer needs PyTorch alone."""

import torch
from torch import nn

_SHAPES = {"resnet18": (False, (2, 2, 2, 2)), "resnet50": (True, (3, 4, 6, 3))}
WIDTHS = {"resnet18": 512, "resnet50": 2048}


def _unit(inside: int, outside: int, size: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inside, outside, size, stride, size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(outside)]


class Block(nn.Module):
    """A residual block; `last` and `shortcut` are what the paper's freezing cuts through."""

    def __init__(self, inside: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        outside = 4 * width if bottleneck else width
        if bottleneck:
            first = [*_unit(inside, width, 1), nn.ReLU(inplace=True), *_unit(width, width, 3, stride)]
            self.last = nn.Sequential(*_unit(width, outside, 1))
        else:
            first = _unit(inside, width, 3, stride)
            self.last = nn.Sequential(*_unit(width, outside, 3))
        self.first = nn.Sequential(*first, nn.ReLU(inplace=True))
        changes = stride != 1 or inside != outside
        self.shortcut = nn.Sequential(*_unit(inside, outside, 1, stride)) if changes else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.last(self.first(x)) + self.shortcut(x))


class ResNet(nn.Module):
    """Images [B, 3, H, W] to features [B, C]."""

    def __init__(self, name: str):
        super().__init__()
        bottleneck, blocks = _SHAPES[name]
        self.stem = nn.Sequential(*_unit(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        inside, layers = 64, []
        for index, count in enumerate(blocks):
            width = 64 * 2**index
            layer = []
            for number in range(count):
                layer.append(Block(inside, width, 2 if index and not number else 1, bottleneck))
                inside = 4 * width if bottleneck else width
            layers.append(nn.Sequential(*layer))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return x.mean((2, 3))
