"""The format of a backup (csv.gz). Peers send each other backups, and the snapshots on disk have the same format.

    # {"format": "grades/1", "log": …, "number": …, "id": …, "continues": […], "time": …, "count": …, "digest": …}
    user_id,postpaid_limit,spp,shipping_fee,return_fee,postpaid_limit_set,spp_set,shipping_fee_set,return_fee_set
    alice,1000,5,0,0,1763700000000-0,1763700000000-0,,
    # {"count": …, "sha256": …}

The first line names the log and the last entry that the backup contains, and says when it was made. `continues` are the
older logs whose changes this log contains. The column `spp_set` has the id of the entry that set `spp`; it is empty if
`spp` was never set. The last line has the number of records and the SHA-256 of everything before that line. Writing and
reading are done in short steps. Callers run each step in a thread, so that the event loop runs between two steps even
if a step holds Python's interpreter lock.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from mesh.journal import Position, pack_id, unpack_id
from quart_app.grades.models import FIELDS, USER_ID_MAX
from quart_app.grades.storage import FIELD_COUNT, RECORD_LAYOUT, FrozenRecords, Storage

#: The format of backups that this release writes, and the only one that it reads.
FORMAT = "grades/1"
#: The end of the name of a backup's or snapshot's file.
SUFFIX = "csv.gz"
MEDIA_TYPE = "application/gzip"
#: The second line of a backup.
COLUMNS = ",".join(("user_id", *FIELDS, *(f"{name}_set" for name in FIELDS)))

#: Shards (parts of a `Storage`) that one step writes: about 4000 of a million records, which takes about 20 ms. More
#: would hold up the event loop for longer; fewer need more steps.
SHARDS_WRITTEN_PER_STEP = 16
#: The most bytes that one step unpacks. A few packed bytes can unpack to far more, and would make a step long.
UNPACKED_PER_STEP = 1 << 18
#: The most bytes of the line of a record. A user id has up to USER_ID_MAX characters of up to 4 bytes, and CSV doubles
#: each quote in it. The 1024 bytes are more than all numbers and ids of a record need.
MOST_LINE_BYTES = 4 * USER_ID_MAX * 2 + 1024
#: The most bytes of the first line. It names up to `known_state.LINEAGE_MAX` logs, which take less than 1000 bytes.
MOST_HEADER_BYTES = 8192
#: The `wbits` of zlib for its largest window and a gzip header.
GZIP_WBITS = 16 + zlib.MAX_WBITS
#: The level of compression. Level 1 takes a third of the time of the default level, and its result is a fifth larger.
COMPRESSION_LEVEL = 1


class BadBackup(Exception):
    """The data are not a whole and unchanged backup."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a backup."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    log: str
    number: int
    id: str
    #: the identities of older logs whose changes `log` contains
    continues: tuple[str, ...]
    #: when the backup was made, by Redis's clock, in the form of ISO 8601
    time: str
    #: number of records
    count: int
    #: `Storage.digest` of the records
    digest: str
    #: whether the writer of this backup no longer found the log; then the backup may be the only copy of the state
    orphaned: bool = False
    format: str = FORMAT

    @property
    def position(self) -> Position:
        return Position(self.log, self.number, self.id)

    @property
    def filename(self) -> str:
        """A name for the file of the backup, with its time and position."""
        compact = "".join(character for character in self.time[:19] if character not in "-:")
        return f"grades-{compact}Z-{self.log}-{self.number}.{SUFFIX}"


def header_of(records: FrozenRecords, position: Position, continues: tuple[str, ...], now_ms: int) -> Header:
    """Return the header for a backup of these records, which are complete up to the entry at `position`.

    `continues` are the logs that this one continues, and `now_ms` is Redis's clock.
    """
    time = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Header(position.log, position.number, position.id, continues, time, records.count, records.digest)


# Writing


def chunks_of(header: Header, records: FrozenRecords) -> Iterator[bytes]:
    """Yield a backup in chunks of bytes. Some are empty, because zlib collects data before it returns any."""
    packer, sha = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, GZIP_WBITS), hashlib.sha256()
    for text in _text_pieces(header, records):
        data = text.encode()
        sha.update(data)
        yield packer.compress(data)
    yield packer.compress(_comment_line({"count": records.count, "sha256": sha.hexdigest()}).encode())
    yield packer.flush()


def _text_pieces(header: Header, records: FrozenRecords) -> Iterator[str]:
    """Yield the lines of a backup, some shards at a time, without the last line, which has the checksum."""
    # Each piece is the work of one step.
    yield f"{_comment_line(asdict(header))}{COLUMNS}\n"
    shards = iter(records.shards)
    while shards_of_step := list(itertools.islice(shards, SHARDS_WRITTEN_PER_STEP)):
        piece = io.StringIO()
        csv_writer = csv.writer(piece, lineterminator="\n")
        for shard in shards_of_step:
            csv_writer.writerows(map(_csv_cells, shard, map(RECORD_LAYOUT.unpack, shard.values())))
        yield piece.getvalue()


def _csv_cells(user_id: str, record_cells: tuple[int, ...]) -> tuple[Any, ...]:
    """Return one line of the backup. `record_cells` has the fields of a grade, and then the stamps of these fields."""
    return (user_id, *record_cells[:FIELD_COUNT], *map(_id_of, record_cells[FIELD_COUNT:]))


def _id_of(stamp: int) -> str:
    return unpack_id(stamp) if stamp else ""  # 0: the field was never set


def _comment_line(content: dict[str, Any]) -> str:
    return f"# {json.dumps(content)}\n"


# Reading


