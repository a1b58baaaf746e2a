"""Every interleaving of labelling jobs over one store, by search: a model checker whose jobs are the real code.

Real: `open_run`, `extend_plan`, `pending_chunks`, `commit_chunk` and `finish`, with all that they call, down to
`fcn_ray.storage`. Modelled: the store (an object appears whole, if absent; `_SUCCESS` is replaced), the listing of the
input (at one moment), what the network makes of an image (other bytes with each driver), and Ray, as a loop over the
pending chunks.

A step is one request to the store. Requests that change nothing, and whose answer nobody can change any more, are
answered at once with the step before. At every step a job may die, also with its request still on its way; the reply
to a write may be lost (the job sees an error; or its client asked again and was told that the object is there), or the
write be sent twice, and arrive at any time later; and Ray may lose a chunk. Those that have not come to their end may
start again at any moment, and the input may grow: as nobody sees that but by a listing, it does so just before one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from fcn_ray.errors import IncompleteError
from tests.tables.promises import BrokenError, check_end, check_store
from tests.tables.stepping import (
    ERROR,
    IN,
    OUT,
    RUN,
    Code,
    Frame,
    LostReplyError,
    Node,
    Request,
    following,
    to_next_chunk,
)

SUCCESS = f"{RUN.uri}/_SUCCESS"
INPUTS = ((("b.png", "1"),), (("a.png", "1"), ("b.png", "2")))
"""(path, version) of all inputs: one file; then it has changed, and another came before it."""

DEAD, DONE = -1, -2
"""Instead of the number of a job's place in its code."""

WRITES = {"put", "replace"}


class State(NamedTuple):
    """The store, which inputs were seen, where the jobs are, writes that may still arrive, faults still to come."""

    store: int
    inputs: int
    jobs: tuple[int, ...]
    flying: frozenset[Request]
    faults: int


Step = tuple[object, ...]
Move = tuple[State, Step]


@dataclass
class Found:
    """What a search saw. `broken` says which promise is, and `steps` the shortest way there, if one is."""

    states: int
    moves: int
    stores: int
    ends: int
    broken: str | None
    steps: list[str]


class Store:
    """All contents that the store had, by number: URI -> bytes."""

    def __init__(self, overwrite: bool) -> None:
        self.contents: list[dict[str, bytes]] = [{}]
        self._numbers: dict[frozenset[tuple[str, bytes]], int] = {frozenset(): 0}
        self._overwrite = overwrite

    def ask(self, store: int, inputs: int, request: Request) -> tuple[int, Hashable]:
        """The store after a request, and its answer. Raises BrokenError when something changes that never may."""
        kind, uri = request[:2]
        content = self.contents[store]
        if kind == "put" and uri in content and not self._overwrites(uri):
            return store, False
        if kind in WRITES:
            return self._write(content, uri, request[2]), kind == "put"
        if kind == "read":
            return store, content.get(uri, b"")
        if kind == "is_file":
            return store, uri in content
        if uri == IN:
            return store, INPUTS[inputs]
        if kind == "folders":
            return store, (RUN.uri.removeprefix(f"{OUT}/"),) if content else ()
        names = [name.removeprefix(f"{uri}/") for name in sorted(content) if name.startswith(f"{uri}/")]
        return store, tuple(
            (name, "") for name in names[: 1 if uri == OUT else None]
        )  # of OUT's, only if there are any

    def is_settled(self, store: int, inputs: int, request: Request) -> bool:
        """True when it changes nothing, and no step of anybody can change the answer."""
        kind, uri = request[:2]
        content = self.contents[store]
        if kind == "put":
            return uri in content and not self._overwrites(uri)
        if kind == "files":
            return uri == IN and inputs == len(INPUTS) - 1
        if kind == "folders":
            return bool(content)
        if uri.endswith("/manifests/000000.json"):  # of a run without plans: here the input is never empty
            return True
        return kind in {"read", "is_file"} and uri in content and uri != SUCCESS

    def _overwrites(self, uri: str) -> bool:
        """Never run.json, by whose second put a job may notice what store it has."""
        return self._overwrite and not uri.endswith("/run.json")

    def _write(self, content: dict[str, bytes], uri: str, data: bytes) -> int:
        if uri in content and content[uri] != data and uri != SUCCESS:
            raise BrokenError(f"{uri} is replaced by something else")
        changed = content | {uri: data}
        key = frozenset(changed.items())
        if key not in self._numbers:
            self._numbers[key] = len(self.contents)
            self.contents.append(changed)
        return self._numbers[key]


