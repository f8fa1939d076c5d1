import subprocess
import sys

import pytest

from foveal.train.config import FitConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("warmup", 1.0),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("schedule", "cosin"),
        ("clip", 0.0),
        ("accumulate", 0),
        ("save_every", -1),
        ("keep", 0),
        ("mixed_precision", "fp8"),
        ("seed", -1),
        ("workers", True),
    ],
)
def test_a_bad_value_is_named(field, value):
    with pytest.raises(ValueError, match=field) as caught:
        FitConfig(**{field: value})
    assert repr(value) in str(caught.value)


def test_micro_batches_must_be_equal():
    with pytest.raises(ValueError, match=r"batch_size=10 .*accumulate=4"):
        FitConfig(batch_size=10, accumulate=4)


def test_config_does_not_import_torch():
    code = "import sys; from foveal.train import FitConfig; FitConfig(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
