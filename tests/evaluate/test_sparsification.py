import json

import numpy as np
import pytest

from fsmde_jax.errors import UserError
from fsmde_jax.evaluate import sparsification


def test_curves_of_knowing_and_of_chance():
    rng = np.random.default_rng(0)
    error = rng.exponential(size=20_000)
    knows = sparsification.curves(error, -error)
    assert sparsification.ause(knows) == pytest.approx(0.0, abs=1e-12)
    assert (np.diff(knows["confidence"]) < 0).all()
    blind = sparsification.curves(error, rng.uniform(size=error.size))
    np.testing.assert_allclose(blind["confidence"], error.mean(), rtol=0.1)
    assert sparsification.ause(blind) == pytest.approx(
        sparsification.ause(blind, "chance"), abs=0.02
    )
    # Half of the pixels of an exponential distribution, the small ones: mean 1 - log 2.
    assert np.interp(0.5, sparsification.LEFT_OUT, knows["oracle"]) == pytest.approx(
        1 - np.log(2), rel=0.02
    )


def report(out, run="demo in demo"):
    error = np.linspace(0.1, 1.0, 200)
    return sparsification.write(sparsification.curves(error, 1 - error), "A title.", run, out)


def test_report_is_written(tmp_path):
    text = report(tmp_path / "out")
    with pytest.raises(UserError, match=r"sparsification\.json is there already"):
        report(tmp_path / "out", "demo in other")
    assert "| 50% | 0.32" in text
    assert json.loads((tmp_path / "out" / "sparsification.json").read_text())["ause"] == 0.0
    assert (tmp_path / "out" / "sparsification.png").stat().st_size > 1000
