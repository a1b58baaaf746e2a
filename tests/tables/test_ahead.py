import threading
from collections.abc import Iterator

import pytest

from fcn_ray.errors import StorageError
from fcn_ray.tables.ahead import THREADS, WINDOW, ReadAhead
from fcn_ray.tables.contents import RowGroup
from fcn_ray.tables.sources import Source

NEVER = threading.Event()


def _sources(kinds: str, listed: list[str] | None = None) -> Iterator[Source]:
    """Tables and images by the letters of `kinds`; what was listed is noted."""
    for number, letter in enumerate(kinds):
        path = f"{number:03}"
        if listed is not None:
            listed.append(path)
        yield Source(path, "parquet" if letter == "t" else "image", number, "1")


def _groups(source: Source, closed: threading.Event = NEVER) -> list[RowGroup]:
    if source.size % 5 == 3:
        raise StorageError(source.path)
    return [RowGroup(source.size, 0)]


def test_each_table_gets_what_was_read_of_it_in_order() -> None:
    ahead, found = ReadAhead(_groups), []
    for source in ahead.watch(_sources("ttittittttiii" * 20)):
        try:
            found.append((source.path, source.kind == "image" or ahead.take(source)))
        except StorageError as error:
            found.append((source.path, str(error)))
    ahead.close()
    assert found == [
        (source.path, True if source.kind == "image" else source.path if source.size % 5 == 3 else _groups(source))
        for source in _sources("ttittittttiii" * 20)
    ]


def test_tables_are_read_several_at_once() -> None:
    barrier = threading.Barrier(THREADS)
    ahead = ReadAhead(lambda source, closed: [RowGroup(barrier.wait(timeout=10), 0)])
    for source in ahead.watch(_sources("tit" * THREADS)):
        assert source.kind == "image" or ahead.take(source)
    ahead.close()


@pytest.mark.parametrize(("kinds", "ahead_of_first"), [("t", WINDOW), ("i", 0)])
def test_the_listing_goes_only_so_far_ahead(kinds: str, ahead_of_first: int) -> None:
    listed: list[str] = []
    ahead = ReadAhead(_groups)
    next(ahead.watch(_sources(kinds + "ti" * 500, listed)))
    ahead.close()
    assert len(listed) == 1 + ahead_of_first


def test_what_was_not_begun_is_not_done_any_more() -> None:
    going, done = threading.Event(), []

    def read(source: Source, closed: threading.Event) -> list[RowGroup]:
        going.wait(timeout=10)
        done.append(source.path)
        return []

    ahead = ReadAhead(read)
    next(ahead.watch(_sources("t" * 100)))
    ahead.close()
    going.set()
    ahead._pool.shutdown(wait=True)
    assert len(done) <= THREADS


def test_what_is_under_way_hears_that_nobody_waits_for_it() -> None:
    """A tar in a store takes minutes, and a process ends after its threads."""
    begun, heard = threading.Event(), []

    def read(source: Source, closed: threading.Event) -> list[RowGroup]:
        begun.set()
        heard.append(closed.wait(timeout=10))
        return []

    ahead = ReadAhead(read)
    next(ahead.watch(_sources("ti" + "t" * 100)))
    assert begun.wait(timeout=10)
    ahead.close()
    ahead._pool.shutdown(wait=True)
    assert heard
    assert all(heard)
