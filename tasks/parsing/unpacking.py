"""Bytes of an object to blocks and lines, in bounded memory whatever the bytes are."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

import pyarrow as pa

from tasks.config import Limits

BLOCK: Final = 1 << 20
"""Bytes handled at once. A longer line makes the block grow, up to the cap on lines."""

HARMLESS: Final = 16 << 20
"""Unpacked bytes below which a compression ratio is of no interest: a few repeated rows pack very well."""

_SLICE: Final = 1 << 14
"""Packed bytes fed at once. zlib copies what follows a gzip member, so a large slice of tiny members is quadratic."""

_MOST_MEMBERS: Final = 100_000
"""Each member costs the same however little it holds; block-wise packers make one for every 64 KiB."""

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_UTF8_BOM: Final = b"\xef\xbb\xbf"
_UTF16_BOMS: Final = (b"\xff\xfe", b"\xfe\xff")
_SAVE_AS_UTF8: Final = "save it as UTF-8, such as with `iconv -f UTF-16 -t UTF-8`"

_FEW_LINES: Final = 5
"""Lines that are not UTF-8 up to which they are broken lines, rather than a file in another encoding."""


class RefusedError(Exception):
    """No row of the object can be taken; the message is the reason, and what to do about it where there is a remedy."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason}: {remedy}" if remedy else reason)
        self.reason = reason
        self.remedy = remedy


class DamagedError(Exception):
    """The object ends in damage, but what came before it is sound; the message is the reason.

    `cut` says whether the damage cuts off the line before it.
    """

    def __init__(self, reason: str, *, cut: bool) -> None:
        super().__init__(reason)
        self.cut = cut


@dataclass(frozen=True)
class Text:
    """An object that holds lines of text, packed or not."""

    body: bytes
    packing: str = ""
    """How it is packed: "gz", "zst", or not at all."""

    def blocks(self) -> Iterator[bytes]:
        """The unpacked bytes as UTF-8 without byte order mark, in blocks of about a megabyte.

        Raises DamagedError after the last sound block, RefusedError where even earlier blocks cannot be trusted.
        """
        blocks = _UNPACK[self.packing](self.body)
        first = next(blocks, b"")
        if first.startswith(_UTF16_BOMS):
            yield from _from_utf16(chain([first], blocks))
            return
        if first:
            yield first.removeprefix(_UTF8_BOM)
        yield from blocks

    def inspect(self, limits: Limits) -> None:
        """Read the object once without keeping anything, and raise RefusedError for whatever exceeds a cap.

        After this its rows can be taken one by one: none will have to be given back.
        """
        unpacked = lines = 0
        try:
            for block in self.blocks():
                if unpacked == 0:
                    _recognise(block)
                unpacked += len(block)
                lines += block.count(b"\n")
                if unpacked > limits.max_decompressed_bytes:
                    raise RefusedError(f"unpacks to more than {limits.max_decompressed_bytes} bytes")
                if unpacked > max(HARMLESS, limits.max_compression_ratio * len(self.body)):
                    raise RefusedError(f"unpacks to more than {limits.max_compression_ratio:g} times its size")
                if lines > limits.max_object_rows:
                    raise RefusedError(f"more than {limits.max_object_rows} lines")
        except DamagedError as error:
            if not unpacked:
                raise RefusedError(str(error)) from error
            return
        if not unpacked:
            raise RefusedError("empty")

    def lines(self, longest: int) -> Iterator[list[bytes]]:
        """All lines without their line feeds, many at a time; blank ones too, so that they can be numbered.

        Of a line of more than `longest` bytes at least `longest + 1` are given, never much more. Raises as `blocks`
        does; the line that damage cut off is not given.
        """
        rest = b""
        try:
            for block in self.blocks():
                lines = (rest + block).split(b"\n")
                # the start of an overlong line is enough to refuse it by
                rest = lines.pop()[: longest + 1]
                yield lines
        except DamagedError as error:
            if rest and not error.cut:
                yield [rest]
            raise
        if rest:
            yield [rest]

    def check_encoding(self, broken: int, sound: int) -> None:
        """Raise RefusedError where the lines that are not UTF-8 are so many that the object is in another encoding.

        Args:
            broken: Lines that could not be read.
            sound: Lines that could.
        """
        other = wide = 0
        try:
            for lines in self.lines(1 << 20):
                for line in lines:
                    if line.isascii():
                        continue
                    try:
                        line.decode()
                        wide += 1
                    except UnicodeDecodeError:
                        other += 1
        except DamagedError:
            pass  # named where the rows are read
        if other > wide and 10 * other >= broken + sound and other > _FEW_LINES:
            raise RefusedError(
                f"not UTF-8: {other} lines are in another encoding",
                "save it as UTF-8, such as with `iconv -f WINDOWS-1252 -t UTF-8` for a file from a Western Windows",
            )


