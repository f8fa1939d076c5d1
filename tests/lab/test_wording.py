"""How numbers are told to people."""

import pytest

from foveal.lab.wording import interval


@pytest.mark.parametrize(
    ("difference", "bounds", "told"),
    [
        (3.21, (1.1, 5.32), "+3.21 [+1.1, +5.32]"),
        (4.7e-15, (-6.9, 6.9), "+0 [-6.9, +6.9]"),  # what is left of 0 by rounding
        (-2e-7, (-3e-7, -1e-7), "-2e-07 [-3e-07, -1e-07]"),
        (0.5, None, "+0.5"),
        (0.0, (0.0, 0.0), "+0 [+0, +0]"),
    ],
)
def test_interval(difference, bounds, told):
    assert interval({"difference": difference, "interval": bounds}) == told
