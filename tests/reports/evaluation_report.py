"""How fast an evaluation is beside plain numpy on full-resolution maps, and whether they agree.

    PYTHONPATH=tests/fixtures python tests/reports/evaluation_report.py \\
        > fsmde_jax/reports/evaluation.md

Random 384x640 predictions of six cameras against native 1936x1216 LiDAR pixels, as many points as
a sweep of DDAD leaves in an image, all in memory: reading files is not measured. The package
measures all samples; plain numpy (`protocol_reference.py`) a few, in turns with the package.
"""

import statistics
import time

import numpy as np
import protocol_reference

from fsmde_jax import markdown
from fsmde_jax.benchmark import timing
from fsmde_jax.config import default_config
from fsmde_jax.evaluate import metrics, protocols, scoring
from fsmde_jax.run import sharding

NATIVE, SIZE = (1216, 1936), (384, 640)
POINTS = 8_000  # a real image of DDAD's rig has 4,800 to 10,700
SAMPLES = 3_950  # of DDAD's validation split
DISTINCT = 16  # samples drawn; measured again and again
LIMITS_M = (0.1, 200.0)


def draw(rng: np.random.Generator, cameras: int) -> dict[str, np.ndarray]:
    """A batch of one sample; every camera's points in distinct pixels, row by row."""
    pixels = [np.sort(rng.choice(NATIVE[0] * NATIVE[1], POINTS, False)) for _ in range(cameras)]
    uv = np.stack([np.stack([p % NATIVE[1], p // NATIVE[1]], -1) for p in pixels])
    truth_m = np.exp(rng.uniform(np.log(2), np.log(220), (cameras, POINTS)))
    prediction_m = np.exp(rng.normal(3, 0.8, (cameras, *SIZE)))
    poses = np.tile(np.eye(4), (cameras, 1, 1))
    return {
        "image": np.zeros((1, cameras, *SIZE, 3), np.uint8),
        "camera_mask": np.ones((1, cameras), bool),
        "intrinsics": np.tile(np.diag([350.0, 350.0, 1.0]), (1, cameras, 1, 1)).astype(np.float32),
        "vehicle_from_camera": poses[None].astype(np.float32),
        "neighbour": (np.arange(cameras, dtype=np.int32)[None] + 1) % cameras,
        "neighbour_mask": np.ones((1, cameras), bool),
        "lidar_uv": uv[None].astype(np.int32),
        "native_size": np.tile(np.array(NATIVE, np.int32), (1, cameras, 1)),
        "lidar_depth_m": truth_m[None].astype(np.float32),
        "prediction": prediction_m[None].astype(np.float32),
    }


def plain(batches: list[dict], first: int, protocol: str) -> np.ndarray:
    """The figures of some samples by full maps in numpy."""
    samples = []
    for index, batch in enumerate(batches, start=first):
        for n in range(batch["prediction"].shape[1]):
            uv, truth_m = batch["lidar_uv"][0, n], batch["lidar_depth_m"][0, n]
            truth = protocol_reference.dense_truth(uv, truth_m, NATIVE)
            samples.append((("", index, n), batch["prediction"][0, n].astype(np.float64), truth))
    extra = [SIZE] if protocol == "vfdepth" else []
    return getattr(protocol_reference, protocol)(samples, "metric", *LIMITS_M, *extra)


def report(protocol: str) -> dict[str, str]:
    """A row: both rates, their ratio, and the largest difference of the figures."""
    config = default_config()
    config.evaluation.protocol = protocol
    cameras = tuple(config.data.cameras)
    mesh = sharding.make_mesh(config.mesh)
    rng = np.random.default_rng(0)
    batches = [draw(rng, len(cameras)) for _ in range(DISTINCT)]
    predictor = scoring.Predictor(lambda batch: batch["prediction"])
    described = protocols.PROTOCOLS[protocol]

    def scorer(count: int) -> scoring.Scorer:
        scenes = [(f"{first:06d}", min(79, count - first)) for first in range(0, count, 79)]
        return scoring.Scorer(config, predictor, described, scenes, cameras, mesh)

    few = scorer(DISTINCT)
    for index, batch in enumerate(batches):
        few.add({**batch, "sample_index": np.array([index], np.int32)})
    found = np.array([few.compute()["mean"][name] for name in metrics.NAMES])
    expected = plain(batches, 0, protocol)
    whole, ours, numpy_s = scorer(SAMPLES), [], []
    for index in range(SAMPLES):
        batch = {**batches[index % DISTINCT], "sample_index": np.array([index], np.int32)}
        start = time.perf_counter()
        whole.add(batch)
        ours.append(time.perf_counter() - start)
        if index % (SAMPLES // 20) == 0:
            start = time.perf_counter()
            plain([batches[index % DISTINCT]], index, protocol)
            numpy_s.append(time.perf_counter() - start)
    start = time.perf_counter()
    whole.compute()
    total = sum(ours[1:]) + time.perf_counter() - start  # the first one compiles
    rate, numpy_rate = (SAMPLES - 1) / total, 1 / statistics.median(numpy_s)
    return {
        "protocol": protocol,
        "samples / s": f"{rate:.1f}",
        f"{SAMPLES:,} samples (s)": f"{total:.0f}",
        "plain numpy, samples / s": f"{numpy_rate:.2f} (median of {len(numpy_s)})",
        "times faster": f"{rate / numpy_rate:.1f}",
        "largest relative difference": f"{np.max(np.abs(found / expected - 1)):.1e}",
    }


if __name__ == "__main__":
    rows = [report(protocol) for protocol in ("ssdepth", "packnet")]
    lines = [
        "# evaluation",
        "",
        "`python tests/reports/evaluation_report.py > fsmde_jax/reports/evaluation.md`",
        "",
    ]
    lines += [timing.machine(), "", __doc__.split("\n\n")[2].strip(), ""]
    lines += [markdown.table(list(rows[0]), [list(row.values()) for row in rows])]
    print("\n".join(lines))
