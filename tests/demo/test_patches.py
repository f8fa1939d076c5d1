"""Pictures of what was left of a picture."""

import numpy as np

from foveal.demo.patches import LINE, enlarged, only

IMAGE = np.random.default_rng(0).integers(0, 200, (24, 24, 3), dtype=np.uint8)


def test_kept_patches_stay_and_the_others_are_veiled():
    shown = only(IMAGE, (0, 5), 3)
    line = (shown == LINE).all(2)
    for patch in range(9):
        row, column = divmod(patch, 3)
        place = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        inside = ~line[place]
        same = (shown[place][inside] == IMAGE[place][inside]).all()
        assert same == (patch in (0, 5))
        assert inside.mean() > 0.7
    assert line[4, 8]
    assert line[8, 4]
    assert not line[4, 4]


def test_the_whole_picture_has_no_line():
    assert only(IMAGE, range(9), 3) is IMAGE


def test_pixels_become_squares():
    small = IMAGE[::8, ::8]
    large = enlarged(small, IMAGE)
    assert large.shape == IMAGE.shape
    assert (large[8:16, 16:] == small[1, 2]).all()
