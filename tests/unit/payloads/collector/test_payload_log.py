"""Segments on disk: their names, what readers see, merging; and the write-ahead file's records."""

import threading
from pathlib import Path

import pytest

from kubeloop.payloads import segments, wal
from kubeloop.payloads.compaction import Compactor, remove_covered
from kubeloop.payloads.segments import LogError, Row


def rows(first: int, last: int) -> list[Row]:
    return [(seq, seq, 0, str(seq), "t", "s", "", "", "", "", b"b" * (seq % 50)) for seq in range(first, last + 1)]


def write(directory: Path, first: int, last: int) -> segments.Segment:
    return segments.write(directory, segments.table_of(rows(first, last)))


def seqs(directory: Path, after: int = 0, max_rows: int | None = None) -> list[int]:
    table, last = segments.read(directory, after, max_rows)
    found: list[int] = table["seq"].to_pylist()
    assert table.schema == segments.SCHEMA
    assert last == (found[-1] if found else after)
    return found


def test_a_segment_names_its_events_and_leaves_nothing_else(tmp_path: Path) -> None:
    segment = write(tmp_path, 1, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["events-0000000000000001-0000000000000003.parquet"]
    assert segments.segments(tmp_path) == [segment]
    table = segments.load(segment)
    assert [tuple(row.values())[3:] for row in table.to_pylist()] == [row[3:] for row in rows(1, 3)]


@pytest.mark.parametrize(
    ("after", "max_rows", "expected"),
    [
        (0, None, range(1, 10)),
        (3, None, range(4, 10)),
        (4, None, range(5, 10)),
        (9, None, []),
        (50, None, []),
        (0, 1, range(1, 4)),
        (0, 4, range(1, 7)),
        (4, 2, range(5, 7)),
    ],
)
def test_reading_goes_on_where_the_reader_stopped(
    tmp_path: Path, after: int, max_rows: int | None, expected: range
) -> None:
    for first in (1, 4, 7):
        write(tmp_path, first, first + 2)
    assert seqs(tmp_path, after, max_rows) == list(expected)


def test_a_folder_that_is_missing_or_holds_other_files_is_an_empty_log(tmp_path: Path) -> None:
    assert seqs(tmp_path / "missing", 5) == []
    for name in ("events-1-2.parquet", "events-x.parquet", ".events.tmp", "wal-0000000000000001.log", "notes.txt"):
        (tmp_path / name).write_text("foreign")
    (tmp_path / "folder").mkdir()
    assert seqs(tmp_path) == []
    write(tmp_path, 1, 2)
    assert seqs(tmp_path) == [1, 2]


def test_nothing_new_opens_no_file(tmp_path: Path) -> None:
    segment = write(tmp_path, 1, 2)
    segment.path.write_bytes(b"would fail if it were opened")
    assert seqs(tmp_path, 2) == []


@pytest.mark.parametrize("content", [b"", b"PAR1 and then nothing"])
def test_a_damaged_segment_is_named(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, 1, 2).path.write_bytes(content)
    with pytest.raises(LogError, match=r"events-0+1-0+2.parquet is damaged"):
        segments.read(tmp_path)


def test_what_cannot_be_read_for_a_moment_is_not_called_damaged(tmp_path: Path) -> None:
    """The advice of that message would be to move a whole segment out of the log."""
    segment = write(tmp_path, 1, 2)
    segment.path.unlink()
    segment.path.symlink_to(segment.path)
    with pytest.raises(LogError, match=r"parquet cannot be read \(Too many levels of symbolic links\)"):
        segments.load(segment)


def test_a_dead_link_is_named_instead_of_read_forever(tmp_path: Path) -> None:
    (tmp_path / "events-0000000000000001-0000000000000002.parquet").symlink_to(tmp_path / "gone")
    with pytest.raises(LogError, match="broken link"):
        segments.read(tmp_path)


def test_a_merged_segment_hides_its_parts_wherever_the_reader_is(tmp_path: Path) -> None:
    for first in (1, 4, 7, 10):
        write(tmp_path, first, first + 2)
    write(tmp_path, 1, 9)
    assert [(s.first, s.last) for s in segments.segments(tmp_path)] == [(1, 9), (10, 12)]
    for after in range(13):
        assert seqs(tmp_path, after) == list(range(after + 1, 13))
    remove_covered(tmp_path, segments.segments(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2
    assert seqs(tmp_path) == list(range(1, 13))


def test_merging_bounds_the_number_of_files_under_a_reader(tmp_path: Path) -> None:
    """Parts are deleted without a grace period, so the reader meets files that vanish between listing and opening."""
    seen: list[int] = []
    done = threading.Event()

    def follow() -> None:
        after = 0
        last_round = False
        while not last_round:
            last_round = done.is_set()
            table, after = segments.read(tmp_path, after)
            seen.extend(table["seq"].to_pylist())

    reader = threading.Thread(target=follow)
    reader.start()
    compactor = Compactor(tmp_path, grace_s=0)
    for first in range(1, 451, 3):
        compactor.add(write(tmp_path, first, first + 2), 100)
        compactor.sweep()
    done.set()
    reader.join()
    assert seen == list(range(1, 451))
    assert len(list(tmp_path.iterdir())) <= 32


def test_parts_stay_for_readers_until_their_grace_is_over(tmp_path: Path) -> None:
    compactor = Compactor(tmp_path, grace_s=1000)
    for first in range(1, 33):
        compactor.add(write(tmp_path, first, first), 100)
        compactor.sweep()
    assert [(s.first, s.last) for s in segments.segments(tmp_path)] == [(1, 32)]
    assert len(list(tmp_path.iterdir())) == 33
    compactor.sweep(now=float("inf"))
    assert len(list(tmp_path.iterdir())) == 1


def test_large_segments_are_left_alone(tmp_path: Path) -> None:
    compactor = Compactor(tmp_path, grace_s=0)
    for first in range(1, 41):
        compactor.add(write(tmp_path, first, first), 30 * 2**20)
    assert len(segments.segments(tmp_path)) == 40


def test_a_merge_that_failed_hides_nothing_from_those_that_follow(tmp_path: Path) -> None:
    compactor = Compactor(tmp_path, grace_s=0)
    for first in (1, 2):
        compactor.add(write(tmp_path, first, first), 100)
    large = write(tmp_path, 3, 3)
    # The path of the merge's first file is occupied, which has the same effect as a full disk.
    (tmp_path / ".events.tmp").mkdir()
    with pytest.raises(OSError, match="directory"):
        compactor.add(large, 32 * 2**20)
    (tmp_path / ".events.tmp").rmdir()
    for first in range(4, 80):
        compactor.add(write(tmp_path, first, first), 100)
        compactor.sweep()
    assert len(segments.segments(tmp_path)) < 40, "some segments were merged"
    assert seqs(tmp_path) == list(range(1, 80))


def test_segments_with_a_gap_between_them_are_not_merged(tmp_path: Path) -> None:
    compactor = Compactor(tmp_path, grace_s=0)
    for first in (1, *range(3, 33)):
        compactor.add(write(tmp_path, first, first), 100)
    newest = write(tmp_path, 33, 33)
    with pytest.raises(LogError, match="does not continue where"):
        compactor.add(newest, 100)
    assert [(s.first, s.last) for s in segments.segments(tmp_path)] == [(1, 1), *((s, s) for s in range(3, 34))]


def test_write_ahead_records_survive_every_tear(tmp_path: Path) -> None:
    written = rows(1, 4)
    file = wal.Wal(tmp_path, 1)
    file.append(wal.encode(written, file.salt))
    file.close()
    [path] = wal.wal_files(tmp_path)
    assert wal.replay(path) == (written, 0, 0)
    data = path.read_bytes()
    ends = [len(wal.encode(written[:count])) for count in range(5)]
    for size in range(len(data)):
        path.write_bytes(data[:size])
        whole = sum(end <= size for end in ends) - 1
        assert wal.replay(path) == (written[:whole], 0, size - ends[whole])


def test_a_flipped_bit_costs_the_record_that_it_is_in(tmp_path: Path) -> None:
    written = rows(1, 4)
    path = tmp_path / "wal-0000000000000001.log"
    data = wal.encode(written)
    ends = [len(wal.encode(written[:count])) for count in range(5)]
    for position in range(len(data)):
        for bit in (0, 7):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
            hit = next(count for count in range(4) if position < ends[count + 1])
            whole, lost, torn = wal.replay(path)
            assert whole == written[:hit] + written[hit + 1 :], position
            # The last record cannot be told from a torn one if its lengths are wrong.
            assert (lost, torn) == (1, 0) or (hit == 3 and position < ends[3] + 8 and torn and not lost)


def test_a_record_inside_a_damaged_body_is_not_an_event(tmp_path: Path) -> None:
    inner = wal.encode(rows(1, 9))
    outer = [(*row[:-1], b"x" + inner) for row in rows(1, 3)]
    data = bytearray(wal.encode(outer, 0xA1B2C3D4))
    data[0] ^= 1
    path = tmp_path / "wal-0000000000000001-a1b2c3d4.log"
    path.write_bytes(data)
    assert wal.replay(path) == (outer[1:], 1, 0)


def test_a_write_ahead_file_is_never_opened_twice(tmp_path: Path) -> None:
    wal.Wal(tmp_path, 1).close()
    with pytest.raises(FileExistsError):
        wal.Wal(tmp_path, 1)


def test_a_failed_write_leaves_nothing_a_reader_sees(tmp_path: Path) -> None:
    target = tmp_path / "events-0000000000000001-0000000000000002.parquet"
    target.mkdir()
    with pytest.raises(OSError, match="directory"):
        write(tmp_path, 1, 2)
    target.rmdir()
    assert seqs(tmp_path) == []
    write(tmp_path, 1, 2)
    assert seqs(tmp_path) == [1, 2]
