"""The files in a tar archive that nobody vouches for, read in one pass and never unpacked to disk.

The standard library's reader ends in silence at a damaged header, as if the archive ended there, and believes every
size it is told. Here a cut or damaged archive is an error, and a member that is no plain file of sane size is reported.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from foveal.data.faults import SampleError

MAX_BYTES = 256 * 2**20  # of one member
MAX_HEADER = 2**20  # of one extended header: names and times
EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class Member(NamedTuple):
    """A file of an archive: its content, or why it cannot be used."""

    name: str
    content: bytes | SampleError


def tar_members(path: Path) -> Iterator[Member]:
    """Members of a tar file, plain or gzip, in order; folders are left out.

    A member with an absolute name or ``..`` in it, a link, a device, a sparse file, and one larger than `MAX_BYTES`
    has a SampleError for content.

    Raises:
        SampleError: when the archive is missing, truncated or damaged; the members before that place were good.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw
            with tarfile.open(fileobj=file, mode="r|", tarinfo=_Header) as archive:
                while (header := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # in no stub; else it remembers all of them
                    if not header.isdir():
                        yield Member(header.name, _content(archive, header))
    except FileNotFoundError as error:
        raise SampleError(f"cannot read shard {path}: no such file; check the path", "missing shard") from error
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError) as error:
        if isinstance(error, SampleError):
            raise
        text = f"cannot read shard {path} to its end: {error}; copy or download it again"
        raise SampleError(text, "truncated or damaged shard") from error


class _Header(tarfile.TarInfo):
    """A header that is not taken on trust."""

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Any:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]  # in no stub; a proper end
                raise
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset}") from error

    def _proc_member(self, tarfile_: Any) -> Any:  # the hook that the standard library leaves for subclasses
        if self.size < 0 or (self.type in EXTENDED and self.size > MAX_HEADER):
            raise tarfile.ReadError(f"a header at byte {tarfile_.offset} claims {self.size} bytes")
        return super()._proc_member(tarfile_)  # type: ignore[misc]  # in no stub either


def _content(archive: tarfile.TarFile, header: tarfile.TarInfo) -> bytes | SampleError:
    place = f"member {header.name} of {archive.name!s}"
    if header.name.startswith(("/", "\\")) or ".." in PurePosixPath(header.name.replace("\\", "/")).parts:
        return SampleError(f"{place} leads out of the archive; repack it with plain names", "unsafe name in shard")
    if not header.isreg() or header.issparse():
        return SampleError(f"{place} is a link, device or sparse file; repack plain files", "no plain file in shard")
    if header.size > MAX_BYTES:
        return SampleError(
            f"{place} has {header.size} bytes, more than {MAX_BYTES}; split it", "too large a file in shard"
        )
    reader = archive.extractfile(header)
    return reader.read() if reader else b""