class Search:
    """Breadth first over states; jobs are numbers of places in their code, which `_settle` finds."""

    def __init__(self, code: Code, store: Store, drivers: str, faults: int) -> None:
        self.code, self.store, self.drivers = code, store, drivers
        self.places: list[tuple[Frame, Node]] = []
        self._numbers: dict[tuple[Frame, Node], int] = {}
        self._after: dict[tuple[int, Hashable, int, int], int] = {}
        self._right: set[int] = set()
        self._goes_on: set[tuple[int, int]] = set()
        self.first = State(0, 0, tuple(self._begin(driver, 0, 0) for driver in drivers), frozenset(), faults)

    def run(self) -> Found:
        """Look at every state, or at all up to the first one in which a promise is broken."""
        came_from: dict[State, Move | None] = {self.first: None}
        queue, moves, ends = deque([self.first]), 0, 0
        while queue:
            state = queue.popleft()
            try:
                self._check(state)
                for after, step in self._moves(state):
                    moves += 1
                    if after not in came_from:
                        came_from[after] = (state, step)
                        queue.append(after)
            except BrokenError as error:
                return Found(len(came_from), moves, len(self._right), ends, str(error), _way(state, came_from))
            ends += not any(job >= 0 for job in state.jobs)
        return Found(len(came_from), moves, len(self._right), ends, None, [])

    # --------------------------------------------------------------------------------------------------- what is right

    def _check(self, state: State) -> None:
        """The store is right; and if all died now, the next job would come to the end."""
        if state.store not in self._right:
            check_store(RUN.uri, self.store.contents[state.store])
            self._right.add(state.store)
        for inputs in range(state.inputs, len(INPUTS)):
            self._check_next_job(state.store, inputs)
        if state.faults == self.first.faults:  # nothing has happened to anybody
            if DEAD in state.jobs:
                raise BrokenError("a job fails without a reason")
            if all(job == DONE for job in state.jobs):
                check_end(RUN.uri, self.store.contents[state.store], ())

    def _check_next_job(self, store: int, inputs: int) -> None:
        if (store, inputs) in self._goes_on:
            return
        end = self._finish_alone(store, inputs)
        check_end(RUN.uri, self.store.contents[end], INPUTS[inputs])
        if self._finish_alone(end, inputs) != end:
            raise BrokenError("a job that has nothing to do changes the store")
        self._goes_on.add((store, inputs))

    def _finish_alone(self, store: int, inputs: int) -> int:
        """The store after one more job that nothing happens to."""
        job = self._begin(self.drivers[0], store, inputs)
        while job >= 0:
            store, answer = self.store.ask(store, inputs, self._request(job))
            job = self._advance(job, answer, store, inputs)
        return store

    # ------------------------------------------------------------------------------------------------- what can happen

    def _moves(self, state: State) -> Iterator[Move]:
        for index, job in enumerate(state.jobs):
            driver = self.drivers[index]
            if job >= 0:
                request = self._request(job)
                moves = self._writes if request[0] in WRITES else self._reads
                for after, step in moves(state, index, request):
                    yield after, (driver, *request[:2], *step)
            elif job == DEAD:
                yield self._with(state, index, self._begin(driver, state.store, state.inputs)), (driver, "starts again")
        for request in state.flying:
            store, _ = self.store.ask(state.store, state.inputs, request)
            after = state._replace(store=store, flying=state.flying - {request})
            yield self._landed(after), (*request[:2], "arrives late")

    def _reads(self, state: State, index: int, request: Request) -> Iterator[Move]:
        for inputs in range(state.inputs, len(INPUTS) if request[1] == IN else state.inputs + 1):
            _, answer = self.store.ask(state.store, inputs, request)
            grown = state if inputs == state.inputs else state._replace(inputs=inputs)
            yield self._told(grown, index, answer), ("of inputs", inputs)
        if state.faults:
            yield self._with(state, index, DEAD, faults=1), ("and dies",)

    def _writes(self, state: State, index: int, request: Request) -> Iterator[Move]:
        store, answer = self.store.ask(state.store, state.inputs, request)
        done = state._replace(store=store)
        yield self._landed(self._told(done, index, answer)), (answer,)
        if not state.faults:
            return
        faults, flying = state.faults - 1, state.flying | {request}
        dead = self._with(state, index, DEAD, faults=1)
        yield dead, ("not done, and dies",)
        yield self._landed(dead._replace(store=store)), ("done, and dies",)
        done = done._replace(faults=faults)
        if request[0] == "put" or len(self.drivers) == 1:  # a late _SUCCESS only informs, and doubles all that follows
            yield dead._replace(flying=flying), ("on its way, and dies",)
            yield self._landed(self._told(done._replace(flying=flying), index, answer)), (answer, "sent twice")
        for told in (ERROR, False)[: 2 if request[0] == "put" else 1]:
            yield self._landed(self._told(done, index, told)), ("done, but told", told)
        frame, _ = self.places[state.jobs[index]]
        if frame.phase == "commit":
            frame = to_next_chunk(frame)
            job = self._settle(frame, self.code.root(frame), state.store, state.inputs)
            yield self._with(state, index, job, faults=1), ("lost by the pipeline",)

    def _told(self, state: State, index: int, answer: Hashable) -> State:
        return self._with(state, index, self._advance(state.jobs[index], answer, state.store, state.inputs))

    def _with(self, state: State, index: int, job: int, faults: int = 0) -> State:
        """The state with a job in another place, and after so many more faults."""
        jobs = (*state.jobs[:index], job, *state.jobs[index + 1 :])
        return State(state.store, state.inputs, jobs, state.flying, state.faults - faults)

    def _landed(self, state: State) -> State:
        """Without the writes on their way that come too late to change anything."""
        late = {request for request in state.flying if self.store.is_settled(state.store, state.inputs, request)}
        return state._replace(flying=state.flying - late) if late else state

    # --------------------------------------------------------------------------------------------------- where jobs are

    def _request(self, job: int) -> Request:
        return self.places[job][1].request or ()

    def _begin(self, driver: str, store: int, inputs: int) -> int:
        frame = Frame(driver)
        return self._settle(frame, self.code.root(frame), store, inputs)

    def _advance(self, job: int, answer: Hashable, store: int, inputs: int) -> int:
        """The job's next place after this answer."""
        key = (job, answer, store, inputs)
        if key not in self._after:
            frame, node = self.places[job]
            self._after[key] = self._settle(frame, node.after(answer), store, inputs)
        return self._after[key]

    def _settle(self, frame: Frame, node: Node, store: int, inputs: int) -> int:
        """Where the job next waits for an answer that others can change; or DONE; or DEAD: its own exit code 4 or 9."""

        def answer(request: Request) -> Hashable | None:
            settled = self.store.is_settled(store, inputs, request)
            return self.store.ask(store, inputs, request)[1] if settled else None

        while True:
            if node.request is None and not node.ended:
                node = self.code.run(frame, node, answer)
            elif isinstance(node.error, LostReplyError | IncompleteError):
                return DEAD
            elif node.error is not None:
                raise BrokenError(f"driver {frame.driver} fails in {frame.phase}: {node.error!r}")
            elif node.ended:
                after = following(frame, node.result)
                if after is None:
                    return DONE
                frame, node = after, self.code.root(after)
            elif (found := answer(node.request or ())) is not None:
                node = node.after(found)
            else:
                return self._number(frame, node)

    def _number(self, frame: Frame, node: Node) -> int:
        if (frame, node) not in self._numbers:
            self._numbers[frame, node] = len(self.places)
            self.places.append((frame, node))
        return self._numbers[frame, node]


def _way(state: State, came_from: dict[State, Move | None]) -> list[str]:
    steps: list[str] = []
    while (came := came_from[state]) is not None:
        state = came[0]
        steps.insert(0, " ".join(map(str, came[1])).replace(f"{RUN.uri}/", ""))
    return steps


def search(
    patch: pytest.MonkeyPatch,
    drivers: str,
    faults: int,
    overwrite: bool = False,
    put_plan: Callable[[str, bytes], bool] | None = None,
    remove_guard: Callable[[Code], None] = lambda code: None,
) -> Found:
    """Try everything that can happen to jobs of these drivers with so many faults; or without one of the guards."""
    code = Code(patch, put_plan)
    remove_guard(code)
    return Search(code, Store(overwrite), drivers, faults).run()
