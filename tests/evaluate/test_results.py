"""Scores: merging, averaging, intervals over scenes, comparison and tables."""

import numpy as np
import pytest
from result_scores import ABOUT, CAMERAS, SCENES, fill, filled, write

from fsmde_jax.errors import UserError
from fsmde_jax.evaluate import averages, comparison, metrics, results, scoring, tables
from fsmde_jax.evaluate.protocols import PROTOCOLS


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_each_protocol_averages_its_own_way(protocol):
    scores, rows = filled(protocol)
    images = {c: [s[c] / n[c] for _, s, n in rows if n[c]] for c in (0, 1)}
    expected = {
        "ssdepth": np.mean([np.mean(images[0]), np.mean(images[1])]),
        "packnet": np.mean(images[0] + images[1]),
        "vfdepth": np.mean([np.mean([s[c] / n[c] for c in (0, 1) if n[c]]) for _, s, n in rows]),
    }
    expected["surrounddepth"] = expected["ssdepth"]
    assert len(images[0]) == 12 and len(images[1]) == 8
    found = scores.compute(SCENES)
    assert found["mean"]["abs_rel"] == pytest.approx(expected[protocol], rel=1e-12)
    assert found["images"] == {"A": 12, "B": 8}


def test_the_order_of_images_changes_nothing():
    whole, _ = filled()
    shuffled = averages.Scores.empty(CAMERAS, 4, PROTOCOLS["ssdepth"])
    images = []
    recorder = averages.Scores.empty(CAMERAS, 4, PROTOCOLS["ssdepth"])
    recorder.add = lambda *image: images.append(image)
    fill(recorder)
    for image in images[::-1]:
        shuffled.add(*image)
    np.testing.assert_allclose(shuffled.sums, whole.sums, rtol=1e-12)
    assert shuffled.compute(SCENES)["mean"] == pytest.approx(whole.compute(SCENES)["mean"])


def test_groups_wait_for_all_of_theirs():
    groups = scoring.Groups(np.array([0, 0, 1, 0]))
    assert groups.add(3, "d") is None
    assert groups.add(2, "c") == {2: "c"}
    assert groups.add(0, "a") is None
    assert groups.add(1, "b") == {0: "a", 1: "b", 3: "d"}


def test_nothing_to_average_is_said():
    with pytest.raises(UserError, match="no image had a valid LiDAR pixel"):
        averages.Scores.empty(CAMERAS, 4, PROTOCOLS["packnet"]).compute(SCENES)


def test_one_scene_has_no_interval():
    scores = averages.Scores.empty(CAMERAS, 1, PROTOCOLS["ssdepth"])
    scores.add(0, np.ones((2, 4, 7)), np.ones((2, 4)))
    found = scores.compute(("only",))
    assert found["interval"] is None
    assert "±" not in tables.mean_table({"m": found})


def test_comparison_is_paired_and_read_back_from_files(tmp_path):
    scores, _ = filled()
    better, _ = filled(factor=0.9)
    first, second = write(tmp_path / "a", scores), write(tmp_path / "b", better)
    row = comparison.compare(first, second)["abs_rel"]
    assert row["percent"] == pytest.approx(-10)
    assert row["first"] == pytest.approx(scores.compute(SCENES)["mean"]["abs_rel"])
    low, high = row["interval"]
    # Ten per cent better in every image: far tighter than either mean by itself.
    own = first["methods"]["m"]["interval"]["abs_rel"]
    assert low < row["difference"] < high < 0
    assert high - low < 0.3 * (own[1] - own[0])
    text = tables.comparison_table(comparison.compare(first, second), ["a", "b"])
    assert f"| {row['difference']:+.4f} |" in text and "| -10.0 |" in text


@pytest.mark.parametrize("average", ["cameras", "images", "pools"])
def test_a_comparison_with_itself_is_zero(tmp_path, average):
    protocol = next(name for name, p in PROTOCOLS.items() if p.average == average)
    scores, _ = filled(protocol)
    content = write(tmp_path, scores, average=average)
    for name, row in comparison.compare(content, content).items():
        assert row["difference"] == 0 and row["interval"] == [0, 0], name
        assert row["first"] == pytest.approx(scores.compute(SCENES)["mean"][name])


def test_other_settings_or_images_are_refused(tmp_path):
    scores, _ = filled()
    fewer, _ = filled(samples=2)
    one, other = write(tmp_path / "a", scores), write(tmp_path / "b", scores, protocol="packnet")
    with pytest.raises(UserError, match=r"protocol is 'ssdepth'.*'packnet' in the second"):
        comparison.compare(one, other)
    with pytest.raises(UserError, match="20 in 4 scenes and 12 in 4"):
        comparison.compare(one, write(tmp_path / "c", fewer))
    (tmp_path / "d.json").write_text("{}")
    with pytest.raises(UserError, match=r"d\.json is no results file"):
        results.read(tmp_path / "d.json")


