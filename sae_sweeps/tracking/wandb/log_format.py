"""The format of W&B's own logs: LevelDB's, with a head of W&B's; bytes only, no protobuf."""

import struct
import zlib
from collections.abc import Generator

MAGIC, FILE_HEAD, BLOCK, CHUNK_HEAD = b":W&B", 7, 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def whole_records(content: bytes) -> Generator[tuple[int, bytes]]:
    """Give each whole record with its end, up to the first thing that is none.

    A record is one `FULL` chunk or several, of which one is the `LAST`. No chunk crosses the edge
    of a block; less space than a chunk's head before an edge is filled up.
    """
    position, parts = FILE_HEAD, list[bytes]()
    if not content.startswith(MAGIC):
        return
    while True:
        left = BLOCK - position % BLOCK
        position += left if left < CHUNK_HEAD else 0
        head = content[position : position + CHUNK_HEAD]
        if len(head) < CHUNK_HEAD:
            return
        checksum, size, kind = struct.unpack("<IHB", head)
        start, position = position + CHUNK_HEAD, position + CHUNK_HEAD + size
        chunk = content[start:position]
        if len(chunk) < size or zlib.crc32(chunk, zlib.crc32(head[-1:])) != checksum:
            return
        parts.append(chunk)
        if kind in (FULL, LAST):
            yield position, b"".join(parts)
            parts = []


def written(payloads: list[bytes], head: bytes) -> bytes:
    """Write records as a log that begins with `head`; the reverse of `whole_records`."""
    log = bytearray(head)
    for payload in payloads:
        rest, kinds = memoryview(payload), (FULL, FIRST)
        while True:
            left = BLOCK - len(log) % BLOCK
            if left < CHUNK_HEAD:
                log += bytes(left)
                left = BLOCK
            chunk, rest = rest[: left - CHUNK_HEAD], rest[left - CHUNK_HEAD :]
            kind = kinds[1] if rest else kinds[0]
            checksum = zlib.crc32(chunk, zlib.crc32(bytes([kind])))
            log += struct.pack("<IHB", checksum, len(chunk), kind) + chunk
            kinds = (LAST, MIDDLE)
            if not rest:
                break
    return bytes(log)
