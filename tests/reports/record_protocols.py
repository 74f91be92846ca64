"""Records what the public code itself makes of `protocol_inputs.py`: `protocol_numbers.json`.

    PYTHONPATH=tests/fixtures python tests/reports/record_protocols.py PEERS

PEERS holds clones of weiyithu/SurroundDepth, XiandaGuo/SSDepth, 42dot/VFDepth, TRI-ML/packnet-sfm
and TRI-ML/dgp, in folders of those names; the files of `FILES` are enough. It takes torch,
opencv-python-headless and pyquaternion. Their functions run as they are, from clouds to figures.
Replaced is what they import without need here, and what is no part of a protocol: networks (their
output is `protocol_inputs.make_predictions`), the readers of JSON tables, and CUDA. Of torchvision
there are Resize and ToTensor, for masks that PIL holds: one call of PIL, one of torch.

Averages over images that the peers take of printed or pickled values are taken here: SurroundDepth
and SSDepth per camera, then over cameras (`Runer.evaluation`), packnet-sfm over images
(`all_reduce_metrics`). SSDepth makes nuScenes' maps by SurroundDepth's script. packnet-sfm has no
nuScenes: there its metrics are of SurroundDepth's maps.
"""

import contextlib
import importlib
import json
import os
import pickle
import sys
import tempfile
import types
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import protocol_inputs as inputs
import torch
from PIL import Image

OUT = Path(inputs.__file__).with_name("protocol_numbers.json")
# What runs, by repository, and the commit it was read at.
FILES = {
    "weiyithu/SurroundDepth": {
        "runer.py": ("22dfecfe8fca62a38d0f682ff7bf65b41aba3cac", ["Runer.val"]),
        "utils.py": ("4a80fa20836cd535af16b93e72abf25247a4a672", ["compute_errors"]),
        "layers.py": ("4a80fa20836cd535af16b93e72abf25247a4a672", ["post_process_inv_depth"]),
        "tools/export_gt_depth_nusc.py": (
            "4a80fa20836cd535af16b93e72abf25247a4a672",
            ["DepthGenerator.__call__"],
        ),
    },
    "XiandaGuo/SSDepth": {
        "runer.py": ("48f8cd6bc0954c335c670b0a4e70e15198d50ed3", ["Runer.val"]),
        "utils.py": ("48f8cd6bc0954c335c670b0a4e70e15198d50ed3", ["compute_errors"]),
    },
    "42dot/VFDepth": {
        "models/vfdepth.py": (
            "2da2a0a024d31abfe824b0640396ac432a967138",
            ["VFDepthAlgo.set_eval_dataloader"],
        ),
        "trainer/vfdepth_trainer.py": (
            "2da2a0a024d31abfe824b0640396ac432a967138",
            ["VFDepthTrainer.evaluate"],
        ),
        "utils/logger.py": (
            "58a2a838bc33fe366ca37c865300f71d62b43984",
            ["Logger.compute_depth_losses"],
        ),
        "utils/misc.py": ("58a2a838bc33fe366ca37c865300f71d62b43984", ["cal_depth_error"]),
        "dataset/nuscenes_dataset.py": (
            "58a2a838bc33fe366ca37c865300f71d62b43984",
            ["NuScenesdataset.generate_depth_map"],
        ),
        "dataset/data_util.py": (
            "58a2a838bc33fe366ca37c865300f71d62b43984",
            ["mask_loader_scene", "transform_mask_sample"],
        ),
    },
    "TRI-ML/packnet-sfm": {
        "packnet_sfm/models/model_wrapper.py": (
            "1b5c3473581dc7f586346ba4b8864ae2d16f2377",
            ["ModelWrapper.evaluate_depth"],
        ),
        "packnet_sfm/utils/depth.py": (
            "75e2e14c079fa401ebbec400b1c4eefea8fc7bda",
            ["post_process_inv_depth", "compute_depth_metrics", "inv2depth"],
        ),
        "packnet_sfm/utils/image.py": (
            "a668e6a4fe95e6c499a06866be57c27a95524703",
            ["interpolate_image", "flip_lr"],
        ),
        "packnet_sfm/datasets/augmentations.py": (
            "75e2e14c079fa401ebbec400b1c4eefea8fc7bda",
            ["resize_depth_preserve"],
        ),
    },
    "TRI-ML/dgp": {
        "dgp/utils/camera.py": (
            "026234a7cab8ef03dc879e876a7644a843d8c88a",
            ["generate_depth_map", "Camera"],
        ),
        "dgp/utils/pose.py": ("16d7f71e293548d1290a39713d03c1dcc70fa931", ["Pose"]),
    },
}
# What those files import and these functions do not use.
UNUSED = (
    "IPython", "datasets", "networks", "tensorboardX", "py", "imageio", "nuscenes",
    "nuscenes.nuscenes", "yacs", "dgp.proto", "network", "models.base_model", "models.geometry",
    "models.losses", "dataset", "external", "external.dataset", "utils.visualize",
    "packnet_sfm.datasets.transforms", "packnet_sfm.utils.horovod", "packnet_sfm.utils.load",
    "packnet_sfm.utils.logging", "packnet_sfm.utils.reduce", "packnet_sfm.utils.save",
    "packnet_sfm.models.model_utils", "matplotlib.cm", "six", "six.moves", "yaml",
)  # fmt: skip


