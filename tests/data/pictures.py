"""Image files, sound and broken, made in memory; none is stored in the repository."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 6, 8


def ramp(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A picture in which every pixel and every corner is another."""
    rows, columns = np.indices((height, width))
    return np.stack([rows * 30, columns * 30, rows * 0 + 90], axis=-1).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated(orientation: int, kind: str = "JPEG", **options) -> bytes:
    """A 16 × 32 picture, left half black, right half white, with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:, 16:] = 255
    return encoded(pixels, kind, exif=exif, **options)


def animated(kind: str = "GIF") -> bytes:
    """Two frames, red then blue."""
    red, blue = (Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue"))
    return encoded(red, kind, save_all=True, append_images=[blue])


def palette(transparent: bool) -> bytes:
    """Left half green; right half black, or transparent black."""
    image = Image.new("P", (WIDTH, HEIGHT), 0)
    image.putpalette([0, 0, 0, 0, 255, 0])
    image.paste(1, (0, 0, WIDTH // 2, HEIGHT))
    return encoded(image, "PNG", **({"transparency": 0} if transparent else {}))


def bomb(side: int = 100_000) -> bytes:
    """A PNG whose header claims side² pixels, in some 80 bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def truncated(kind: str = "JPEG") -> bytes:
    whole = encoded(ramp(64, 64), kind)
    return whole[: len(whole) // 2]
