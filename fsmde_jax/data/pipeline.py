"""Grain: prepared samples to sharded batches on the devices.

What a batch holds: `data/batch.py`.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from fsmde_jax import files, rig
from fsmde_jax.config import ConfigError
from fsmde_jax.data import augment, lidar, prepared
from fsmde_jax.data.batch import Batch
from fsmde_jax.data.masks import Masks
from fsmde_jax.data.teacher_cache import TeacherCache

Sample = dict[str, np.ndarray]
# Fields of a prepared sample that not every job asks for, and what a batch calls them.
_OPTIONAL = {"prepared_images": "teacher_image", "prediction": "prediction", "covered": "covered"}


def open_data(config: ConfigDict, split: str) -> tuple[prepared.PreparedSplit, tuple[str, ...]]:
    """The prepared split and the cameras of its rig in the config's order, or in its own order."""
    source = prepared.open_split(
        pathlib.Path(config.data_dir), config.dataset, config.config_name, split
    )
    found = source.rig["cameras"]
    named = tuple(config.cameras) or tuple(found)
    unknown = sorted(set(found) - set(named))
    if unknown:
        raise ConfigError(
            f"config.data.cameras is the rig {tuple(config.cameras)}, but the prepared dataset "
            f"{source.rig['dataset']!r} in {source.directory} was recorded with {tuple(found)}: "
            "name a config for that rig, or set config.data.cameras"
        )
    return source, tuple(name for name in named if name in found)


def train_batches(
    config: ConfigDict,
    seed: int,
    sharding: NamedSharding,
    with_dense: bool = False,
    with_prepared: bool = False,
    stored: TeacherCache | None = None,
    first_step: int = 0,
) -> grain.DatasetIterator:
    """Endless shuffled, augmented batches, each a function of the seed and its number.

    How many processes read or train changes nothing but where in a batch a sample is.

    Args:
      config: the run's `data` section.
      seed: of order and augmentation.
      sharding: of the batches.
      with_dense: also `dense_depth_m`.
      with_prepared: also `teacher_image`.
      stored: also the teacher's outputs in this cache.
      first_step: how many batches are left out, since a run has had them.
    """
    source, cameras = open_data(config, config.train_split)
    if not with_dense and not source.rig["max_points_per_image"]:
        raise ConfigError(
            f"{source.directory} has no LiDAR points, and training learns metres from them: "
            "prepare a recording with LiDAR (of the same rig, to use the student on this one)"
        )
    to_rig = functools.partial(
        place_on_rig,
        cameras=cameras,
        num_points=config.points_per_image,
        with_dense=with_dense,
    )
    dataset = (
        grain.MapDataset.source(training_samples(source, config))
        .seed(seed)
        .shuffle()
        .repeat()
        .map(functools.partial(read_sample, source))
        .map(functools.partial(hide_labels, labelled=labelled_samples(source, config)))
        .map(labels_of(source, (config.min_depth_m, config.max_depth_m), config.masks))
        .map(functools.partial(shrink, factor=config.downscale, keep_prepared=with_prepared))
        .random_map(lambda sample, rng: to_rig(sample, rng=rng))
        .random_map(functools.partial(augment_sample, config=config.to_dict()))
        .map(add_neighbours)
        .map(functools.partial(add_stored, cache=stored))
        .slice(slice(jax.process_index(), None, jax.process_count()))
        .batch(
            _per_process(config.batch_size, "config.data.batch_size", sharding),
            # An endless dataset has no remainder; without this Grain's length overflows.
            drop_remainder=True,
        )
        .slice(slice(first_step, None))
    )
    return iter(_to_devices(dataset, config, sharding))


def eval_batches(
    config: ConfigDict,
    split: str,
    sharding: NamedSharding,
    with_dense: bool = False,
    with_prepared: bool = False,
    indices: Sequence[int] | None = None,
    flipped: bool = False,
    change: Callable[[dict], dict] = lambda sample: sample,
) -> grain.DatasetIterator:
    """Samples once, in order, with all LiDAR points; short batches are padded.

    Args:
      config: the run's `data` section.
      split: of the prepared dataset.
      sharding: of the batches.
      with_dense: also `dense_depth_m`.
      with_prepared: also `teacher_image`.
      indices: which samples; None is all.
      flipped: their mirror images.
      change: of every sample as it was prepared (see `prepared.PreparedSplit`), before it is
        placed on the rig.
    """
    source, cameras = open_data(config, split)
    batch_size = _per_process(config.eval_batch_size, "config.data.eval_batch_size", sharding)
    chosen = list(range(len(source)) if indices is None else indices)
    chosen += [-1] * (-len(chosen) % config.eval_batch_size)
    to_rig = functools.partial(
        place_on_rig,
        cameras=cameras,
        num_points=source.rig["max_points_per_image"],
        with_dense=with_dense,
        with_native=True,
    )
    dataset = (
        grain.MapDataset.source(chosen)[jax.process_index() :: jax.process_count()]
        .map(functools.partial(read_or_pad, source))
        .map(functools.partial(shrink, factor=config.downscale, keep_prepared=with_prepared))
        .map(change)
        .map(to_rig)
        .map(augment.flip_rig if flipped else lambda sample: sample)
        .map(add_neighbours)
        .batch(batch_size)
    )
    return iter(_to_devices(dataset, config, sharding))