class Anything(types.ModuleType):
    """A module whose every name is there and does nothing."""

    __path__ = ()
    __all__ = ()

    def __getattr__(self, name):
        if name in ("BaseModel",):
            return object
        return mock.MagicMock()


class Resize:
    """torchvision's of an image of PIL."""

    def __init__(self, size, interpolation):
        self.size, self.interpolation = size, interpolation

    def __call__(self, image):
        return image.resize(self.size[::-1], self.interpolation)


class ToTensor:
    """torchvision's of a grey image of PIL."""

    def __call__(self, image):
        return torch.from_numpy(np.array(image)[None]).float() / 255


@contextlib.contextmanager
def importing_from(root: Path, *also: str):
    """Imports as in a clone's own folder; the names are forgotten afterwards."""
    before = dict(sys.modules)
    for name in (*UNUSED, *also):
        sys.modules[name] = Anything(name)
    torchvision = types.ModuleType("torchvision")
    torchvision.transforms = types.ModuleType("torchvision.transforms")
    torchvision.transforms.Resize, torchvision.transforms.ToTensor = Resize, ToTensor
    sys.modules["torchvision"] = torchvision
    sys.modules["torchvision.transforms"] = torchvision.transforms
    Image.ANTIALIAS = Image.LANCZOS  # its name until Pillow 10
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
        for name in set(sys.modules) - set(before):
            del sys.modules[name]
        sys.modules.update(before)


# Truth, by what makes it


def dgp_maps(peers: Path) -> list[list[np.ndarray]]:
    """By sample and camera, as packnet-sfm's and VFDepth's readers call dgp."""
    with importing_from(peers / "dgp"):
        camera_module = importlib.import_module("dgp.utils.camera")
        pose_module = importlib.import_module("dgp.utils.pose")

    def pose(world_from_sensor):
        quaternion = inputs._dgp_pose(world_from_sensor)["rotation"].values()
        return pose_module.Pose(np.array(list(quaternion)), world_from_sensor[:3, 3])

    found = []
    for sample in (sample for scene in inputs.make_scenes() for sample in scene):
        points = pose(sample.world_from_lidar()) * sample.points_m.astype(np.float64)
        cameras = [
            camera_module.Camera(
                K=np.array(inputs.INTRINSICS), p_cw=pose(sample.world_from_camera(i)).inverse()
            )
            for i in range(2)
        ]
        found.append([camera_module.generate_depth_map(c, points, inputs.NATIVE) for c in cameras])
    return found


