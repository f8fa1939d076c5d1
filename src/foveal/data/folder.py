"""A folder of images: one sub-folder per class, or captions in text files beside the images, or both, or neither."""

import os
from pathlib import Path

from foveal.data.faults import Faults, RowReader, SampleError, unique_keys
from foveal.data.images import MAX_PIXELS, image_files, read_image
from foveal.data.record import Sample


class ImageFolder(RowReader):
    """Every image in a folder and below it, in the order of their paths.

    ``cats/tabby/1.jpg`` has the key ``cats/tabby/1.jpg`` and the label ``cats``; an image at the top has no label. The
    lines of ``cats/tabby/1.txt``, if there is one, are its captions. Hidden files are left out.

    Args:
        root: the folder.
        strict: raise at the first broken image when iterating.
        max_fraction: share of broken images to put up with, see `Faults`.
        max_pixels: see `read_image`.

    Attributes:
        classes: names of the sub-folders that hold images, sorted.
        faults: what the latest iteration skipped.

    Raises:
        ValueError: when ``root`` is not a folder, or holds no images.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        strict: bool = False,
        max_fraction: float = Faults.max_fraction,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.root, self.max_pixels = Path(root), max_pixels
        self.paths = image_files(root)
        if not self.paths:
            raise ValueError(f"root={os.fspath(root)!r} holds no image file: give the folder above the images")
        self.keys = unique_keys([path.relative_to(self.root).as_posix() for path in self.paths])
        self.classes = sorted({key.split("/")[0] for key in self.keys if "/" in key})
        self.faults = Faults(f"ImageFolder({os.fspath(root)})", strict, max_fraction)

    def load(self, index: int) -> Sample:
        key, path = self.keys[index], self.paths[index]
        image = read_image(path, max_pixels=self.max_pixels)
        label = (key.split("/")[0],) if "/" in key else ()
        return Sample(key, images=(image,), captions=_captions(path.with_suffix(".txt")), labels=label)


def _captions(sidecar: Path) -> tuple[str, ...]:
    if not sidecar.is_file():
        return ()
    try:
        lines = sidecar.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"cannot read captions {sidecar}: {error}; save it as UTF-8", "unreadable caption") from error
    return tuple(line.strip() for line in lines if line.strip())