def _to_devices(
    dataset: grain.MapDataset, config: ConfigDict, sharding: NamedSharding
) -> grain.IterDataset:
    """Reads ahead with threads (or processes) and keeps two batches on the devices."""
    threads = config.num_threads
    stream = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=16)
    )
    if config.num_workers:
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=config.num_workers), _start_worker
        )
    stream = stream.map(functools.partial(put_on_devices, sharding=sharding))
    return grain.experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=2)


def _start_worker(_index: int, _count: int) -> None:
    """A process that reads ends with the one that trains, however that ends."""
    files.end_with_parent_process()


def put_on_devices(batch: Sample, sharding: NamedSharding) -> Batch:
    """This process's share of the batch becomes part of the global arrays."""
    return jax.tree.map(functools.partial(jax.make_array_from_process_local_data, sharding), batch)


def _per_process(batch_size: int, key: str, sharding: NamedSharding) -> int:
    devices = sharding.mesh.size
    if batch_size % devices:
        raise ConfigError(
            f"{key}={batch_size} must be a multiple of the number of devices, {devices}"
        )
    return batch_size // jax.process_count()


def read_sample(source: prepared.PreparedSplit, index: int) -> dict:
    """A prepared sample with its index in the split."""
    return {**source[int(index)], "sample_index": np.int32(index)}


def read_or_pad(source: prepared.PreparedSplit, index: int) -> dict:
    """For index -1 a sample without cameras."""
    if index >= 0:
        return read_sample(source, index)
    no_images = np.zeros((0, *source.rig["prepared_size"], 3), np.uint8)
    sample = {**source.read(0, pictures=False), "images": no_images}
    return {**sample, "camera_names": [], "sample_index": np.int32(-1)}


def labelled_samples(source: prepared.PreparedSplit, config: ConfigDict) -> int:
    """How many samples of the training split, its first ones, have labels."""
    counts = list(source.scenes.values())
    if not 0 <= config.labelled_scenes <= len(counts):
        raise ConfigError(
            f"config.data.labelled_scenes is {config.labelled_scenes}; {source.directory} has "
            f"{len(counts)} scenes to train on (0: all)"
        )
    labelled = sum(counts[: config.labelled_scenes or None])
    if not labelled:
        raise ConfigError(
            f"{source.directory} has no samples to train on in its "
            f"{f'first {config.labelled_scenes} scenes' if config.labelled_scenes else 'scenes'}"
            ": see what was skipped in prepare.json beside it"
            + (", or raise config.data.labelled_scenes" if config.labelled_scenes else "")
        )
    return labelled


def training_samples(source: prepared.PreparedSplit, config: ConfigDict) -> list[int]:
    """Indices of an epoch; labelled samples are repeated until they have their share of it."""
    labelled = labelled_samples(source, config)
    unlabelled = list(range(labelled, len(source))) if config.keep_unlabelled else []
    odds = config.labelled_share / (1 - config.labelled_share)
    repeats = max(1, round(odds * len(unlabelled) / labelled))
    return list(range(labelled)) * repeats + unlabelled


def hide_labels(sample: dict, labelled: int) -> dict:
    """The sample without its LiDAR points unless it is among the first `labelled`."""
    if sample["sample_index"] < labelled:
        return sample
    return {**sample, "lidar_depth_m": np.zeros_like(sample["lidar_depth_m"])}


def labels_of(
    source: prepared.PreparedSplit, depth_range_m: tuple[float, float], masks: str
) -> Callable[[dict], dict]:
    """What leaves a prepared sample those LiDAR points that may supervise.

    Before points are drawn, so that none is drawn in vain.

    Args:
      source: whose samples they are.
      depth_range_m: what the networks can say; points outside are left out.
      masks: folder of masks of the own car, whose points are left out; "" for none.
    """
    found = Masks.read(pathlib.Path(masks), source) if masks else None
    return functools.partial(_keep_labels, masks=found, depth_range_m=depth_range_m)


def _keep_labels(sample: dict, masks: Masks | None, depth_range_m: tuple[float, float]) -> dict:
    if masks is not None:
        sample = masks.hide_own_car(sample)
    depth_m = sample["lidar_depth_m"]
    return lidar.keep_points(sample, (depth_m > depth_range_m[0]) & (depth_m < depth_range_m[1]))


def shrink(sample: dict, factor: int, keep_prepared: bool = False) -> dict:
    """A prepared sample with images (and intrinsics) smaller by a whole factor, box-filtered.

    `keep_prepared` keeps the images as they were as `prepared_images`.
    """
    n, height, width, _ = sample["images"].shape
    if keep_prepared:
        sample = {**sample, "prepared_images": sample["images"]}
    if factor == 1:
        return sample
    if height % factor or width % factor:
        raise ConfigError(
            f"config.data.downscale={factor} must divide the prepared size {height}x{width}"
        )
    blocks = sample["images"].reshape(n, height // factor, factor, width // factor, factor, 3)
    out = {**sample, "images": np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)}
    size = out["images"].shape[1:3]
    out["intrinsics"] = rig.scale_intrinsics(sample["intrinsics"], (height, width), size)
    if "dense_depth_m" in sample:
        out["dense_depth_m"] = sample["dense_depth_m"][
            :, factor // 2 :: factor, factor // 2 :: factor
        ]
    return out


