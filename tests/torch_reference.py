"""Seeded random torch models of transformers, and the outputs of their stages, as numpy."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from transformers import DPTConfig, DPTForDepthEstimation  # noqa: E402


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
            elif "norm" in name and name.endswith("weight"):
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
    model.head.head[4].weight.data.abs_()
    model.head.head[4].bias.data.abs_()
    return model


@torch.no_grad()
def dpt_stages(model, image: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Outputs of every stage. The neck is told the grid, or it would assume a square one."""
    config, seen = model.config, {}

    def keep(name):
        return lambda module, inputs, output: seen.setdefault(name, output)

    modules = {f"layer{i}": model.dpt.encoder.layer[i] for i in config.backbone_out_indices}
    modules |= {"embed": model.dpt.embeddings, "norm": model.dpt.layernorm}
    modules |= {"reassemble": model.neck.reassemble_stage}
    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    model.dpt(to_torch(image))
    layers = [seen[f"layer{i}"] for i in config.backbone_out_indices]
    grid = (image.shape[1] // config.patch_size, image.shape[2] // config.patch_size)
    fused = model.neck(layers, *grid)
    depth = model.head(fused)
    for hook in hooks:
        hook.remove()
    stages = {
        "embed": [seen["embed"].last_hidden_states],
        "encode": [*layers, seen["norm"]],
        "reassemble": seen["reassemble"],
        "fuse": fused,
        "head": [depth],
    }
    return {name: [to_numpy(x) for x in outputs] for name, outputs in stages.items()}
