"""Which rows count no more: of all that plans give to one (path, row), only the row of the newest plan counts.

A plan lists a row again when its file has changed, or to try it again. A file that changed may have fewer rows than
before: those behind its end count no more either. Nothing is deleted for that: what is superseded follows from the
plans, here, whenever somebody asks.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby, pairwise
from operator import itemgetter

from fcn_ray.tables import planfile
from fcn_ray.tables.planfile import Place


def find_superseded(
    run_uri: str, newest: int, counts: Callable[[str], bool] = lambda chunk_id: True, drafts: str = ""
) -> dict[str, list[Place]]:
    """Chunk id -> the rows of that chunk which a newer plan, up to `newest`, has too, or no more; chunks without any
    are left out.

    Only chunks whose id `counts` are looked at. Plans in the folder `drafts` come after those of the run. A merge of
    the sorted plans: memory holds what is superseded.
    """
    found: dict[str, list[Place]] = {}
    homes = dict.fromkeys(range(1, newest + 1), run_uri)
    homes |= dict.fromkeys(planfile.list_plans(drafts) if drafts else (), drafts)
    if len(homes) > 1:  # a plan lists no row twice
        streams = (planfile.read_places(home, number) for number, home in homes.items())
        is_retry = cache(lambda number: planfile.is_retry(homes[number], number))
        for _, group in groupby(heapq.merge(*streams), key=itemgetter(0)):
            places = list(group)
            if len(places) > 1 and len({plan for _, _, _, plan, _ in places}) > 1:
                for place in _older([Place(*cells) for cells in places], counts, is_retry):
                    found.setdefault(place.chunk_id, []).append(place)
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
