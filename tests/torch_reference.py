"""Seeded random torch models of transformers, and the outputs of their stages, as numpy."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from transformers import (  # noqa: E402
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
)


def randomise(model, seed: int):
    """Random values for every parameter and running statistic: none is left at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.dtype.is_floating_point:
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim >= 3 and "token" not in name and "position" not in name:
                fan_in = tensor[0].numel()
                tensor.copy_(noise * (2 / fan_in) ** 0.5)
            elif tensor.ndim == 2:
                tensor.copy_(noise / tensor.shape[1] ** 0.5)
            elif "var" in name:
                tensor.copy_(1 + noise.abs())
            elif ("norm" in name or "_bn" in name) and name.endswith("weight"):
                tensor.copy_(1 + 0.2 * noise)
            else:
                tensor.copy_(0.2 * noise)
    return model.eval()


def state_dict(model) -> dict[str, np.ndarray]:
    """The model's tensors as numpy."""
    return {key: tensor.numpy() for key, tensor in model.state_dict().items()}


def to_torch(image: np.ndarray):
    """Channels last to channels first."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))


def to_numpy(tensor) -> np.ndarray:
    """Maps to channels last; tokens as they are."""
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def dpt(seed: int = 0, **sizes):
    """A random DPTForDepthEstimation; the last layer keeps the depth over its ReLU."""
    model = randomise(DPTForDepthEstimation(DPTConfig(**sizes)), seed)
    return _above_zero(model, model.head.head[4])


def depth_anything(seed: int = 0, backbone: dict | None = None, **sizes):
    """A random DepthAnythingForDepthEstimation; `backbone` are Dinov2Config's sizes."""
    backbone_config = Dinov2Config(reshape_hidden_states=False, **(backbone or {}))
    config = DepthAnythingConfig(backbone_config=backbone_config, **sizes)
    model = randomise(DepthAnythingForDepthEstimation(config), seed)
    if config.depth_estimation_type == "metric":
        return _in_reach_of_sigmoid(model)
    return _above_zero(model, model.head.conv3)