@pytest.mark.parametrize(
    ("setting", "other"),
    [
        ("mirroring", "ramps"),
        ("scaling", "median_image"),
        ("lidar_rule", "vfdepth"),
        ("short_batch", "left out"),
        ("mask_rule", "network size, above 0"),
        ("min_depth_m", 0.0),
        ("max_depth_m", 80.0),
    ],
)
def test_whatever_changes_a_figure_keeps_results_apart(tmp_path, setting, other):
    scores, _ = filled()
    one = write(tmp_path / "a", scores)
    with pytest.raises(UserError, match=rf"cannot be compared: {setting} is .*{other}"):
        comparison.compare(one, write(tmp_path / "b", scores, **{setting: other}))


def test_a_method_of_another_scaling_than_the_first_is_told_apart():
    scores, _ = filled()
    found = scores.compute(SCENES)
    metric, median = (
        {"about": ABOUT, "methods": {"m": {**found, "scaling": scaling}}}
        for scaling in ("metric", "median_image")
    )
    with pytest.raises(UserError, match="scaling is 'metric' in the first, 'median_image' in"):
        comparison.compare(metric, median)


@pytest.mark.parametrize(
    ("protocol", "text", "now", "mirroring"),
    [
        ("surrounddepth", "LiDAR, 0.3 to 80 m, no masks; as", "ssdepth", "none"),
        ("surrounddepth", "LiDAR, 0.3 to 80 m, no, averaged with the mirror image", None, "mean"),
        ("vfdepth", "LiDAR, 0 to 80 m, no masks; as predicted", "vfdepth", "none"),
    ],
)
def test_figures_of_before_are_called_by_what_they_are(tmp_path, protocol, text, now, mirroring):
    scores, _ = filled()
    settings = {"protocol": protocol, "average": "cameras", "dataset": "nuscenes", "masks": "DIR"}
    about = {**ABOUT, "settings": settings, "text": text}
    results.write(tmp_path, about, {"m": scores.compute(SCENES)})
    found = results.read(tmp_path)
    read = found["about"]["settings"]
    assert read["protocol"] == (now or "ssdepth") and read["mirroring"] == mirroring
    assert read["min_depth_m"] == (0.0 if protocol == "vfdepth" else 0.3)
    assert read["lidar_rule"] == "nuscenes-devkit"
    assert read["mask_rule"] == "own size, above 127"
    assert read["short_batch"] == ("counted" if protocol == "vfdepth" else "none")
    mirrored = write(tmp_path / "new", scores, protocol="surrounddepth", mirroring="ramps")
    with pytest.raises(UserError, match="mirroring is "):
        comparison.compare(found, mirrored)


@pytest.mark.parametrize("scenes", [8, 30])
def test_paired_intervals_cover_the_truth_at_their_rate(scenes):
    """400 simulated benchmarks: scenes differ in level, effect and length, effects are skewed."""
    rng = np.random.default_rng(scenes)
    # E[level * effect] of the lognormal and the shifted exponential below.
    truth = -0.05 * np.exp(-1.6 + 0.5**2 / 2)
    covered = 0
    for _ in range(400):
        images = rng.integers(20, 60, scenes)
        level = rng.lognormal(-1.6, 0.5, scenes)
        effect = -0.05 + rng.normal(0, 0.08, scenes) + rng.exponential(0.05, scenes) - 0.05
        base = level + rng.normal(0, 0.02, scenes)
        pair = []
        for value in (base, base + level * effect):
            scores = averages.Scores.empty(("A",), scenes, PROTOCOLS["ssdepth"])
            scores.sums[:, 0, -1, :] = (value * images)[:, None]
            scores.counts[:, 0, -1] = images
            scores.sums[:, 1], scores.counts[:, 1] = scores.sums[:, 0], scores.counts[:, 0]
            names = [str(s) for s in range(scenes)]
            pair.append({"about": ABOUT, "methods": {"m": scores.compute(names)}})
        low, high = comparison.compare(*pair)["abs_rel"]["interval"]
        covered += low < truth < high
    # 400 draws at 95 % stay between 92 and 98 % but for one in a hundred times.
    assert 0.92 <= covered / 400 <= 0.98, covered


def test_tables_name_methods_cameras_ranges_and_scenes():
    scores, _ = filled()
    scores.add_cross_view(0, np.array([0.1, 0.2]))
    scores.add_cross_view(1, np.array([0.3, np.nan]))
    found = scores.compute(SCENES)
    assert found["cross_view"] == {"scale_spread": 0.2, "overlap_disagreement": 0.2}
    text = tables.describe(ABOUT, {"student": found})
    for part in (
        "| student |",
        "| A |",
        "| 20-40 m |",
        "| from 80 m |",
        "| three |",
        "scale_spread",
    ):
        assert part in text
    assert "| three |" not in tables.describe(ABOUT, {"student": found}, scenes=False)
    assert set(found["mean"]) == set(metrics.NAMES)
