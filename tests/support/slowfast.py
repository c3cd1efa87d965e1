"""SlowFast as its paper has it, in 3D convolutions."""

import torch
from torch import Tensor, nn


class Paper(nn.Module):
    """Table 1 and section 3.3 in 3D convolutions on (N, C, T, H, W), under facebookresearch/SlowFast's names."""

    def __init__(self, blocks: tuple[int, ...], width: int, ratio: int, alpha: int, lateral: int, classes: int) -> None:
        super().__init__()
        self.alpha, self.blocks = alpha, blocks
        taps = ((1, 1, 1, 3, 3), (5, 3, 3, 3, 3))
        widths = (width, width // ratio)
        self.s1 = nn.ModuleDict({f"pathway{p}_stem": conv_bn(3, widths[p], (taps[p][0], 7, 7), 2) for p in (0, 1)})
        arriving = list(widths)
        for i, count in enumerate(blocks):
            fuse = nn.ModuleDict(
                {
                    "conv_f2s": nn.Conv3d(
                        arriving[1],
                        2 * arriving[1],
                        (lateral, 1, 1),
                        (alpha, 1, 1),
                        (lateral // 2, 0, 0),
                        bias=False,
                    ),
                    "bn": nn.BatchNorm3d(2 * arriving[1]),
                }
            )
            self.add_module(f"s{i + 1}_fuse", fuse)
            arriving[0] += 2 * arriving[1]
            stage = nn.ModuleDict()
            for p in (0, 1):
                inner = widths[p] * 2**i
                for j in range(count):
                    stride = 2 if i > 0 and j == 0 else 1
                    stage[f"pathway{p}_res{j}"] = Residual(arriving[p], inner, taps[p][i + 1], stride)
                    arriving[p] = 4 * inner
            self.add_module(f"s{i + 2}", stage)
        self.head = nn.ModuleDict({"projection": nn.Linear(sum(arriving), classes)})

    def forward(self, x: Tensor, slow: Tensor | None = None) -> Tensor:
        slow = x[:, :: self.alpha] if slow is None else slow
        paths = []
        for p, clip in enumerate((slow.transpose(1, 2), x.transpose(1, 2))):
            stem = getattr(self.s1, f"pathway{p}_stem")
            paths.append(
                nn.functional.max_pool3d(stem["bn"](stem["conv"](clip)).relu(), (1, 3, 3), (1, 2, 2), (0, 1, 1))
            )
        for i, count in enumerate(self.blocks):
            fuse = getattr(self, f"s{i + 1}_fuse")
            paths[0] = torch.cat((paths[0], fuse["bn"](fuse["conv_f2s"](paths[1])).relu()), 1)
            for p in (0, 1):
                for j in range(count):
                    paths[p] = self.get_submodule(f"s{i + 2}.pathway{p}_res{j}")(paths[p])
        return self.head["projection"](torch.cat([path.mean((2, 3, 4)) for path in paths], 1))


class Residual(nn.Module):
    def __init__(self, channels: int, inner: int, taps: int, stride: int) -> None:
        super().__init__()
        if stride > 1 or channels != 4 * inner:
            self.branch1 = nn.Conv3d(channels, 4 * inner, 1, (1, stride, stride), bias=False)
            self.branch1_bn = nn.BatchNorm3d(4 * inner)
        self.branch2 = nn.ModuleDict()
        for letter, kernel in (("a", (taps, 1, 1)), ("b", (1, 3, 3)), ("c", (1, 1, 1))):
            parts = conv_bn(channels, 4 * inner if letter == "c" else inner, kernel, stride if letter == "b" else 1)
            self.branch2[letter], self.branch2[f"{letter}_bn"] = parts["conv"], parts["bn"]
            channels = inner

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.branch1_bn(self.branch1(x)) if hasattr(self, "branch1") else x
        branch = self.branch2
        x = branch["a_bn"](branch["a"](x)).relu()
        x = branch["b_bn"](branch["b"](x)).relu()
        return (shortcut + branch["c_bn"](branch["c"](x))).relu()


def conv_bn(channels: int, out: int, kernel: tuple[int, int, int], stride: int) -> nn.ModuleDict:
    time, height, width = (taps // 2 for taps in kernel)
    conv = nn.Conv3d(channels, out, kernel, (1, stride, stride), (time, height, width), bias=False)
    return nn.ModuleDict({"conv": conv, "bn": nn.BatchNorm3d(out)})