def use_official_positions(model):
    """Resizes a DINOv2's position embedding as its official code does: by factor, offset 0.1."""
    embeddings = model.backbone.embeddings
    patch = model.config.patch_size

    def resized(tokens, height, width):
        class_position = embeddings.position_embeddings[:, :1]
        positions = embeddings.position_embeddings[:, 1:]
        side = round(positions.shape[1] ** 0.5)
        if (height // patch, width // patch) == (side, side):
            return embeddings.position_embeddings
        factors = ((height // patch + 0.1) / side, (width // patch + 0.1) / side)
        positions = torch.nn.functional.interpolate(
            positions.reshape(1, side, side, -1).permute(0, 3, 1, 2),
            scale_factor=factors,
            mode="bicubic",
        )
        return torch.cat([class_position, positions.flatten(2).transpose(1, 2)], dim=1)

    embeddings.interpolate_pos_encoding = resized


@torch.no_grad()
def _in_reach_of_sigmoid(model):
    """Scales the last layer so that its sigmoid is not saturated: that would hide every error."""
    seen, last = [], model.head.conv3
    hook = last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    size = 4 * model.config.patch_size
    model(torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)))
    hook.remove()
    last.bias.sub_(seen[0].mean()).div_(seen[0].std())
    last.weight.div_(seen[0].std())
    return model


def _above_zero(model, last_conv):
    last_conv.weight.data.abs_()
    last_conv.bias.data.abs_()
    return model


@torch.no_grad()
def stages(model, image: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Outputs of every stage, by hooks; the grid is told, or DPT would assume a square one."""
    is_dpt = model.config.model_type == "dpt"
    transformer = model.dpt if is_dpt else model.backbone
    names = {"embed": transformer.embeddings, "reassemble": model.neck.reassemble_stage}
    names |= {"norm": transformer.layernorm, "fuse": model.neck.fusion_stage, "head": model.head}
    layers = transformer.encoder.layer
    names |= {f"layer{i}": layer for i, layer in enumerate(layers)}
    seen = {name: [] for name in names}
    hooks = [
        module.register_forward_hook(lambda m, i, output, name=name: seen[name].append(output))
        for name, module in names.items()
    ]
    pixels, patch = to_torch(image), model.config.patch_size
    grid = (image.shape[1] // patch, image.shape[2] // patch)
    if is_dpt:
        embed = transformer.embeddings(pixels, **_any_size(model))
        tokens = embed.last_hidden_states
        for layer in layers:
            tokens = layer(tokens)
        transformer.layernorm(tokens)
        chosen = model.config.backbone_out_indices[2 if model.config.is_hybrid else 0 :]
        maps = list(embed.intermediate_activations or []) if model.config.is_hybrid else []
        hidden = [seen[f"layer{i}"][0] for i in chosen]
        model.head(model.neck([*maps, *hidden], *grid))
        encoded, tokens = [*hidden, seen["norm"][0]], seen["embed"][0].last_hidden_states
    else:
        model(pixels)
        # The backbone normalises each chosen layer; the last of them is the last layer.
        encoded, tokens = [*seen["norm"], seen["norm"][-1]], seen["embed"][0]
    for hook in hooks:
        hook.remove()
    found = {
        "embed": [tokens],
        "encode": encoded,
        "reassemble": seen["reassemble"][0],
        "fuse": seen["fuse"][0],
        "head": [seen["head"][0]],
    }
    return {name: [to_numpy(x) for x in outputs] for name, outputs in found.items()}


def _any_size(model) -> dict[str, bool]:
    """transformers' hybrid refuses other sizes than its own unless its embedding is told."""
    return {"interpolate_pos_encoding": True} if model.config.is_hybrid else {}


class SameConv(torch.nn.Conv2d):
    """Pads as TensorFlow's "SAME" does: evenly, an odd one behind."""

    def forward(self, x):
        padding = []
        for size, k, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-size // stride) - 1) * stride + k - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(torch.nn.functional.pad(x, padding))


class LiteBlock(torch.nn.Module):
    """An inverted residual under the names of EfficientNet-Lite0's published weights."""

    def __init__(self, channels_in, channels_out, kernel, stride, expansion):
        super().__init__()
        wide = expansion * channels_in
        norm = lambda channels: torch.nn.BatchNorm2d(channels, eps=1e-3)  # noqa: E731
        if expansion > 1:
            self._expand_conv, self._bn0 = SameConv(channels_in, wide, 1, bias=False), norm(wide)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._project_conv = SameConv(wide, channels_out, 1, bias=False)
        self._bn1, self._bn2 = norm(wide), norm(channels_out)
        self.expands, self.adds = expansion > 1, stride == 1 and channels_in == channels_out

    def forward(self, x):
        relu6 = torch.nn.functional.relu6
        wide = relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        wide = relu6(self._bn1(self._depthwise_conv(wide)))
        narrow = self._bn2(self._project_conv(wide))
        return x + narrow if self.adds else narrow


class EfficientNetLite0(torch.nn.Module):
    """Its features, block by block as the checkpoint lists them."""

    def __init__(self):
        super().__init__()
        # Channels, kernel, stride of each block behind the first.
        blocks = [(24, 3, 2), (24, 3, 1), (40, 5, 2), (40, 5, 1), (80, 3, 2), (80, 3, 1)]
        blocks += [(80, 3, 1), (112, 5, 1), (112, 5, 1), (112, 5, 1), (192, 5, 2), (192, 5, 1)]
        blocks += [(192, 5, 1), (192, 5, 1), (320, 3, 1)]
        self._conv_stem = SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = torch.nn.BatchNorm2d(32, eps=1e-3)
        self._blocks = torch.nn.ModuleList([LiteBlock(32, 16, 3, 1, 1)])
        widths = [16, *(channels for channels, _, _ in blocks)]
        for channels_in, (channels, kernel, stride) in zip(widths, blocks, strict=False):
            self._blocks.append(LiteBlock(channels_in, channels, kernel, stride, 6))

    def forward(self, x):
        x = torch.nn.functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return x
