import json

import numpy as np

from fsmde_jax.data import lidar
from fsmde_jax.data.readers import dgp, recording


def rotate(q, v):
    """The vector v turned by the unit quaternion q = (w, x, y, z)."""
    w, u = q[0], q[1:]

    def cross(a, b):
        return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])

    t = cross(u, v)
    s = cross(u, t)
    return [v[i] + 2.0 * (w * t[i] + s[i]) for i in range(3)]


def reference_depth(points, lidar_pose, camera_pose, k, height, width):
    """Pixel -> depth, point after point in the cloud's order; poses are (quaternion, position)."""
    (ql, tl), (qc, tc) = lidar_pose, camera_pose
    inverse = (qc[0], -qc[1], -qc[2], -qc[3])
    depth = {}
    for point in points:
        world = [a + b for a, b in zip(rotate(ql, point), tl, strict=True)]
        x, y, z = rotate(inverse, [a - b for a, b in zip(world, tc, strict=True)])
        if z > 0:
            u, v = int(k["fx"] * x / z + k["cx"]), int(k["fy"] * y / z + k["cy"])
            if 0 <= u < width and 0 <= v < height:
                depth[u, v] = z
    return depth


def check_equal(uv, depth_m, expected):
    found = {(int(u), int(v)): z for (u, v), z in zip(uv, depth_m, strict=True)}
    assert len(found) == len(uv)
    assert found.keys() == expected.keys()
    pixels = list(expected)
    np.testing.assert_allclose(
        [found[pixel] for pixel in pixels], [expected[pixel] for pixel in pixels], rtol=1e-11
    )


def raw_pose(pose):
    q = [pose["rotation"][name] for name in ("qw", "qx", "qy", "qz")]
    norm = sum(value * value for value in q) ** 0.5
    return [value / norm for value in q], [pose["translation"][axis] for axis in "xyz"]


def test_real_sample_equals_the_reference_on_every_camera(shared_dir):
    folder = shared_dir / "real" / "dgp" / "scene_01"
    path = next(folder.glob("scene_*.json"))
    raw = json.loads(path.read_text())
    data = {datum["key"]: datum for datum in raw["data"]}
    calibration = json.loads(next((folder / "calibration").glob("*.json")).read_text())
    intrinsics = dict(zip(calibration["names"], calibration["intrinsics"], strict=True))
    scene = dgp.Scene(path)
    contested = 0
    for index, entry in enumerate(raw["samples"]):
        sample = scene.sample(index)
        of_sensor = {data[key]["id"]["name"]: data[key]["datum"] for key in entry["datum_keys"]}
        cloud = of_sensor.pop("LIDAR")["point_cloud"]
        points = np.load(folder / cloud["filename"])["data"][:, :3]
        cameras = {camera.name: camera for camera in sample.cameras}
        assert cameras.keys() == of_sensor.keys()
        for name, datum in of_sensor.items():
            image = datum["image"]
            camera = cameras[name]
            uv, depth_m = lidar.project_points(
                dgp.read_points(sample.lidar),
                sample.lidar.world_from_lidar,
                camera.world_from_camera,
                camera.intrinsics,
                camera.size,
            )
            expected = reference_depth(
                points.tolist(),
                raw_pose(cloud["pose"]),
                raw_pose(image["pose"]),
                intrinsics[name],
                image["height"],
                image["width"],
            )
            assert len(expected) > 4000
            check_equal(uv, depth_m, expected)
            contested += expected != reference_depth(
                points[::-1].tolist(),
                raw_pose(cloud["pose"]),
                raw_pose(image["pose"]),
                intrinsics[name],
                image["height"],
                image["width"],
            )
    assert contested, "no pixel has two points, so nothing shows which one wins"


def pixel_points(uvz, k):
    """Camera-frame points that project to the given coordinates."""
    uvz = np.asarray(uvz, float)
    xy = (uvz[:, :2] - [k["cx"], k["cy"]]) / [k["fx"], k["fy"]]
    return np.column_stack([xy * uvz[:, 2:], uvz[:, 2]])


