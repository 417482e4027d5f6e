"""The peer: the same steps in PyTorch, tuned as its users would; knows nothing of this project.

torchvision's ResNet with the paper's neck (Linear 128, BatchNorm, ReLU, Dropout, Linear) and SGD (Nesterov momentum
0.9, weight decay 5e-4, foreach), in one of the VARIANTS of `cases.py`; embeddings are compiled with frozen weights.
bfloat16 is autocast. Speaks as `server.py` says; a variant that fails says {"error": ...}.
"""

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

import torch
from cases import VARIANTS
from server import arguments, resident_peak, serve
from torch import nn
from torch.nn import functional
from torch_resnet import WIDTHS, ResNet


class Network(nn.Module):
    """Backbone, neck and classifier."""

    def __init__(self, name: str, people: int):
        super().__init__()
        self.backbone = ResNet(name)
        self.neck = nn.Sequential(nn.Linear(WIDTHS[name], 128), nn.BatchNorm1d(128), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(128, people)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, 128]."""
        return self.neck(self.backbone(images))


def freeze(network: Network, name: str) -> None:
    """The paper's frozen layers: from the middle of layer3 on (ResNet-50), from layer3 on (ResNet-18), and the head."""
    third, fourth = network.backbone.layers[2], network.backbone.layers[3]
    upper: list[nn.Module] = [fourth, network.neck, network.classifier]
    upper += [*third[1:], third[0].last, third[0].shortcut] if name == "resnet50" else [third]
    for module in upper:
        module.requires_grad_(False)


class Variant:
    """One way to run a case.

    Args:
        options: the command line.
        device: where.
    """

    def __init__(self, options: argparse.Namespace, device: torch.device):
        case: dict[str, Any] = options.case
        torch.manual_seed(0)
        memory = torch.channels_last if "channels_last" in options.variant else torch.contiguous_format
        self._device, self._half = device, options.dtype == "bfloat16"
        network = Network(case["network"], options.people).to(device).to(memory_format=memory)
        size = (options.batch, 3, case["height"], case["width"])
        self._images, self._other = (torch.randn(size, device=device).to(memory_format=memory) for _ in range(2))
        self._identity = torch.randint(options.people, (options.batch,), device=device)
        self._target = torch.randn(options.batch, 128, device=device)
        self._network, self._kind, self._teacher = network, case["kind"], None
        if self._kind == "student":
            freeze(network, case["network"])
            if case["target"] == "online":
                self._teacher = Network(case["network"], options.people).to(device).to(memory_format=memory).eval()
        if self._kind == "embed":
            network.eval()
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.trainable = sum(weight.numel() for weight in weights)
        self._optimizer = torch.optim.SGD(weights, 1e-4, 0.9, weight_decay=5e-4, nesterov=True, foreach=True)
        work: Callable[..., torch.Tensor] = self._embed if self._kind == "embed" else self._loss
        self._work = torch.compile(work) if "compiled" in options.variant else work

    def _embed(self) -> torch.Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            return self._network(self._images)

    def _loss(self) -> torch.Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            dropped = self._network.dropout(self._network(self._images))
            if self._kind == "teacher":
                return functional.cross_entropy(self._network.classifier(dropped), self._identity)
            target = self._target
            if self._teacher is not None:
                with torch.no_grad():
                    target = self._teacher(self._other)
            return ((dropped - target) ** 2).sum()

    def step(self) -> torch.Tensor:
        """One step; its loss, or embeddings."""
        if self._kind == "embed":
            with torch.inference_mode():
                return self._work()
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._work()
        loss.backward()
        self._optimizer.step()
        return loss

    def wait(self, result: torch.Tensor) -> None:
        """Until it is computed."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Serves one variant of one case."""
    options = arguments(__doc__, VARIANTS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("highest" if options.dtype == "float32" else "high")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if options.case["kind"] == "embed":  # folds batch norm into the weights and lays them out for the kernels
        torch._inductor.config.freezing = True
    try:
        variant = Variant(options, device)
        facts = {"torch": torch.__version__, "variant": options.variant, "trainable": variant.trainable}
        peak = torch.cuda.max_memory_allocated if device.type == "cuda" else resident_peak
        serve(variant.step, variant.wait, peak, **facts)
    except Exception as error:  # torch.compile needs a C++ compiler
        print(json.dumps({"error": " ".join(str(error).split())[:80]}), flush=True)


if __name__ == "__main__":
    main()
