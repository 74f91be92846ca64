"""One train step on eight devices equals the step on one."""

import jax
import numpy as np
import optax
import pytest
from tiny_run import prepare_recording, tiny_config

from fsmde_jax.data import pipeline
from fsmde_jax.run import sharding, state
from fsmde_jax.run.load import place_model
from fsmde_jax.tasks import make_task
from fsmde_jax.train import step as train_step


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(prepare_recording(tmp_path_factory.mktemp("sharding")))


class OneStep:
    """A train step on the first `devices` devices, from the same seed and the same batch."""

    def __init__(self, config, devices, fsdp=1):
        shape = (devices // fsdp, fsdp)
        self.mesh = jax.make_mesh(
            shape,
            ("data", "fsdp"),
            axis_types=(jax.sharding.AxisType.Auto,) * 2,
            devices=jax.devices()[:devices],
        )
        task = make_task(config)
        model = state.Model(task, config.seed)
        self.frozen, self.teacher, self.name = place_model(config, model, self.mesh)
        start = state.init_state(*model.init(), train_step.make_optimizer(config), ema=False)
        self.state = jax.device_put(start, sharding.replicated(self.mesh))
        self.step = train_step.make_train_step(config, task, model, self.mesh)

    def run(self, batch):
        batch = pipeline.put_on_devices(batch, sharding.batch_sharding(self.mesh))
        self.state, scalars = self.step(self.state, self.frozen, self.teacher, batch)
        return jax.device_get(self.state), jax.device_get(scalars)


@pytest.fixture(scope="module")
def host_batches(config):
    mesh = sharding.make_mesh(config.mesh)
    iterator = pipeline.train_batches(config.data, 0, sharding.batch_sharding(mesh))
    batches = [jax.device_get(next(iterator)) for _ in range(3)]
    iterator.close()
    return batches


@pytest.mark.parametrize(("devices", "fsdp"), [(8, 1), (8, 4)])
def test_sharded_step_equals_the_one_device_step(config, host_batches, devices, fsdp, monkeypatch):
    """With plain gradient descent: Adam's first step is a sign, which rounding can turn."""
    monkeypatch.setattr(train_step, "make_optimizer", lambda config: optax.sgd(1.0))
    single = OneStep(config, 1).run(host_batches[0])
    sharded = OneStep(config, devices, fsdp).run(host_batches[0])
    for name, value in single[1].items():
        np.testing.assert_allclose(sharded[1][name], value, rtol=1e-5, err_msg=name)
    for part in ("batch_stats", "params"):
        pairs = zip(
            jax.tree.leaves(getattr(single[0], part)),
            jax.tree.leaves(getattr(sharded[0], part)),
            strict=True,
        )
        for a, b in pairs:
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def test_a_teacher_split_over_fsdp_is_really_split(config):
    step = OneStep(config, 8, fsdp=4)
    sizes = [
        (leaf.size, leaf.addressable_shards[0].data.size) for leaf in jax.tree.leaves(step.teacher)
    ]
    split = [whole for whole, part in sizes if part == whole // 4]
    assert sum(split) > 0.7 * sum(whole for whole, _ in sizes)


def test_no_recompilation_after_the_first_step(config, host_batches):
    step = OneStep(config, 8)
    for batch in host_batches:
        step.run(batch)
    assert step.step.jitted._cache_size() == 1