def _recognise(start: bytes) -> None:
    """Refuse text that is something else, with the way out."""
    if start.startswith((_GZIP, _ZSTD)):
        raise RefusedError("compressed once more", "pack it once, and let the name end in .gz or .zst")
    if start.startswith(b"PK\x03\x04"):
        raise RefusedError("a spreadsheet or another ZIP file", "export it as CSV in UTF-8")
    even, odd = start[::2].count(0), start[1::2].count(0)
    if max(even, odd) > len(start) // 5 and min(even, odd) < max(even, odd) // 10:
        raise RefusedError("UTF-16 text without a byte order mark", _SAVE_AS_UTF8)


def _from_utf16(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Text with a byte order mark of UTF-16, as UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-16")()
    try:
        for block in blocks:
            yield decoder.decode(block).encode()
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise RefusedError("UTF-16 text that is damaged", _SAVE_AS_UTF8) from error


def _unzstd(body: bytes) -> Iterator[bytes]:
    """Unpack Zstandard frames one after the other."""
    if not body.startswith(_ZSTD):
        raise RefusedError("not Zstandard")
    sound = False
    try:
        with pa.input_stream(pa.BufferReader(body), compression="zstd", buffer_size=0) as stream:
            while block := stream.read(BLOCK):
                sound = True
                yield block
    except OSError as error:
        if sound and "runcated" in str(error):
            raise DamagedError("the Zstandard data ends too early", cut=True) from error
        raise RefusedError(f"damaged Zstandard: {str(error).partition(chr(10))[0][:100]}") from error


def _slices(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), BLOCK):
        yield body[start : start + BLOCK]


def _gunzip(body: bytes) -> Iterator[bytes]:
    """Unpack gzip members one after the other, into blocks of at least a megabyte but for the last."""
    pieces: list[bytes] = []
    size = 0
    damage: DamagedError | None = None
    try:
        for piece in _members(body):
            pieces.append(piece)
            size += len(piece)
            if size >= BLOCK:
                yield b"".join(pieces)
                pieces, size = [], 0
    except DamagedError as error:
        damage = error
    if pieces:
        yield b"".join(pieces)
    if damage:
        raise damage


def _members(body: bytes) -> Iterator[bytes]:  # noqa: C901 # one state machine, clearer whole than in parts
    """Pieces of at most a megabyte. Zeros may follow the last member, as gzip allows."""
    if not body.startswith(_GZIP):
        raise RefusedError("not gzip" if body else "empty")
    member = zlib.decompressobj(31)
    inside, count = True, 1
    for start in range(0, len(body), _SLICE):
        data, pending = body[start : start + _SLICE], False
        while data or pending:
            if not inside:
                data = data.lstrip(b"\0")
                if not data:
                    break
                if not data.startswith(_GZIP[:1]):
                    raise DamagedError("bytes after the end of the gzip data", cut=False)
                count += 1
                if count > _MOST_MEMBERS:
                    raise RefusedError(f"more than {_MOST_MEMBERS} gzip members")
                member, inside = zlib.decompressobj(31), True
            try:
                piece = member.decompress(data, BLOCK)
            except zlib.error as error:
                # wrong bits show only later than they begin: nothing here can be trusted
                raise RefusedError(f"damaged gzip: {error}") from error
            if piece:
                yield piece
            inside = not member.eof
            data = member.unconsumed_tail if inside else member.unused_data
            pending = inside and len(piece) == BLOCK
    if inside:
        raise DamagedError("the gzip data ends too early", cut=True)


_UNPACK: Final[dict[str, Callable[[bytes], Iterator[bytes]]]] = {"": _slices, "gz": _gunzip, "zst": _unzstd}
"""What unpacks an object, by the end of its name."""