class Tables:
    """nuScenes' tables by `get`, as nuscenes-devkit has them."""

    def __init__(self, root: Path):
        names = ("sample", "sample_data", "calibrated_sensor", "ego_pose")
        self.rows = {
            name: {
                row["token"]: row
                for row in json.loads((root / "v1.0-trainval" / f"{name}.json").read_text())
            }
            for name in names
        }
        for row in self.rows["sample_data"].values():
            channel = row["token"].removeprefix(f"{row['sample_token']}-")
            self.rows["sample"][row["sample_token"]].setdefault("data", {})[channel] = row["token"]

    def get(self, table: str, token: str) -> dict:
        return self.rows[table][token]

    def val_samples(self) -> list[str]:
        return [t for t in self.rows["sample"] if t[:10] in inputs.VAL_SCENES["nuscenes"]]


def surrounddepth_maps(peers: Path, raw: Path) -> list[list[np.ndarray]]:
    with importing_from(peers / "SurroundDepth" / "tools"):
        module = importlib.import_module("export_gt_depth_nusc")
    tables, cameras = Tables(raw), inputs.CAMERAS["nuscenes"]
    generator = module.DepthGenerator.__new__(module.DepthGenerator)
    generator.data_path, generator.save_path = str(raw), str(raw / "surrounddepth")
    generator.nusc, generator.camera_names = tables, list(cameras)
    generator.data = tables.val_samples()
    for camera in cameras:
        (raw / "surrounddepth" / "samples" / camera).mkdir(parents=True)
    generator(num_workers=1)
    return [
        [np.load(raw / "surrounddepth" / "samples" / c / f"{t}.npy") for c in cameras]
        for t in generator.data
    ]


def vfdepth_maps(peers: Path, raw: Path) -> list[list[np.ndarray]]:
    with vfdepth(peers):
        module = importlib.import_module("dataset.nuscenes_dataset")
    tables = Tables(raw)
    reader = module.NuScenesdataset.__new__(module.NuScenesdataset)
    reader.path, reader.dataset = f"{raw}/", tables
    found = []
    for token in tables.val_samples():
        sample = tables.get("sample", token)
        found.append(
            [
                reader.generate_depth_map(sample, c, tables.get("sample_data", sample["data"][c]))
                for c in inputs.CAMERAS["nuscenes"]
            ]
        )
    return found


# Figures


def of_runer(root: Path, truth: list, dataset: str, ssdepth: bool) -> dict[str, list[float]]:
    """SurroundDepth's and SSDepth's `Runer.val`."""
    with importing_from(root, *(["layers"] if ssdepth else [])):
        module = importlib.import_module("runer")
    direct, mirrored = (torch.from_numpy(array) for array in inputs.make_predictions())
    high = inputs.MAX_DEPTH_M[dataset]
    outputs = []
    for of_sample in zip(direct, mirrored, strict=True):
        maps = [of_sample[0][:, None] / high] if ssdepth else [1 / m[:, None] for m in of_sample]
        outputs += [{("disp", 0): m} for m in maps]
    # The network's output is disparity itself, not its sigmoid.
    module.disp_to_depth = lambda disparity, *_: (disparity, 1 / disparity)
    batches = [
        {
            ("color", 0, 0): torch.zeros(2, 3, *inputs.NETWORK),
            "depth": torch.from_numpy(np.stack(maps)),
            "id": ["a", "b"],
        }
        for maps in truth
    ]
    loader = mock.MagicMock()
    loader.__iter__.return_value = iter(batches)
    loader.dataset = batches
    encoder, decoder = mock.MagicMock(), mock.MagicMock(side_effect=outputs)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "eval").mkdir()
        runer = mock.MagicMock()
        runer.models = {"encoder": encoder, "depth": decoder}
        runer.val_loader, runer.log_path, runer.local_rank = loader, folder, 1
        runer.opt = types.SimpleNamespace(min_depth=inputs.MIN_DEPTH_M, max_depth=high, focal=False)
        with (
            mock.patch.object(torch.Tensor, "cuda", lambda self: self),
            mock.patch.object(torch.cuda, "Event", mock.MagicMock()),
            mock.patch.object(torch.cuda, "synchronize"),
        ):
            module.Runer.val(runer)
        errors = pickle.loads((Path(folder) / "eval" / "1.pkl").read_bytes())
    assert not list(decoder.side_effect)  # all outputs were asked for
    return {
        scaling: np.mean([rows.mean(0) for rows in errors[kind].values()], axis=0).tolist()
        for scaling, kind in (("metric", "scale-aware"), ("median", "scale-ambiguous"))
    }


