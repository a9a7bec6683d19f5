"""The format of a backup: a written one is read, and any other data are refused."""

from __future__ import annotations

import csv
import gzip
import json
import random
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.journal.position import Position
from quart_app.grades import backup
from quart_app.grades.backup import BackupReader, BadBackup, Header
from quart_app.grades.models import FIELDS
from quart_app.grades.storage import FrozenRecords, Storage

POSITION = Position("0123456789abcdef", 42, "1763700000500-3")
NOW_MS = 1763700001234
USER_IDS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=255)
VALUES = st.integers(-(2**63), 2**63 - 1)
STAMPS = st.integers(0, POSITION.stamp)


def state_of(records: dict[str, list[tuple[int, int]]]) -> Storage:
    storage = Storage()
    for user_id, cells in records.items():
        storage.merge(user_id, dict(enumerate(cells)))
    return storage


def written(state: FrozenRecords, **changed: object) -> bytes:
    header = backup.header_of(state, POSITION, ("f" * 16,), NOW_MS)
    return b"".join(backup.chunks_of(replace(header, **changed), state))  # type: ignore[arg-type]


def read(data: bytes, size: int = 1000, max_records: int = 10_000) -> tuple[Header, Storage]:
    reader = BackupReader(max_records)
    for at in range(0, len(data), size):
        reader.feed(data[at : at + size])
    return reader.result()


@pytest.fixture(scope="module")
def sample() -> bytes:
    rng = random.Random(3)
    records = {f"user-{n}": [(rng.randrange(100), rng.randrange(POSITION.stamp)) for _ in FIELDS] for n in range(500)}
    return written(state_of(records).snapshot())


@given(
    st.dictionaries(USER_IDS, st.lists(st.tuples(VALUES, STAMPS), min_size=4, max_size=4), max_size=20),
    st.integers(1, 5000),
)
@settings(max_examples=60)
def test_a_written_backup_is_read(records: dict[str, list[tuple[int, int]]], size: int) -> None:
    """This holds for any user ids (quotes, commas, leading '#', other scripts) and for pieces of any size."""
    storage = state_of(records)
    header, again = read(written(storage.snapshot()), size)
    assert (again.digest, again.count) == (storage.digest, storage.count)
    assert header.position == POSITION and header.continues == ("f" * 16,)


def test_any_tool_can_read_it(sample: bytes) -> None:
    """gunzip and a CSV reader suffice; it has time, log and position, and one line per user."""
    first, *lines, last = gzip.decompress(sample).decode().splitlines()
    about = json.loads(first.removeprefix("# "))
    assert about["time"] == "2025-11-21T04:40:01.234Z"
    assert (about["log"], about["number"], about["id"]) == (POSITION.log, POSITION.number, POSITION.id)
    rows = list(csv.DictReader(lines))
    assert len(rows) == about["count"] == json.loads(last.removeprefix("# "))["count"] == 500
    assert {"user_id", *FIELDS, "spp_set"} <= rows[0].keys()


def test_the_file_name_has_time_and_position(sample: bytes) -> None:
    """A saved file can be identified by its name."""
    header, _ = read(sample)
    assert header.filename == "grades-20251121T044001Z-0123456789abcdef-42.csv.gz"


def test_every_truncation_is_refused(sample: bytes) -> None:
    """A connection can break, or a disk be full, at any byte."""
    for end in [*range(0, len(sample), 97), *range(len(sample) - 40, len(sample))]:
        with pytest.raises(BadBackup):
            read(sample[:end])


def test_every_flipped_bit_is_refused_or_harmless(sample: bytes) -> None:
    """A flipped bit is refused, unless it has no meaning (the time in the gzip header)."""
    rng = random.Random(5)
    whole = read(sample)
    for _ in range(300):
        bad = bytearray(sample)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        try:
            header, storage = read(bytes(bad))
        except BadBackup:
            continue
        assert (header, storage.digest) == (whole[0], whole[1].digest)


def edited(sample: bytes, edit: Callable[[list[str]], list[str]]) -> bytes:
    """Return the sample with edited lines, in valid gzip."""
    return gzip.compress(("\n".join(edit(gzip.decompress(sample).decode().splitlines())) + "\n").encode())


