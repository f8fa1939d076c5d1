import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.train.order import StepOrder

sizes = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(samples=sizes, batch=sizes, seed=st.integers(0, 2**63), epochs=st.integers(1, 3))
def test_every_epoch_is_a_permutation(samples, batch, seed, epochs):
    order = StepOrder(samples, batch, seed)
    steps = -(-samples * epochs // batch)
    stream = np.concatenate([order.indices(step) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(stream[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


@settings(max_examples=60, deadline=None)
@given(samples=sizes, share=st.integers(1, 8), world=st.integers(1, 4), step=st.integers(0, 50))
def test_processes_share_the_batch_and_any_step_can_come_first(samples, share, world, step):
    whole = StepOrder(samples, share * world, 7)
    for earlier in range(step):
        whole.indices(earlier)
    fresh = StepOrder(samples, share * world, 7)
    parts = [fresh.indices(step, rank, world) for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts), whole.indices(step))


def test_seed_and_epoch_change_the_order():
    order = StepOrder(100, 100, seed=0)
    assert (order.indices(0) != order.indices(1)).any()
    assert (order.indices(0) != StepOrder(100, 100, seed=1).indices(0)).any()


def test_bad_arguments():
    with pytest.raises(ValueError, match="samples=0"):
        StepOrder(0, 4)
    with pytest.raises(ValueError, match=r"batch_size=5 .* 2 processes"):
        StepOrder(10, 5).indices(0, 0, 2)
    with pytest.raises(ValueError, match="rank=2"):
        StepOrder(10, 4).indices(0, 2, 2)
