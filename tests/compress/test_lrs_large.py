"""Pictures on disk: the same tiles as of a tensor, with memory that does not grow with the picture."""

import struct
import zlib
from itertools import pairwise

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from foveal.compress import lrs_focus_pyramid
from foveal.compress.lrs import LargeImageLlava, LazyPyramid, RegionFocusModule, build_pyramid, coarse_to_fine
from foveal.data import windows
from foveal.data.windows import PictureFile
from foveal.data.world import World, WorldConfig
from foveal.data.world.draw import draw
from foveal.train.meters import Meter

from .tiny import BY_NAME, IMAGE

torch.set_num_threads(1)
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
MEGABYTE = 1_000_000


def normalised(pixels):
    return ((torch.from_numpy(pixels) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)


def save(path, pixels):
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, tile=(32, 16), photometric="rgb")
    else:
        Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("window", [1, 1500, 1_000_000])
@pytest.mark.parametrize("name", ["picture.png", "picture.tif"])
@pytest.mark.parametrize("size", [(70, 101), (131, 40), (7, 5)])
def test_tiles_are_those_of_a_tensor(tmp_path, monkeypatch, name, size, window):
    monkeypatch.setattr(lrs_focus_pyramid, "WINDOW_PIXELS", window)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    save(tmp_path / name, pixels)
    lazy = LazyPyramid(PictureFile(tmp_path / name), MEAN, STD, tile=16, base_long_side=48)
    eager = build_pyramid(normalised(pixels), lazy.plan, 16)
    assert len(lazy) == len(eager)
    for level, tiles in enumerate(eager):
        assert lazy[level].shape == tiles.shape
        rows, columns = torch.cartesian_prod(torch.arange(tiles.shape[0]), torch.arange(tiles.shape[1])).view(-1, 2).T
        torch.testing.assert_close(lazy[level][rows, columns], tiles[rows, columns], atol=1e-4, rtol=1e-4)
        some = torch.tensor([len(rows) - 1, 0, len(rows) // 2])  # in any order
        torch.testing.assert_close(
            lazy[level][rows[some], columns[some]], tiles[rows[some], columns[some]], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("name", ["picture.png", "picture.tif"])
def test_a_level_is_decoded_in_one_pass(tmp_path, monkeypatch, name):
    """All rows of tiles on one way down the file: no row is decoded twice, and never many of them at once."""
    monkeypatch.setattr(lrs_focus_pyramid, "WINDOW_PIXELS", 2400)  # 40 rows
    monkeypatch.setattr(windows, "ROWS_AT_ONCE", 16)
    save(tmp_path / name, np.random.default_rng(0).integers(0, 256, (200, 60, 3), dtype=np.uint8))
    pyramid = LazyPyramid(PictureFile(tmp_path / name), MEAN, STD, tile=32, base_long_side=96)
    passes, boxes = [], []
    begin, fetch = PictureFile._open, PictureFile._fetch
    monkeypatch.setattr(PictureFile, "_open", lambda self: passes.append(self) or begin(self))
    monkeypatch.setattr(PictureFile, "_fetch", lambda self, source, box: boxes.append(box) or fetch(self, source, box))
    for level, (rows, columns, *_) in ((level, pyramid[level].shape) for level in range(len(pyramid))):
        passes.clear()
        boxes.clear()
        pyramid[level][torch.tensor([rows - 1, 0, rows // 2]), torch.tensor([0, columns - 1, 0])]
        assert len(passes) == 1
        assert len(boxes) > 1 or rows == 1
        if name == "picture.png":  # of tiled files the parts that are met are decoded, whichever
            assert max(bottom - top for top, bottom, _, _ in boxes) <= 16
            assert all(above[1] <= below[0] for above, below in pairwise(boxes))


def test_a_scene_of_the_world_from_disk(tmp_path):
    """A picture of 256 × 384 pixels, down to its own resolution."""
    scene = World(WorldConfig(size=(256, 384), sprites=0.0, radius=(8 / 256, 16 / 256)), seed=3).scene(0)
    pixels = draw(scene, (256, 384)).image
    save(tmp_path / "scene.png", pixels)
    model = BY_NAME["llava_next"].model()
    rfm = RegionFocusModule.from_language_model(model, (2, 3))
    plugin = LargeImageLlava(model, rfm, base_long_side=48, max_level=6, max_tiles=4)
    ids = torch.tensor([[5, IMAGE, 7, 8]])
    lazy = plugin.open(tmp_path / "scene.png", MEAN, STD)
    assert lazy.plan[-1].ratio == 1
    from_disk = plugin.prepare(lazy, ids)["inputs_embeds"]
    tiles = plugin.last.tiles
    assert plugin.last.level == len(lazy.plan) - 1 == 4
    torch.testing.assert_close(
        from_disk, plugin.prepare(normalised(pixels), ids)["inputs_embeds"], atol=1e-3, rtol=1e-3
    )
    assert [part.tolist() for part in tiles] == [part.tolist() for part in plugin.last.tiles]


def strip(top, rows, width):
    """A pattern of the world's size: cheap, no two tiles alike."""
    y, x = np.arange(top, top + rows, dtype=np.uint16)[:, None], np.arange(width, dtype=np.uint16)
    return np.stack(
        [np.broadcast_to(part, (rows, width)) for part in (y >> 4, x >> 4, (x >> 8) * 8 + (y >> 8))], -1
    ).astype(np.uint8)


def write_png(path, height, width, strip=strip, rows=64):
    """A PNG written strip by strip."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(1)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)))
        for top in range(0, height, rows):
            pixels = strip(top, rows, width).reshape(rows, -1)
            plain = np.zeros((rows, 1), np.uint8)  # the filter of each line: none
            file.write(chunk(b"IDAT", packer.compress(np.concatenate([plain, pixels], 1).tobytes())))
        file.write(chunk(b"IDAT", packer.flush()) + chunk(b"IEND", b""))


def write_tiff(path, height, width, tile=256):
    """A tiled TIFF written row by row of tiles."""

    def tiles():
        for top in range(0, height, tile):
            row = strip(top, tile, width)
            yield from (np.ascontiguousarray(row[:, left : left + tile]) for left in range(0, width, tile))

    tifffile.imwrite(path, tiles(), shape=(height, width, 3), dtype=np.uint8, tile=(tile, tile), photometric="rgb")


def descend(path, most=6, tile=336):
    """Down to the picture's own pixels with a rule instead of a model; gives the tiles and their grey values."""
    pyramid = LazyPyramid(PictureFile(path), (0.0,) * 3, (1.0,) * 3, tile)

    def encode(tiles):
        return torch.nn.functional.adaptive_avg_pool2d(tiles, 4).flatten(2).transpose(1, 2)

    def score(tokens, valid, level):
        return -(tokens[:, 0] - 0.7).abs() - (tokens[:, 1] - 0.3).abs()

    return pyramid, coarse_to_fine(pyramid, pyramid.plan, encode, score, 4, None, 0.1, 99, most)


@pytest.mark.parametrize(("write", "height"), [(write_png, 4096), (write_tiff, 8192)])
def test_memory_is_that_of_the_tiles(tmp_path, write, height):
    """8,192 pixels wide: 100 or 200 MB as bytes, four times that as floats."""
    path = tmp_path / ("picture.png" if write is write_png else "picture.tif")
    write(path, height, 8192)
    descend_small(tmp_path)  # libraries are loaded and threads are running
    with Meter() as meter:
        pyramid, found = descend(path)
    assert found.level == len(pyramid.plan) - 1 == 5
    assert found.tiles_encoded <= pyramid.plan[1].grid_hw[0] * 3 + 4 * 6
    own = found.tiles[-1][0].tolist()
    tile = pyramid[5][torch.tensor(own[:1]), torch.tensor(own[1:])][0] * 255
    scale = pyramid.plan[-1].resized_hw[1] / 8192
    want = strip(int(own[0] * 336 / scale), 1, 8192)[0, int(own[1] * 336 / scale)]
    assert (tile[:, 0, 0] - torch.from_numpy(want)).abs().max() <= 8  # the right place: 8 is one step of the third band
    assert meter.peak_memory_bytes < 80 * MEGABYTE


def descend_small(folder):
    write_png(folder / "small.png", 64, 64)
    descend(folder / "small.png", tile=16)


@pytest.mark.lab
@pytest.mark.parametrize("kind", ["world.png", "pattern.tif"])
def test_sixteen_thousand_pixels(tmp_path, kind):
    """805 MB as bytes, within the same memory; four scenes of the world of 8,192 pixels a side."""
    path = tmp_path / kind
    if kind == "pattern.tif":
        write_tiff(path, 16384, 16384)
    else:
        scene = World(WorldConfig(size=8192, things=(3, 3)), seed=3).scene(0)
        image = draw(scene, 8192).image
        write_png(path, 16384, 16384, lambda top, rows, width: np.tile(image[top % 8192 :][:rows], (1, 2, 1)))
        del image
    descend_small(tmp_path)
    with Meter() as meter:
        pyramid, found = descend(path)
    assert found.level == len(pyramid.plan) - 1 == 6
    megabytes = meter.peak_memory_bytes / MEGABYTE
    print(f"{kind}: {megabytes:.0f} MB, {meter.seconds:.1f} s, {found.tiles_encoded} tiles")
    assert megabytes < 80


def test_bad_arguments(tmp_path):
    write_png(tmp_path / "a.png", 64, 64)
    picture = PictureFile(tmp_path / "a.png")
    with pytest.raises(ValueError, match="three numbers"):
        LazyPyramid(picture, (0.5,), STD)
    with pytest.raises(ValueError, match="std above 0"):
        LazyPyramid(picture, MEAN, (0, 1, 1))
    pyramid = LazyPyramid(picture, MEAN, STD, 16, 48)
    with pytest.raises(ValueError, match=r"tile \(0, 3\) is outside of 3 × 3"):
        pyramid[1][torch.tensor([0]), torch.tensor([3])]
    model = BY_NAME["llava"].model()
    plugin = LargeImageLlava(model, RegionFocusModule.from_language_model(model, (2,)))
    with pytest.raises(ValueError, match=r"base_long_side=48.*16 and 1008"):
        plugin.prepare(pyramid, torch.tensor([[IMAGE, 5]]))
