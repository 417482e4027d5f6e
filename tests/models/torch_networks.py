"""PyTorch networks with published parameter names: torchvision's ResNet, open-reid's head, DINOv2's transformer."""

# pyright: reportMissingImports=false
import torch
from torch import nn
from torch.nn import functional

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


class Block(nn.Module):
    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        out = width * 4 if bottleneck else width
        kernels = [1, 3, 1] if bottleneck else [3, 3]
        widths = [inputs, *[width] * (len(kernels) - 1), out]
        self.count = len(kernels)
        for index, kernel in enumerate(kernels):
            step = stride if index == (1 if bottleneck else 0) else 1
            convolution = nn.Conv2d(widths[index], widths[index + 1], kernel, step, kernel // 2, bias=False)
            setattr(self, f"conv{index + 1}", convolution)
            setattr(self, f"bn{index + 1}", nn.BatchNorm2d(widths[index + 1]))
        self.downsample = None
        if inputs != out or stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = x
        for index in range(1, self.count + 1):
            y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y))
            y = torch.relu(y) if index < self.count else y
        return torch.relu(y + (self.downsample(x) if self.downsample is not None else x))


class ResNet(nn.Module):
    def __init__(self, name, last_stride=2, classes=10):
        super().__init__()
        bottleneck = name in ("resnet50", "resnet101")
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for stage, count in enumerate(BLOCKS[name]):
            width, blocks = 64 * 2**stage, []
            for index in range(count):
                stride = (1, 2, 2, last_stride)[stage] if index == 0 else 1
                blocks.append(Block(inputs, width, stride, bottleneck))
                inputs = width * 4 if bottleneck else width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def stages(self, x):
        """The stem's map and that of every stage."""
        maps = [functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)]
        for stage in range(1, 5):
            maps.append(getattr(self, f"layer{stage}")(maps[-1]))
        return maps


class OpenReid(nn.Module):
    """The network of the paper's code."""

    def __init__(self, name, features, classes):
        super().__init__()
        self.base = ResNet(name)
        self.feat = nn.Linear(self.base.fc.in_features, features)
        self.feat_bn = nn.BatchNorm1d(features)
        self.classifier = nn.Linear(features, classes)

    def forward(self, x):
        return torch.relu(self.feat_bn(self.feat(self.base.stages(x)[-1].mean((2, 3)))))


class LayerScale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width))

    def forward(self, x):
        return x * self.gamma


class ViTBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) / (width // self.heads) ** 0.5).softmax(-1)
        x = x + self.ls1(self.attn["proj"]((weights @ value).transpose(1, 2).reshape(batch, tokens, width)))
        return x + self.ls2(self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x)))))


class ViT(nn.Module):
    """DINOv2's forward pass; `side` is that of the square of patches its positions were learned on."""

    def __init__(self, depth, width, heads, patch, side):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, side * side + 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.blocks = nn.ModuleList([ViTBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.side = side

    def positions(self, rows, columns):
        patches = self.pos_embed[:, 1:].reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / self.side, (columns + 0.1) / self.side)
        patches = functional.interpolate(patches, scale_factor=scale, mode="bicubic")
        assert patches.shape[2:] == (rows, columns)
        return torch.cat([self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], 1)

    def forward(self, x):
        x = self.patch_embed["proj"](x)
        grid = x.shape[2:]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = x + self.positions(*grid)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
