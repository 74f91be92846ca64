"""The ResNet student in PyTorch: what the benchmark compares with, from the same parameters.

Modules and parameters are called as in `student.py`, so that one rule (`_to_torch`) carries every
tensor over. Needs the extra `torch`; nothing else of the package does.
"""

import math

import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from fsmde_jax.models.binned_depth import DEPTH, INVERSE_DEPTH, LOG_DEPTH
from fsmde_jax.models.encoders.resnet import ResNetConfig
from fsmde_jax.models.student import Student


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(
            channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False
        )
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolves and normalises."""
        return self.norm(self.conv(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.conv1 = ConvNorm(channels_in, channels_out, 3, stride)
        self.conv2 = ConvNorm(channels_out, channels_out, 3)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = None if same else ConvNorm(channels_in, channels_out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The residual sum after its ReLU."""
        residual = x if self.shortcut is None else self.shortcut(x)
        return functional.relu(self.conv2(functional.relu(self.conv1(x))) + residual)


class ResNet(nn.Module):
    """Encoder: features at strides 2, 4, 8, 16 and 32."""

    def __init__(self, config: ResNetConfig):
        super().__init__()
        self.stem = ConvNorm(3, config.stem_channels, 7, 2)
        self.stages, channels_in = nn.ModuleList(), config.stem_channels
        for index, (channels, depth) in enumerate(
            zip(config.stage_channels, config.depths, strict=True)
        ):
            blocks = nn.ModuleList()
            for stride in (2 if index else 1, *(1,) * (depth - 1)):
                blocks.append(BasicBlock(channels_in, channels, stride))
                channels_in = channels
            self.stages.append(blocks)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Features at the five strides."""
        x = functional.relu(self.stem(x))
        features = [x]
        x = functional.max_pool2d(x, 3, 2, 1)
        for blocks in self.stages:
            for block in blocks:
                x = block(x)
            features.append(x)
        return features


class BinningHead(nn.Module):
    """As `bins.BinningHead` with centers per image."""

    def __init__(self, channels: int, image_channels: int, student: Student):
        super().__init__()
        head, bins = student.head, student.head.classifier.out_features
        self.log_range, self.kind = head.log_range, head.centers_kind
        self.before_mean, self.after_mean = {
            DEPTH: (torch.positive, torch.positive),
            LOG_DEPTH: (torch.log, torch.exp),
            INVERSE_DEPTH: (torch.reciprocal, torch.reciprocal),
        }[head.mean_of]
        self.pixel_norm = nn.LayerNorm(channels, eps=1e-6)
        self.image_norm = nn.LayerNorm(image_channels, eps=1e-6)
        self.classifier = nn.Conv2d(channels, bins, 1)
        self.hidden = nn.Linear(image_channels, head.hidden.out_features)
        self.widths = nn.Linear(head.hidden.out_features, bins + 1)

    def forward(self, pixels: torch.Tensor, image: torch.Tensor, ratio: torch.Tensor):
        """Depth in metres, [i h w], at the resolution of `pixels`."""
        pixels = self.pixel_norm(pixels.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        hidden = self.hidden(self.image_norm(image))
        raw = self.widths(functional.gelu(hidden, approximate="tanh"))
        log_centers = self._log_centers(raw) + torch.log(ratio)[:, None]
        centers_m = torch.exp(_soft_clip(log_centers, *self.log_range))
        probabilities = self.classifier(pixels).softmax(1)
        mean = torch.einsum("ikhw,ik->ihw", probabilities, self.before_mean(centers_m))
        return self.after_mean(mean)

    def _log_centers(self, raw: torch.Tensor) -> torch.Tensor:
        low, high = self.log_range
        if self.kind == "widths":
            return low + torch.cumsum(raw.softmax(1) * (high - low), 1)[:, :-1]
        gaps = (high - low) / raw.shape[1] * functional.softplus(raw[:, 1:]) / math.log(2.0)
        return low + raw[:, :1] + torch.cumsum(gaps, 1)


def _soft_clip(value: torch.Tensor, low: float, high: float) -> torch.Tensor:
    above_low = functional.softplus(4.0 * (value - low), threshold=80) / 4.0
    return low + above_low - functional.softplus(4.0 * (value - high), threshold=80) / 4.0


class TorchStudent(nn.Module):
    """Images of rings to metric depth.

    Args:
      student: ours, whose sizes and parameters it takes; a ResNet with centers per image.
    """

    def __init__(self, student: Student):
        super().__init__()
        self.encoder = ResNet(student.encoder.config)
        *skips, image_channels = student.encoder.channels
        self.decoder, channels = nn.ModuleList(), image_channels
        for block, skip in zip(student.decoder, reversed(skips), strict=False):
            self.decoder.append(ConvNorm(channels + skip, block.conv.out_features, 3))
            channels = block.conv.out_features
        self.head = BinningHead(channels, image_channels, student)
        self.canonical_focal_px = student.canonical_focal_px
        config = student.encoder.config
        self.register_buffer("mean", torch.tensor(config.image_mean).view(1, 3, 1, 1), False)
        self.register_buffer("std", torch.tensor(config.image_std).view(1, 3, 1, 1), False)
        self.load_state_dict(_to_torch(student), strict=False)  # it counts batches as well

    def forward(self, image: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
        """Depth [b n h w] in metres of uint8 images [b n h w 3], intrinsics [b n 3 3]."""
        b, n, h, w, _ = image.shape
        x = image.reshape(b * n, h, w, 3).permute(0, 3, 1, 2).float()
        *skips, x = self.encoder((x / 255.0 - self.mean) / self.std)
        pooled = x.mean((2, 3))
        for block, skip in zip(self.decoder, reversed(skips), strict=False):
            x = functional.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
            x = functional.relu(block(torch.cat([x, skip], 1)))
        ratio = intrinsics[..., 0, 0].reshape(b * n) / self.canonical_focal_px
        depth_m = self.head(x, pooled, ratio)[:, None]
        return functional.interpolate(depth_m, (h, w), mode="bilinear").reshape(b, n, h, w)


def make_train_step(
    student: nn.Module, learning_rate: float, clip_norm: float, variance_focus: float
):  # -> batch -> loss
    """The supervised step of `train.py`: SILog on LiDAR, clipped gradients, AdamW."""
    optimizer = torch.optim.AdamW(student.parameters(), learning_rate)

    def step(batch: dict[str, torch.Tensor]) -> float:
        optimizer.zero_grad()
        depth_m = student(batch["image"], batch["intrinsics"])
        loss = silog_on_lidar(depth_m, batch["lidar_xy"], batch["lidar_depth_m"], variance_focus)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), clip_norm)
        optimizer.step()
        return loss.item()

    return step


def silog_on_lidar(
    depth_m: torch.Tensor, lidar_xy: torch.Tensor, truth_m: torch.Tensor, variance_focus: float
) -> torch.Tensor:
    """As `objective.silog_on_lidar`: a depth map [b n h w] at LiDAR points [b n p]."""
    height, width = depth_m.shape[2:]
    grid = 2 * lidar_xy / torch.tensor([width, height]) - 1
    sampled = functional.grid_sample(
        depth_m.flatten(0, 1)[:, None],
        grid.flatten(0, 1)[:, :, None],
        padding_mode="border",
        align_corners=False,
    )
    valid = truth_m > 0
    error = (torch.log(sampled.reshape(truth_m.shape)) - torch.log(truth_m))[valid]
    return torch.sqrt((error**2).mean() - variance_focus * error.mean() ** 2)


_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def _to_torch(student: Student) -> dict[str, torch.Tensor]:
    """Parameters and statistics by torch's names, in torch's axes."""
    found = {}
    for path, leaf in nnx.to_flat_state(nnx.state(student, nnx.Any(nnx.Param, nnx.BatchStat))):
        array = np.asarray(leaf.get_value())
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, (0,))
        name = ".".join(map(str, [*path[:-1], _NAMES.get(path[-1], path[-1])]))
        found[name] = torch.from_numpy(np.array(array.transpose(axes)))
    return found
