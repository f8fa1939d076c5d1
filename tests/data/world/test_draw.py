"""Masks, boxes, depth and visible shares agree with each other, with the scene, and at every size."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data.world import backgrounds
from foveal.data.world.backgrounds import FAR, FLOORS, NEAR
from foveal.data.world.config import WorldConfig
from foveal.data.world.draw import draw
from foveal.data.world.layout import scene
from foveal.data.world.scene import Background, Scene, Thing, Writing
from foveal.data.world.styles import stylise
from foveal.data.world.vocabulary import COLOURS, PLACES, STYLES

BUSY = WorldConfig(things=(3, 8), min_visible=0.1, writing=0.3)
GROUND = Background("plain", "white")


def shape(noun, x, y, radius, depth, **more):
    return Thing(noun, "shape", "medium", x, y, radius, depth, **{"colour": "red", **more})


@settings(max_examples=40, deadline=None)
@given(index=st.integers(0, 10**9), size=st.sampled_from([32, 64, 65, (48, 100), 128]))
def test_boxes_shares_and_masks_agree(index, size):
    made = scene(BUSY, 1, index)
    drawing = draw(made, size)
    height, width = (size, size) if isinstance(size, int) else size
    assert drawing.image.shape == (height, width, 3)
    assert drawing.image.dtype == drawing.instance.dtype == np.uint8
    assert drawing.depth.dtype == np.float32
    assert drawing.instance.max() <= len(made.things)
    for number, (thing, box, share) in enumerate(zip(made.things, drawing.boxes, drawing.visible)):
        mask = drawing.instance == number + 1
        if not mask.any():
            assert box == (0, 0, 0, 0)
            assert share == 0
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        alone = draw(made.with_(things=(thing,), writings=()), size)
        cut = alone.visible[0]  # by the edge of the picture
        assert share == pytest.approx(mask.sum() / (alone.instance == 1).sum() * cut)
        assert not (mask & (alone.instance == 0)).any()
        assert np.all(drawing.depth[mask] == np.float32(thing.depth))


def test_nearer_things_cover_farther_ones_whatever_their_order():
    near, far = shape("square", 0.5, 0.5, 0.2, 2.0), shape("circle", 0.6, 0.5, 0.2, 4.0, colour="blue")
    for things in ((near, far), (far, near)):
        drawing = draw(Scene("k", things, GROUND), 100)
        front = things.index(near) + 1
        assert drawing.instance[50, 55] == front
        assert drawing.visible[front - 1] == 1.0
        assert 0.2 < drawing.visible[2 - front] < 0.8
        assert tuple(drawing.image[50, 55]) == COLOURS["red"]


def test_of_two_at_the_same_depth_the_first_is_in_front():
    things = (shape("square", 0.5, 0.5, 0.2, 3.0), shape("circle", 0.6, 0.5, 0.2, 3.0, colour="blue"))
    assert draw(Scene("k", things, GROUND), 100).visible[0] == 1.0


def test_visible_share_counts_what_the_edge_cuts_off():
    half = draw(Scene("k", (shape("circle", 0.0, 0.5, 0.25, 3.0),), GROUND), 128)
    assert half.visible[0] == pytest.approx(0.5, abs=0.02)
    outside = draw(Scene("k", (shape("circle", 1.5, 0.5, 0.25, 3.0),), GROUND), 128)
    assert (outside.boxes[0], outside.visible[0]) == ((0, 0, 0, 0), 0.0)


def test_writing_is_in_front_and_belongs_to_nothing():
    circle = shape("circle", 0.5, 0.5, 0.4, 3.0)
    drawing = draw(Scene("k", (circle,), GROUND, writings=(Writing("STOP", 0.5, 0.5, 0.15, "black"),)), 128)
    assert 0.6 < drawing.visible[0] < 0.95
    letters = drawing.image.sum(axis=2) < 3 * 40
    assert letters.sum() > 200
    assert (drawing.instance[letters] == 0).all()


@pytest.mark.parametrize("index", range(12))
def test_the_same_scene_at_four_times_the_size(index):
    made = scene(WorldConfig(min_visible=0.8), 2, index)
    small, large = draw(made, 64), draw(made, 256)
    reduced = large.image.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(reduced - small.image).mean() < 12
    for a, b, thing in zip(small.boxes, large.boxes, made.things):
        assert np.abs(np.array(a) - np.array(b) / 4).max() <= 2.0, thing
    assert small.depth.mean() == pytest.approx(large.depth.mean(), rel=0.03)


def test_depth_of_backgrounds():
    for place in PLACES:
        depth = backgrounds.depth(Background("place", place), 64, 32)
        assert depth.shape == (64, 32)
        if place in FLOORS:
            assert depth[0, 0] == pytest.approx(FAR, rel=0.02)
            assert depth[-1, 0] == pytest.approx(NEAR, rel=0.02)
            assert (np.diff(depth[:, 0]) < 0).all()
        else:
            assert (depth == FAR).all()


@pytest.mark.parametrize("place", PLACES)
def test_places_differ_close_up_and_have_variants(place):
    pictures = [backgrounds.picture(Background("place", place, variant), 64, 64).astype(float) for variant in range(16)]
    for variant in range(8):
        assert np.abs(pictures[variant] - pictures[variant + 8]).mean() > 1  # shifted or mirrored
    seam = np.abs(pictures[0][:, 0] - pictures[0][:, -1]).mean()
    inner = np.abs(np.diff(pictures[0], axis=1)).mean(axis=(0, 2)).max()
    assert seam <= inner + 2
    means = {name: backgrounds.picture(Background("place", name), 64, 64).mean(axis=(0, 1)) for name in PLACES}
    assert min(np.abs(means[place] - means[name]).sum() for name in PLACES if name != place) > 15


def test_a_cached_background_is_never_painted_on():
    made = Scene("k", (shape("circle", 0.5, 0.5, 0.3, 3.0),), Background("gradient", "blue", 5))
    first = draw(made, 64).image
    assert np.array_equal(first, draw(made, 64).image)
    assert not np.array_equal(first, draw(made.with_(things=()), 64).image)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", [32, 64, 200])
def test_styles_change_the_look_only(style, size):
    made = scene(WorldConfig(things=(3, 3)), 4, 1)
    plain, styled = draw(made, size), draw(made.with_(style=style, variant=9), size)
    assert np.array_equal(plain.instance, styled.instance)
    assert plain.boxes == styled.boxes
    assert styled.image.shape == plain.image.shape
    assert styled.image.dtype == np.uint8
    change = np.abs(styled.image.astype(float) - plain.image).mean()
    assert (change == 0) if style == "flat" else (change > 1.0)
    assert styled.image.std() > 5  # something is still to be seen
    assert np.array_equal(styled.image, draw(made.with_(style=style, variant=9), size).image)


def test_noise_follows_its_seed_and_unknown_styles_are_named():
    image = np.full((64, 64, 3), 128, np.uint8)
    assert not np.array_equal(stylise(image, "noise", 1), stylise(image, "noise", 2))
    assert (image == 128).all()
    with pytest.raises(ValueError, match="cubist"):
        stylise(image, "cubist", 0)


@pytest.mark.parametrize("size", [31, 8193, (64, 20)])
def test_sizes_out_of_bounds_are_refused(size):
    with pytest.raises(ValueError, match="size"):
        draw(Scene("k", (), GROUND), size)


def test_more_things_than_the_instance_map_holds():
    with pytest.raises(ValueError, match="254"):
        draw(Scene("k", (shape("circle", 0.5, 0.5, 0.1, 3.0),) * 255, GROUND), 64)


def test_large_shapes_are_sharp():
    drawing = draw(Scene("k", (shape("square", 0.5, 0.5, 0.25, 3.0),), GROUND), 1024)
    row = drawing.image[512].astype(int).sum(axis=1)
    edge = np.flatnonzero(np.abs(np.diff(row)) > 20)
    assert edge.min() == pytest.approx(1024 * (0.5 - 0.25 * 0.88), abs=2)
    assert len(edge) <= 10  # the two edges and their rims are a pixel or two wide


@pytest.mark.lab
def test_memory_at_the_largest_size():
    """In a process of its own: the arrays that are given back are 537 MB of it."""
    code = (
        "import resource\nfrom foveal.data.world.config import WorldConfig\n"
        "from foveal.data.world.draw import draw\nfrom foveal.data.world.layout import scene\n"
        "drawing = draw(scene(WorldConfig(size=8192, things=(3, 3), backgrounds=('place',)), 0, 5), 8192)\n"
        "assert drawing.image.shape == (8192, 8192, 3)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    assert int(done.stdout) < 1.3e6  # kB
