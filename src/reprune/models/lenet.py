"""LeNets for MNIST, as Caffe has them (LeCun et al., Proc. IEEE 1998; Han et al. 2016, arXiv:1510.00149); a perceptron.

On 28x28 images these are the published nets. Other sizes are pooled to what the linear layers read: the last max-pool
of LeNet-5 makes 4x4 maps of any size, and LeNet-300-100 sees a 28x28 average of its images.
"""

from __future__ import annotations

from torch import Tensor, nn

from reprune.models.common import check_counts

SIDE = 28


class LeNet5(nn.Module):
    """[B, in_channels, H, W] -> logits [B, classes]; H and W at least 20."""

    def __init__(self, classes: int, in_channels: int):
        super().__init__()
        self.conv1, self.pool1 = nn.Conv2d(in_channels, 20, 5), nn.MaxPool2d(2)
        self.conv2, self.pool2 = nn.Conv2d(20, 50, 5), nn.AdaptiveMaxPool2d(4)
        self.fc1, self.relu, self.fc2 = nn.Linear(50 * 4 * 4, 500), nn.ReLU(), nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.conv1(x))               # [B, 20, 12, 12]
        x = self.pool2(self.conv2(x)).flatten(1)    # [B, 800]
        return self.fc2(self.relu(self.fc1(x)))


def lenet5(classes: int = 10, in_channels: int = 1) -> nn.Module:
    """LeNet-5 of Caffe: [B, in_channels, H, W] -> logits [B, classes]; H and W at least 20.

    5x5 convs with 20 and 50 filters, a max-pool after each and no ReLU, linear layers 800-500-classes.
    UserError: `classes` or `in_channels` not a positive whole number.

    >>> sum(p.numel() for p in lenet5().parameters())
    431080
    """
    check_counts(classes=classes, in_channels=in_channels)
    return LeNet5(classes, in_channels)


def lenet300(classes: int = 10, in_channels: int = 1) -> nn.Module:
    """LeNet-300-100, linear layers with ReLU between them: [B, in_channels, H, W] -> logits [B, classes].

    UserError: `classes` or `in_channels` not a positive whole number.

    >>> sum(p.numel() for p in lenet300().parameters())
    266610
    """
    check_counts(classes=classes, in_channels=in_channels)
    return nn.Sequential(nn.AdaptiveAvgPool2d(SIDE), nn.Flatten(), nn.Linear(in_channels * SIDE * SIDE, 300), nn.ReLU(),
                         nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, classes))


def mlp(hidden: int, classes: int = 2, in_channels: int = 17) -> nn.Module:
    """One hidden layer of tanh units: [B, in_channels, H, W], averaged over H and W, -> logits [B, classes].

    UserError: `hidden`, `classes` or `in_channels` not a positive whole number.

    >>> sum(p.numel() for p in mlp(3).parameters())
    62
    """
    check_counts(hidden=hidden, classes=classes, in_channels=in_channels)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, hidden), nn.Tanh(),
                         nn.Linear(hidden, classes))
