"""PyTorch's side of ``benchmarks/simclr.py``: reads a case a line, answers with its seconds as JSON.

The same network, loss and optimizer from PyTorch's own parts, in the memory layout that is faster for them. The same
views in plain PyTorch, of all images of a batch at once (``grid_sample`` for crops and flips, no loop over images),
which is quicker than torchvision's transforms image by image.
"""

# pyright: reportMissingImports=false

import json
import math
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional

ROWS, SIDE, OUTPUTS, TRIES = 2048, 32, 128, 10
GREY = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def crops(n: int) -> tuple[torch.Tensor, ...]:
    """Return top, left, height and width of a random part of each image."""
    area = SIDE * SIDE * torch.empty(n, TRIES).uniform_(0.08, 1.0)
    shape = torch.exp(torch.empty(n, TRIES).uniform_(math.log(3 / 4), math.log(4 / 3)))
    width, height = (area * shape).sqrt().round(), (area / shape).sqrt().round()
    fits = (width >= 1) & (width <= SIDE) & (height >= 1) & (height <= SIDE)
    first = fits.int().argmax(dim=1, keepdim=True)
    some = fits.any(dim=1)
    width = torch.where(some, width.gather(1, first)[:, 0], torch.tensor(float(SIDE)))
    height = torch.where(some, height.gather(1, first)[:, 0], torch.tensor(float(SIDE)))
    return (torch.rand(n) * (SIDE - height + 1)).floor(), (torch.rand(n) * (SIDE - width + 1)).floor(), height, width


def factors(n: int, change: float, applied: torch.Tensor) -> torch.Tensor:
    """Return a random factor for each image, 1 where nothing is to be applied."""
    return torch.where(applied, torch.empty(n).uniform_(1 - change, 1 + change), torch.ones(n)).view(-1, 1, 1, 1)


def view(images: torch.Tensor) -> torch.Tensor:
    """Return a random view of each image, ``(N, 3, H, W)`` from 0 to 1."""
    n, x = len(images), images.float() / 255
    top, left, height, width = crops(n)
    mirror = 1 - 2 * (torch.rand(n) < 0.5).float()
    places = torch.zeros(n, 2, 3)
    places[:, 0, 0], places[:, 0, 2] = mirror * width / SIDE, (2 * left + width) / SIDE - 1
    places[:, 1, 1], places[:, 1, 2] = height / SIDE, (2 * top + height) / SIDE - 1
    grid = functional.affine_grid(places, [n, 3, SIDE, SIDE], align_corners=False)
    x = functional.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    other = torch.rand(n) < 0.8
    x = (factors(n, 0.4, other) * x).clamp_(0, 1)
    by = factors(n, 0.4, other)
    x = (by * x + (1 - by) * (x * GREY).sum(1, keepdim=True).mean((2, 3), keepdim=True)).clamp_(0, 1)
    by = factors(n, 0.4, other)
    x = (by * x + (1 - by) * (x * GREY).sum(1, keepdim=True)).clamp_(0, 1)
    angle = 2 * math.pi * torch.where(other, torch.empty(n).uniform_(-0.1, 0.1), torch.zeros(n))
    turn = torch.zeros(n, 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    x = torch.bmm(torch.linalg.inv(YIQ) @ turn @ YIQ, x.reshape(n, 3, -1)).view(n, 3, SIDE, SIDE).clamp_(0, 1)
    no_colours = (torch.rand(n) < 0.2).view(-1, 1, 1, 1)
    return torch.where(no_colours, (x * GREY).sum(1, keepdim=True), x)


class Block(nn.Module):
    """A basic block of ResNet."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.norm2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


def network(width: int) -> nn.Module:
    """Return ResNet-18 with the stem for small images and a projection head."""
    blocks = [
        Block(width * 2 ** max(0, stage - (i == 0)), width * 2**stage, 2 if stage and i == 0 else 1)
        for stage in range(4)
        for i in range(2)
    ]
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    head = [nn.Linear(8 * width, 8 * width), nn.ReLU(), nn.Linear(8 * width, OUTPUTS, bias=False)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


def nt_xent(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return NT-Xent of two views, one after the other in ``z``."""
    z = functional.normalize(z, dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-math.inf)
    return functional.cross_entropy(logits, torch.arange(len(z)).roll(len(z) // 2))


class Run:
    """Pre-training in one memory layout."""

    def __init__(self, width: int, batch: int, layout: Any) -> None:
        self.batch, self.layout = batch, layout
        self.images = torch.randint(0, 256, (ROWS, 3, SIDE, SIDE), dtype=torch.uint8)
        self.model = network(width).to(memory_format=layout)  # type: ignore[call-overload]
        self.model.train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def views(self) -> torch.Tensor:
        """Return both views of a batch."""
        rows = self.images[torch.randperm(ROWS)[: self.batch]]
        return torch.cat([view(rows), view(rows)])

    def update(self) -> None:
        """Make one."""
        x = ((self.views() - 0.5) / 0.25).contiguous(memory_format=self.layout)
        self.optimizer.zero_grad()
        nt_xent(self.model(x), 0.5).backward()
        self.optimizer.step()


def timed(work: Any, times: int) -> dict[str, float]:
    """Return the seconds of one of several calls, by the clock and by the processors."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(times):
        work()
    return {"wall": (time.perf_counter() - wall) / times, "processor": (time.process_time() - processor) / times}


def main() -> None:
    width, batch = int(sys.argv[1]), int(sys.argv[2])
    runs = {name: Run(width, batch, getattr(torch, name)) for name in ("contiguous_format", "channels_last")}
    for run in runs.values():
        run.update()
    spent = {name: timed(run.update, 1)["processor"] for name, run in runs.items()}
    layout = min(spent, key=lambda name: spent[name])
    run = runs[layout]
    for line in sys.stdin:
        case, times = line.split()
        if case == "versions":
            print(json.dumps({"versions": f"torch {torch.__version__}, {layout}"}), flush=True)
        else:
            print(json.dumps(timed(run.update if case == "update" else run.views, int(times))), flush=True)


if __name__ == "__main__":
    main()