def header_with(lines: list[str], **changed: object) -> list[str]:
    return [f"# {json.dumps({**json.loads(lines[0][2:]), **changed})}", *lines[1:]]


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda lines: [*lines[:9], *lines[10:]], id="a line is missing"),
        pytest.param(lambda lines: [*lines[:9], lines[8], *lines[9:]], id="a line stands twice"),
        pytest.param(lambda lines: lines[:-1], id="no last line"),
        pytest.param(lambda lines: [*lines, "more,0,0,0,0,,,,"], id="a line after the last"),
        pytest.param(lambda lines: [*lines[:9], lines[9].replace(",", ",1", 1), *lines[10:]], id="a changed value"),
        pytest.param(lambda lines: lines[1:], id="no first line"),
        pytest.param(lambda lines: header_with(lines, count=499), id="another count"),
        pytest.param(lambda lines: header_with(lines, count=-1), id="a negative count"),
        pytest.param(lambda lines: header_with(lines, count="many"), id="a count that is none"),
        pytest.param(lambda lines: header_with(lines, digest="0" * 32), id="another digest"),
        pytest.param(lambda lines: header_with(lines, format="grades/9"), id="another format"),
        pytest.param(lambda lines: header_with(lines, id="x"), id="a position that is none"),
        pytest.param(lambda lines: header_with(lines, surprise=1), id="an unknown member"),
        pytest.param(lambda lines: header_with(lines, number=43), id="another number"),
        pytest.param(lambda lines: ["# []", *lines[1:]], id="a first line that is no object"),
        pytest.param(lambda lines: ["# " + "[" * 5000, *lines[1:]], id="deep nesting"),
        pytest.param(lambda lines: [lines[0], "user_id", *lines[2:]], id="other columns"),
    ],
)
def test_a_changed_backup_is_refused(sample: bytes, edit: Callable[[list[str]], list[str]]) -> None:
    """The reader checks count, checksum, digest and format before it returns anything."""
    with pytest.raises(BadBackup):
        read(edited(sample, edit))


@pytest.mark.parametrize(
    "data",
    # Without a time in the gzip header the ids of the cases are the same in every test worker.
    [b"", b"hello", gzip.compress(b"", mtime=0), gzip.compress(b"\x00" * 100, mtime=0), b"\x1f\x8b"],
)
def test_other_data_are_refused(data: bytes) -> None:
    """The data are an error page, an empty file, or another content in gzip."""
    with pytest.raises(BadBackup):
        read(data)


def test_data_after_the_end_are_refused(sample: bytes) -> None:
    """No backup has a second gzip member or trailing bytes."""
    for extra in (b"x", gzip.compress(b"x"), sample):
        with pytest.raises(BadBackup):
            read(sample + extra)


def test_a_record_from_after_the_position_is_refused() -> None:
    """A stamp above the position would win against later entries."""
    storage = Storage()
    storage.merge("a", {0: (1, POSITION.stamp + 1)})
    with pytest.raises(BadBackup, match="is newer than the backup"):
        read(written(storage.snapshot()))


def test_more_records_than_allowed_are_refused_at_the_first_line(sample: bytes) -> None:
    """A peer cannot fill the memory: the count in the first line is checked first, then the content."""
    reader = BackupReader(499)
    with pytest.raises(BadBackup, match="more than"):
        reader.feed(sample)
    assert reader.header is None


def test_a_bomb_is_refused_in_bounded_memory() -> None:
    """64 MB of one character in 64 kB are refused after one step."""
    packer = zlib.compressobj(9, zlib.DEFLATED, backup.GZIP_WBITS)
    bomb = b"".join(packer.compress(b"#" * (1 << 20)) for _ in range(64)) + packer.flush()
    tracemalloc.start()
    with pytest.raises(BadBackup, match="too long"):
        read(bomb, size=1 << 16)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * backup.UNPACKED_PER_STEP


def test_writing_and_reading_go_in_small_steps(sample: bytes) -> None:
    """Chunks are bounded in both directions, so neither needs more memory than a chunk beside the records."""
    storage = Storage()
    for number in range(20_000):
        storage.merge(f"user-{number}", {0: (number, 1)})
    header = backup.header_of(storage.snapshot(), POSITION, (), NOW_MS)
    chunks = list(backup.chunks_of(header, storage.snapshot()))
    assert len(chunks) > 200
    assert max(map(len, chunks)) < 200_000
