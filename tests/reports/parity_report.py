"""Full-size parity with transformers' torch models, on seeded random weights, stage by stage.

    PYTHONPATH=tests/fixtures python tests/reports/parity_report.py > fsmde_jax/reports/parity.md

Every published architecture, at its native size and at the driving size (384x640 for DPT, 392x644
for Depth Anything); needs `pip install -e ".[torch]"` and about 12 GB of memory.
"""

import dataclasses
import sys

import jax
import torch_reference
from dpt_cases import random_image, stage_errors
from flax import nnx

from fsmde_jax.models.foundation.dpt import DPT, DPTConfig
from fsmde_jax.models.weights.hub_config import PUBLISHED, foundation_config
from fsmde_jax.models.weights.load import load_state_dict_into
from fsmde_jax.models.weights.tables import table_of

STAGES = ("embed", "encode", "reassemble", "fuse", "head")


def torch_model(config: DPTConfig):
    """The torch model of an architecture."""
    neck = dict(
        neck_hidden_sizes=list(config.neck_hidden_sizes),
        fusion_hidden_size=config.fusion_hidden_size,
    )
    sizes = dict(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
    )
    if config.normalise_layers:
        metric = dict(depth_estimation_type="metric", max_depth=int(config.max_depth_m or 1))
        return torch_reference.depth_anything(
            backbone=sizes
            | dict(
                image_size=518,
                patch_size=14,
                out_indices=[index + 1 for index in config.backbone_out_indices],
            ),
            reassemble_hidden_size=config.hidden_size,
            **neck,
            **(metric if config.predicts_metres else {}),
        )
    indices = (2, 5) if config.stem else ()
    factors = [1, 1] if config.stem else []
    factors += [factor if factor < 1 else int(factor) for factor in config.reassemble_factors]
    return torch_reference.dpt(
        intermediate_size=config.intermediate_size,
        backbone_out_indices=[*indices, *config.backbone_out_indices],
        reassemble_factors=factors,
        is_hybrid=config.stem is not None,
        **sizes,
        **neck,
    )


def rows(name: str, config: DPTConfig):
    """A line of the table for each size and convention."""
    reference_model = torch_model(config)
    assert foundation_config(reference_model.config.to_dict()) == config, name
    model = nnx.eval_shape(lambda: DPT(config, rngs=nnx.Rngs(0)))
    load_state_dict_into(model, torch_reference.state_dict(reference_model), table_of(config))
    driving = (392, 644) if config.normalise_layers else (384, 640)
    cases = [(config.image_size, 0.0), (driving, 0.0)]
    if config.normalise_layers:
        cases.append((driving, 0.1))
    for size, offset in cases:
        image = random_image(*size)[:1]
        if offset:
            torch_reference.use_official_positions(reference_model)
        reference = torch_reference.stages(reference_model, image)
        changed = dataclasses.replace(config, position_offset=offset)
        at_offset = nnx.eval_shape(lambda changed=changed: DPT(changed, rngs=nnx.Rngs(0)))
        nnx.update(at_offset, nnx.state(model))
        errors = stage_errors(at_offset, reference, image)
        assert reference["head"][0].std() > 0.05 * reference["head"][0].max()  # hides no error
        positions = "official" if offset else "transformers"
        columns = [name, f"{size[0]}x{size[1]}", positions, *(f"{errors[s]:.1e}" for s in STAGES)]
        yield "| " + " | ".join(columns) + " |"


def main() -> None:
    """Prints the table as it grows."""
    print("# Parity with transformers, float32\n")
    print("Largest absolute error over the largest value of each stage's output; seeded random")
    print(f"weights; made by `python {sys.argv[0]}` on {jax.devices()[0].platform}.\n")
    print("| architecture | image | position embedding | " + " | ".join(STAGES) + " |")
    print("| --- " * (3 + len(STAGES)) + "|")
    seen: dict[DPTConfig, str] = {}
    for name, config in PUBLISHED.items():
        if seen.setdefault(config, name) != name:
            continue
        for row in rows(name, config):
            print(row, flush=True)


if __name__ == "__main__":
    main()