def test_synthetic_cloud_equals_the_reference_and_shows_the_rule():
    k = {"fx": 25.0, "fy": 24.0, "cx": 23.7, "cy": 15.2}
    matrix = np.array([[k["fx"], 0, k["cx"]], [0, k["fy"], k["cy"]], [0, 0, 1]])
    rng = np.random.default_rng(0)
    cloud = pixel_points(rng.uniform([-5, -5, -3], [53, 35, 60], (20_000, 3)), k)
    edges = [
        [10.5, 10.5, 5.0],
        [10.7, 10.2, 9.0],  # farther, but later: it wins
        [-0.5, 3.5, 4.0],  # truncated to column 0
        [47.9, 29.9, 3.0],
        [-1.5, 20.5, 3.0],
        [48.5, 20.5, 3.0],
        [20.5, 30.5, 3.0],
        [20.5, 20.5, -3.0],
    ]
    for points in (cloud, pixel_points(edges, k), np.zeros((1, 3)), cloud * 1e-300):
        uv, depth_m = lidar.project_points(points, np.eye(4), np.eye(4), matrix, (30, 48))
        identity = ((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
        check_equal(uv, depth_m, reference_depth(points.tolist(), identity, identity, k, 30, 48))
        assert (np.diff(uv[:, 1] * 48 + uv[:, 0]) > 0).all(), "row-major order"
    uv, depth_m = lidar.project_points(
        pixel_points(edges, k), np.eye(4), np.eye(4), matrix, (30, 48)
    )
    assert uv.tolist() == [[0, 3], [10, 10], [47, 29]]
    np.testing.assert_allclose(depth_m, [4.0, 9.0, 3.0])


def test_moving_sensors_far_from_the_origin():
    k = {"fx": 25.0, "fy": 24.0, "cx": 23.7, "cy": 15.2}
    matrix = np.array([[k["fx"], 0, k["cx"]], [0, k["fy"], k["cy"]], [0, 0, 1]])
    rng = np.random.default_rng(1)
    points = rng.uniform(-40, 40, (5_000, 3))
    poses, matrices = [], []
    for quaternion in rng.normal(size=(2, 4)):
        unit = quaternion / np.linalg.norm(quaternion)
        position = np.array([2000.0, -1500.0, 30.0]) + rng.normal(size=3)
        poses.append((unit.tolist(), position.tolist()))
        world_from_sensor = np.eye(4)
        world_from_sensor[:3, :3] = recording.rotation_from_quaternion(unit)
        world_from_sensor[:3, 3] = position
        matrices.append(world_from_sensor)
    uv, depth_m = lidar.project_points(points, *matrices, matrix, (30, 48))
    check_equal(uv, depth_m, reference_depth(points.tolist(), *poses, k, 30, 48))


def test_points_next_to_the_cameras_plane_do_not_overflow():
    points = np.array([[1.0, 1.0, 1e-310], [0.0, 0.0, 2.0]])
    uv, depth_m = lidar.project_points(points, np.eye(4), np.eye(4), np.eye(3), (4, 4))
    assert uv.tolist() == [[0, 0]] and depth_m.tolist() == [2.0]


def test_each_rule_of_nuscenes_keeps_its_own_points():
    """Pixels of 30 rows and 48 columns, by hand; a later point wins its pixel."""
    edges = [
        [10.4, 10.4, 5.0],
        [9.6, 9.6, 0.5],  # nearer than the devkit draws, and later: it wins
        [-0.4, 3.0, 4.0],  # rounds to column 0, lies outside before
        [0.2, 5.0, 6.0],
        [-0.3, 5.2, 7.0],  # SurroundDepth's truth of that pixel
        [47.3, 29.4, 3.0],  # beyond width - 1
        [47.5, 20.0, 3.0],  # half to even: 48
        [-0.6, 20.0, 3.0],
        [20.0, 20.0, -3.0],
    ]
    k = {"fx": 25.0, "fy": 24.0, "cx": 23.0, "cy": 15.0}
    matrix = np.array([[k["fx"], 0, k["cx"]], [0, k["fy"], k["cy"]], [0, 0, 1]])
    where = (pixel_points(edges, k), np.eye(4), np.eye(4), matrix, (30, 48))
    expected = {
        "surrounddepth": {(0, 3): 4.0, (0, 5): 7.0, (10, 10): 0.5, (47, 29): 3.0},
        "vfdepth": {(0, 5): 6.0, (10, 10): 0.5},
    }
    uv, depth_m, rules = lidar.project_for_rules(*where)
    sample = {  # of two images, the second without its first point
        "lidar_counts": np.array([5, 4], np.int32),
        "lidar_uv": np.concatenate([uv, uv[1:]]),
        "lidar_depth_m": np.concatenate([depth_m, depth_m[1:]]),
        "lidar_rules": np.concatenate([rules, rules[1:]]),
    }
    assert uv.tolist() == [[0, 3], [0, 5], [0, 5], [10, 10], [47, 29]]
    assert rules.tolist() == [0b01, 0b10, 0b01, 0b11, 0b01]
    for rule, of_rule in expected.items():
        check_equal(*lidar.project_points(*where, rule), of_rule)
        kept = lidar.of_rule(sample, rule)
        assert kept["lidar_counts"].tolist() == [len(of_rule), len(of_rule) - ((0, 3) in of_rule)]
        first, _ = lidar.slices_of(kept)
        check_equal(kept["lidar_uv"][first], kept["lidar_depth_m"][first], of_rule)
        assert len(kept["lidar_rules"]) == len(kept["lidar_uv"]) == kept["lidar_counts"].sum()


def test_a_point_by_dgps_rule_is_of_every_rule():
    sample = {
        "lidar_counts": np.array([2], np.int32),
        "lidar_uv": np.array([[1, 2], [3, 4]], np.uint16),
        "lidar_depth_m": np.array([5.0, 6.0], np.float32),
        "lidar_rules": np.full(2, lidar.ALL_RULES, np.uint8),
    }
    for rule in lidar.RULES:
        for name, values in lidar.of_rule(sample, rule).items():
            np.testing.assert_array_equal(values, sample[name], err_msg=name)