def place_on_rig(
    sample: dict,
    cameras: tuple[str, ...],
    num_points: int,
    with_dense: bool = False,
    with_native: bool = False,
    rng: np.random.Generator | None = None,
) -> Sample:
    """The cameras of a sample in the rig's slots, absent ones masked; points padded.

    Args:
      num_points: LiDAR points an image; where there are more, `rng` draws a subset.
      with_native: also the points' native pixels.
    """
    height, width = sample["images"].shape[1:3]
    n = len(cameras)
    out = {
        "image": np.zeros((n, height, width, 3), np.uint8),
        "camera_mask": np.zeros(n, bool),
        "intrinsics": np.tile(np.eye(3, dtype=np.float32), (n, 1, 1)),
        "vehicle_from_camera": np.tile(np.eye(4, dtype=np.float32), (n, 1, 1)),
        "lidar_xy": np.zeros((n, num_points, 2), np.float32),
        "lidar_depth_m": np.zeros((n, num_points), np.float32),
        "sample_index": sample["sample_index"],
    }
    if with_dense:
        if "dense_depth_m" not in sample:
            raise ConfigError(
                f"sample {sample['sample_id']!r} has no dense truth, but this run needs it "
                "(config.task='foundation', config.teacher.weights='truth' or "
                "config.objective.supervision='dense'): only miniature worlds made with "
                "config.world.dense_depth=True have it"
            )
        out["dense_depth_m"] = np.zeros((n, height, width), np.float32)
    if with_native:
        out["lidar_uv"] = np.zeros((n, num_points, 2), np.int32)
        out["native_size"] = np.ones((n, 2), np.int32)
    optional = {name: field for name, field in _OPTIONAL.items() if name in sample}
    for name, field in optional.items():
        out[field] = np.zeros((n, *sample[name].shape[1:]), sample[name].dtype)
    of_image = lidar.slices_of(sample)
    for i, name in enumerate(sample["camera_names"]):
        slot = cameras.index(name)
        out["image"][slot] = sample["images"][i]
        for key, field in optional.items():
            out[field][slot] = sample[key][i]
        out["camera_mask"][slot] = True
        out["intrinsics"][slot] = sample["intrinsics"][i]
        out["vehicle_from_camera"][slot] = sample["vehicle_from_camera"][i]
        if with_dense:
            out["dense_depth_m"][slot] = sample["dense_depth_m"][i]
        chosen = np.arange(of_image[i].start, of_image[i].stop)
        if len(chosen) > num_points:
            if rng is None:
                raise ValueError(
                    f"sample {sample['sample_id']!r} has {len(chosen)} LiDAR points in {name}, "
                    f"more than the {num_points} its dataset's rig.json promises: prepare it again"
                )
            chosen = np.sort(rng.choice(chosen, num_points, replace=False))
        native = sample["native_sizes"][i].astype(np.float32)
        scale = np.array([width / native[1], height / native[0]], np.float32)
        xy = (sample["lidar_uv"][chosen].astype(np.float32) + 0.5) * scale
        out["lidar_xy"][slot, : len(chosen)] = xy
        out["lidar_depth_m"][slot, : len(chosen)] = sample["lidar_depth_m"][chosen]
        if with_native:
            out["lidar_uv"][slot, : len(chosen)] = sample["lidar_uv"][chosen]
            out["native_size"][slot] = sample["native_sizes"][i]
    return out


def augment_sample(sample: Sample, rng: np.random.Generator, config: dict) -> Sample:
    """Colour jitter, zoom and horizontal flip by the config's `data` section."""
    if config["jitter"] > 0:
        jittered = augment.colour_jitter(
            sample["image"], config["jitter"], config["jitter_per_camera"], rng
        )
        sample = {**sample, "image": jittered}
    if config["zoom"] > 1:
        sample = augment.zoom_rig(sample, config["zoom"], rng)
    flips = rng.random() < config["flip_probability"]
    sample = augment.flip_rig(sample) if flips else sample
    return {**sample, "flipped": np.bool_(flips)}


def add_stored(sample: Sample, cache: TeacherCache | None) -> Sample:
    """The teacher's stored outputs of the sample as it is augmented."""
    if cache is None:
        return sample
    return sample | cache.entry(int(sample["sample_index"]), bool(sample["flipped"]))


def add_neighbours(sample: Sample) -> Sample:
    """Adjacent cameras from the geometry, after any flip."""
    neighbour, mask = rig.ring_neighbours(
        sample["vehicle_from_camera"],
        sample["intrinsics"],
        sample["image"].shape[2],
        sample["camera_mask"],
    )
    return {**sample, "neighbour": neighbour, "neighbour_mask": mask}