def of_packnet(peers: Path, truth: list, dataset: str) -> dict[str, list[float]]:
    with importing_from(peers / "packnet-sfm"):
        module = importlib.import_module("packnet_sfm.models.model_wrapper")
    direct, mirrored = (torch.from_numpy(array) for array in inputs.make_predictions())
    params = types.SimpleNamespace(
        crop="", min_depth=0.0, max_depth=inputs.MAX_DEPTH_M[dataset], scale_output="resize"
    )
    rows = []
    for maps, one, other in zip(truth, direct, mirrored, strict=True):
        for camera in range(2):
            model = mock.MagicMock(
                side_effect=[{"inv_depths": [1 / m[camera][None, None]]} for m in (one, other)]
            )
            wrapper = types.SimpleNamespace(
                model=model,
                metrics_name="depth",
                metrics_modes=("", "_pp", "_gt", "_pp_gt"),
                config=types.SimpleNamespace(model=types.SimpleNamespace(params=params)),
            )
            depth = torch.from_numpy(maps[camera]).float()[None, None]
            batch = {"rgb": torch.zeros(1, 3, *inputs.NETWORK), "depth": depth}
            rows.append(module.ModelWrapper.evaluate_depth(wrapper, batch)["metrics"])
    names = {"metric": "", "metric mirrored": "_pp", "median": "_gt", "median mirrored": "_pp_gt"}
    return {
        name: torch.stack([row[f"depth{mode}"] for row in rows]).double().mean(0).tolist()
        for name, mode in names.items()
    }


@contextlib.contextmanager
def vfdepth(peers: Path):
    """Its packages have no need of what their `__init__` imports."""
    with importing_from(peers / "VFDepth"):
        for name in ("dataset", "utils", "models", "trainer"):
            sys.modules[name] = Anything(name)
            sys.modules[name].__path__ = [str(peers / "VFDepth" / name)]
        yield