class BackupReader:
    """Reads a backup in pieces, and verifies the whole backup before it returns a state.

    Call `feed` with each piece, then `result`. The records go to a new storage, so a bad backup costs memory but never
    changes the state that is served. A backup of more than `max_records` records is bad. Both methods raise BadBackup.
    """

    def __init__(self, max_records: int) -> None:
        self._unpacker = zlib.decompressobj(GZIP_WBITS)
        self._sha = hashlib.sha256()
        #: the beginning of a line whose end has not come yet
        self._unfinished_line = b""
        self._max_records = max_records
        self._record_count = 0
        self._has_columns = False
        self._has_footer = False
        self._storage = Storage()
        self.header: Header | None = None

    def feed(self, data: bytes) -> None:
        """Read the next piece."""
        while data:
            if self._unpacker.eof:
                raise BadBackup("data follow the end of the backup")
            try:
                unpacked = self._unpacker.decompress(data, UNPACKED_PER_STEP)
            except zlib.error as error:
                raise BadBackup(f"the backup is not valid gzip: {error}") from error
            # The rest of the piece: packed data beyond UNPACKED_PER_STEP, or data after the end of the backup.
            data = self._unpacker.unconsumed_tail or self._unpacker.unused_data
            self._take_text(unpacked)

    def result(self) -> tuple[Header, Storage]:
        """Return the header and the records of a valid backup. Call it after the last piece."""
        if not self._unpacker.eof or self._unfinished_line or not self._has_footer or self.header is None:
            raise BadBackup("the backup is truncated")
        if self._storage.count != self.header.count:
            raise BadBackup(f"the backup has {self._storage.count} users, and its first line says {self.header.count}")
        if self._storage.digest != self.header.digest:
            raise BadBackup("the digest of the records is not the one in the first line")
        return self.header, self._storage

    def free(self) -> None:
        """Free what was read so far, if the backup is not used. Call it in a thread: it may take long."""
        self._storage.free()

    def _take_text(self, unpacked: bytes) -> None:
        """Take a further part of the unpacked backup: its whole lines now, and the rest of it with the next part."""
        *lines, self._unfinished_line = (self._unfinished_line + unpacked).split(b"\n")
        if len(self._unfinished_line) > max(MOST_LINE_BYTES, MOST_HEADER_BYTES):
            raise BadBackup("a line of the backup is too long")
        next_index = 0
        while next_index < len(lines):
            if self._has_footer:
                raise BadBackup("more lines follow the line with the checksum")
            next_index += self._take_lines_of_one_kind(lines[next_index:])

    def _take_lines_of_one_kind(self, lines: list[bytes]) -> int:
        """Read the first lines that are of one kind (header, columns, records or footer). Return how many were read."""
        if self.header is None:
            self._sha.update(lines[0] + b"\n")
            self.header = self._read_header(lines[0])
        elif not self._has_columns:
            self._sha.update(lines[0] + b"\n")
            if lines[0] != COLUMNS.encode():
                raise BadBackup("the columns are not those of this format")
            self._has_columns = True
        elif records_left := self.header.count - self._record_count:
            record_lines = lines[:records_left]
            self._sha.update(b"\n".join(record_lines) + b"\n")
            self._add_records(record_lines)
            return len(record_lines)
        else:
            self._read_footer(lines[0])
        return 1

    def _read_header(self, line: bytes) -> Header:
        """Read the first line of a backup. Raises BadBackup if it is not one, or if the backup has too many records."""
        try:
            header = _HEADER_ADAPTER.validate_json(_content_of_comment(line), strict=True)
            # `pack_id` is called for its ValueError if the id is not one of a log: its result is always below 2**63.
            is_known_format = header.format == FORMAT and pack_id(header.id) < 2**63
        except ValueError as error:
            raise BadBackup("the first line is not that of a backup") from error
        if not is_known_format or min(header.count, header.number) < 0:
            raise BadBackup("the first line is not that of a known format")
        if header.count > self._max_records:
            raise BadBackup(f"the backup has {header.count} records, more than the {self._max_records} allowed")
        return header

    def _read_footer(self, line: bytes) -> None:
        if line != _comment_line({"count": self._record_count, "sha256": self._sha.hexdigest()}).encode().rstrip():
            raise BadBackup("the count or the checksum in the last line does not fit the content")
        self._has_footer = True

    def _add_records(self, lines: list[bytes]) -> None:
        """Add the records of some lines to the storage. Raises BadBackup if one of them cannot be read."""
        assert self.header is not None  # records follow the header
        newest_stamp = self.header.position.stamp
        try:
            for csv_cells in csv.reader([line.decode() for line in lines], strict=True):
                user_id, *cells = csv_cells
                stamps = [pack_id(cell) if cell else 0 for cell in cells[FIELD_COUNT:]]
                if len(cells) != 2 * FIELD_COUNT:
                    raise BadBackup(f"record {self._record_count} has {len(cells)} cells instead of {2 * FIELD_COUNT}")
                if max(stamps) > newest_stamp:
                    raise BadBackup(f"record {self._record_count} is newer than the backup")
                self._storage.merge_record(user_id, RECORD_LAYOUT.pack(*map(int, cells[:FIELD_COUNT]), *stamps))
                self._record_count += 1
        except (ValueError, csv.Error, struct.error) as error:
            raise BadBackup(f"record {self._record_count} cannot be read: {error}") from error


def _content_of_comment(line: bytes) -> bytes:
    if not line.startswith(b"# "):
        raise BadBackup("the first line is missing")
    return line[2:]


_HEADER_ADAPTER = TypeAdapter(Header)
