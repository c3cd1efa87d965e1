"""A ResNet small enough to learn in a minute on two CPU cores, with torchvision's blocks and attribute names."""

from torch import Tensor, nn

SMALL = "small"
"""What recipes call it."""
WIDTHS = (16, 32, 64, 128)


class SmallResNet(nn.Module):
    """Four stages of one BasicBlock each, of 16 to 128 channels, for images of about 64 × 64 (309 k parameters).

    It has what C2D and TANet expect of a ResNet: `conv1, bn1, relu, maxpool, layer1 … layer4, avgpool, fc`.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], stride=1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], stride=2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], stride=2)
        self.layer4 = _stage(WIDTHS[2], WIDTHS[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTHS[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def with_head(backbone: str, num_classes: int) -> tuple[str | nn.Module, int | None]:
    """The two as `create_model` takes them, to which the small network is no name; it comes with its own head."""
    return (SmallResNet(num_classes), None) if backbone == SMALL else (backbone, num_classes)


def _stage(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock  # here: what only needs the name is not to wait for it

    downsample = None
    if stride != 1 or channels_in != channels:
        downsample = nn.Sequential(
            nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
        )
    return nn.Sequential(BasicBlock(channels_in, channels, stride, downsample))
