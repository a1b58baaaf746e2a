"""Which rows count no more: of all that plans give to one (path, row), only the row of the newest plan counts.

A plan lists a row again when its file has changed, or to try it again. A file that changed may have fewer rows than
before: those behind its end count no more either. Nothing is deleted for that: what is superseded follows from the
plans, here, whenever somebody asks.

A chunk of which nothing counts any more is one count, however many images it has: inputs that are uploaded again may be
all that there are.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby, pairwise
from operator import itemgetter

from fcn_ray.tables import planfile
from fcn_ray.tables.planfile import Place


@dataclass(frozen=True, slots=True)
class Superseded:
    """How many rows of a chunk count no more (`rows`), and which they are (`parts`), both by chunk id.

    Chunks of which all rows count are in neither, those of which none does in `rows` only.
    """

    rows: dict[str, int] = field(default_factory=dict)
    parts: dict[str, list[Place]] = field(default_factory=dict)

    def has_all(self, chunk_id: str) -> bool:
        """True for a chunk without a current row."""
        return chunk_id in self.rows and chunk_id not in self.parts

    def _add(self, place: Place) -> None:
        self.rows[place.chunk_id] = self.rows.get(place.chunk_id, 0) + place.n_rows
        self.parts.setdefault(place.chunk_id, []).append(place)

    def _end(self, chunk_id: str, n_rows: int) -> None:
        """The chunk has so many rows, of which there are no more to add."""
        if self.rows.get(chunk_id) == n_rows:
            del self.parts[chunk_id]


def find_superseded(
    run_uri: str, newest: int, counts: Callable[[str], bool] = lambda chunk_id: True, drafts: str = ""
) -> Superseded:
    """The rows that a newer plan, up to `newest`, has too, or no more.

    Only chunks whose id `counts` are looked at. Plans in the folder `drafts` come after those of the run. A merge of
    the sorted plans: memory holds a count for each chunk, and the places of those that are superseded in part.
    """
    found = Superseded()
    homes = dict.fromkeys(range(1, newest + 1), run_uri)
    homes |= dict.fromkeys(planfile.list_plans(drafts) if drafts else (), drafts)
    if len(homes) > 1:  # a plan lists no row twice
        streams = (planfile.read_places(home, number) for number, home in homes.items())
        is_retry = cache(lambda number: planfile.is_retry(homes[number], number))
        now: dict[int, tuple[str, int]] = {}  # plan -> the chunk that the merge has come to, and its rows up to there
        for _, group in groupby(heapq.merge(*streams), key=itemgetter(0)):
            places = list(group)
            if len(places) > 1 and len({plan for _, _, _, plan, _ in places}) > 1:
                for place in _older([Place(*cells) for cells in places], counts, is_retry):
                    found._add(place)
            for _, _, n_rows, plan, chunk_id in places:
                name, before = now.get(plan, (chunk_id, 0))
                if name != chunk_id:
                    found._end(name, before)
                    before = 0
                now[plan] = chunk_id, before + n_rows
        for name, before in now.values():
            found._end(name, before)
    return found


def _older(places: Sequence[Place], counts: Callable[[str], bool], is_retry: Callable[[int], bool]) -> Iterator[Place]:
    """The parts of places of one path that lie under those of newer plans, or behind the end of its newest version."""
    behind = _end(places, is_retry)
    counted = [place for place in places if counts(place.chunk_id)]
    borders = {border for place in counted for border in (place.first_row, place.first_row + place.n_rows)}
    here: list[Place] = []
    following = iter(counted)
    coming = next(following, None)
    for first, end in pairwise(sorted(borders | {behind})):
        while coming is not None and coming.first_row == first:
            here.append(coming)
            coming = next(following, None)
        here = [place for place in here if place.first_row + place.n_rows > first]
        top = max((place.plan for place in here), default=0)
        past = here if first >= behind else [place for place in here if place.plan < top]
        yield from (place._replace(first_row=first, n_rows=end - first) for place in past)


def _end(places: Sequence[Place], is_retry: Callable[[int], bool]) -> int:
    """How many rows the newest version has: a plan that lists it for the first time lists all of them."""
    plans = sorted({place.plan for place in places}, reverse=True)
    listed = next((plan for plan in plans if not is_retry(plan)), plans[0])
    return max(place.first_row + place.n_rows for place in places if place.plan == listed)