def of_vfdepth(peers: Path, truth: list, dataset: str, masks: Path) -> dict[str, list[float]]:
    with importing_from(peers / "packnet-sfm"):
        augmentations = importlib.import_module("packnet_sfm.datasets.augmentations")
    with vfdepth(peers):
        algorithm, trainer, logger, data_util = (
            importlib.import_module(name)
            for name in (
                "models.vfdepth",
                "trainer.vfdepth_trainer",
                "utils.logger",
                "dataset.data_util",
            )
        )
    direct, _ = inputs.make_predictions()
    transform = types.SimpleNamespace(keywords={"image_shape": inputs.NETWORK})
    samples = []
    for maps, prediction in zip(truth, direct, strict=True):
        small = [augmentations.resize_depth_preserve(m, inputs.NETWORK)[..., 0] for m in maps]
        grey = [
            data_util.mask_loader_scene(masks.parent, masks.name, camera)
            for camera in inputs.CAMERAS[dataset]
        ]
        of_cameras = [data_util.transform_mask_sample({"mask": g}, transform)["mask"] for g in grey]
        samples.append(
            {
                "depth": torch.from_numpy(np.stack(small)[:, None]).float(),
                "mask": torch.stack(of_cameras),
                "prediction": torch.from_numpy(prediction),
            }
        )
    algorithm.construct_dataset = lambda *_, **__: samples
    model = types.SimpleNamespace(
        height=inputs.NETWORK[0], width=inputs.NETWORK[1], eval_batch_size=4, eval_num_workers=0,
        _dataloaders={}, load_weights=lambda: None, set_val=lambda: None,
    )  # fmt: skip
    algorithm.VFDepthAlgo.set_eval_dataloader(model, {})
    model.eval_dataloader = lambda: model._dataloaders["eval"]
    model.process_batch = lambda batch, _: (
        {("cam", i): {("depth", 0): batch["prediction"][:, i, None]} for i in range(2)},
        None,
    )
    names = ["abs_rel", "sq_rel", "rms", "log_rms", "a1", "a2", "a3"]
    log = types.SimpleNamespace(
        eval_min_depth=0, eval_max_depth=inputs.MAX_DEPTH_M[dataset], num_cams=2,
        _metric_names=names,
    )  # fmt: skip
    found = {}
    log.compute_depth_losses = lambda *batch: logger.Logger.compute_depth_losses(log, *batch)
    log.print_perf = lambda figures, scale: found.update({scale: [*map(float, figures.values())]})
    runner = types.SimpleNamespace(
        syn_visualize=False, rank="cpu", logger=log, depth_metric_names=names
    )
    trainer.VFDepthTrainer.evaluate(runner, model)
    return found


def fingerprint(maps: list[list[np.ndarray]]) -> list[list[float]]:
    """Of each image's truth: pixels, and sums of depth, column times depth and row times depth."""
    rows = []
    for depth in (np.asarray(d, np.float64) for of_sample in maps for d in of_sample):
        row, column = np.nonzero(depth)
        values = depth[row, column].astype(np.float32).astype(np.float64)
        rows.append([len(row), values.sum(), (values * column).sum(), (values * row).sum()])
    return rows


def main(peers: Path) -> None:
    """Writes the file."""
    figures, truth = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for dataset in ("ddad", "nuscenes"):
            raw, masks = Path(folder) / dataset, Path(folder) / f"masks_{dataset}"
            inputs.write(dataset, raw)
            inputs.write_masks(masks, dataset)
            if dataset == "ddad":
                surround = vf = dgp_maps(peers)
            else:
                surround, vf = surrounddepth_maps(peers, raw), vfdepth_maps(peers, raw)
            truth[f"{dataset} surrounddepth"] = fingerprint(surround)
            truth[f"{dataset} vfdepth"] = fingerprint(vf)
            of_protocol = {
                "surrounddepth": of_runer(peers / "SurroundDepth", surround, dataset, False),
                "ssdepth": of_runer(peers / "SSDepth", surround, dataset, True),
                "vfdepth": of_vfdepth(peers, vf, dataset, masks),
                "packnet": of_packnet(peers, surround, dataset),
            }
            figures |= {
                f"{dataset} {protocol} {variant}": values
                for protocol, found in of_protocol.items()
                for variant, values in found.items()
            }
    about = {
        "how": "tests/reports/record_protocols.py on tests/fixtures/protocol_inputs.py",
        "functions": {
            f"{repository}/{file}": {"commit": commit, "functions": names}
            for repository, of_file in FILES.items()
            for file, (commit, names) in of_file.items()
        },
        "versions": {
            "torch": torch.__version__,
            "opencv": cv2.__version__,
            "numpy": np.__version__,
        },
        "figures": "abs_rel, sq_rel, rmse, rmse_log, a1, a2, a3",
        "truth": "of each image: pixels, sums of depth, of column * depth and of row * depth",
    }
    OUT.write_text(
        json.dumps({"about": about, "figures": figures, "truth": truth}, indent=1) + "\n"
    )


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    main(Path(sys.argv[1]))
