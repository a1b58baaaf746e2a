"""The protocol under every interleaving, death, lost reply and late write; and that the search sees holes in it."""

from __future__ import annotations

import pytest

from fcn_ray import storage
from fcn_ray.tables import commit, manifest, planfile
from fcn_ray.tables.plan import Totals
from fcn_ray.tables.runs import Run
from tests.tables.model import search
from tests.tables.stepping import Code


@pytest.mark.parametrize(
    ("drivers", "faults", "states"),
    [("A", 3, 2_000), ("AB", 0, 5_000), ("AB", 1, 100_000)],
    ids=["one job, three faults", "two jobs", "two jobs, one fault"],
)
def test_no_interleaving_breaks_a_promise(
    monkeypatch: pytest.MonkeyPatch, drivers: str, faults: int, states: int
) -> None:
    """In each state the store is right, and a job that starts when all others have died finishes everything."""
    found = search(monkeypatch, drivers, faults)
    print(f"{found.states} states, {found.moves} moves, {found.stores} stores, {found.ends} ends")
    assert found.broken is None, "\n".join([found.broken, *found.steps])
    assert found.states > states, "so much was looked at when this was written"
    assert found.ends > 0


# ------------------------------------------------------------------------ the protocol with one guard removed at a time


def test_to_overwrite_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = search(monkeypatch, "AB", 0, overwrite=True)
    assert "is replaced by something else" in str(found.broken), found


def test_to_keep_a_draft_after_a_lost_race_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loser takes the next number without reading what the winner has planned."""

    def put(uri: str, data: bytes) -> bool:
        run, _, name = uri.rpartition("/plans/")
        number = int(name.removesuffix(".parquet"))
        while not storage.put_if_absent(planfile.plan_uri(run, number), data):
            number += 1
        return True

    found = search(monkeypatch, "AB", 0, put_plan=put)
    assert "planned twice" in str(found.broken), found


def test_a_manifest_before_the_count_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is there, although the pipeline has lost a chunk."""

    def remove_guard(code: Code) -> None:
        read_refs = manifest.read_refs
        monkeypatch.setattr(manifest, "count_chunks", lambda log: Totals(log.chunks, log.rows, log.chunks, log.rows))
        monkeypatch.setattr(
            manifest,
            "read_refs",
            lambda run, plan: (
                [ref for ref in refs if code.is_file(f"{run}/masks/{ref.chunk_id}.parquet")]
                for refs in read_refs(run, plan)
            ),
        )

    found = search(monkeypatch, "A", 1, remove_guard=remove_guard)
    assert "manifest 1 lists" in str(found.broken), found


def test_a_chunk_that_is_named_after_its_writer_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def remove_guard(code: Code) -> None:
        name, code.alike = planfile.chunk_id, False
        monkeypatch.setattr(planfile, "chunk_id", lambda *chunk: code.driver.lower() + name(*chunk)[1:])

    found = search(monkeypatch, "AB", 0, remove_guard=remove_guard)
    assert "does not hold chunk" in str(found.broken), found


def test_an_object_that_is_named_after_its_writer_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def remove_guard(code: Code) -> None:
        uri, code.alike = commit._mask_uri, False
        monkeypatch.setattr(commit, "_mask_uri", lambda run, name: uri(run, name if code.driver == "A" else "b" * 32))

    found = search(monkeypatch, "AB", 0, remove_guard=remove_guard)
    assert "is in no plan" in str(found.broken), found


def test_a_success_that_goes_back_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a second look a slow job would leave _SUCCESS at an older manifest."""

    def announce_once(run: Run, known: manifest.Manifest) -> None:
        storage.replace(f"{run.uri}/_SUCCESS", manifest._success_text(run, known))

    monkeypatch.setattr(manifest, "_announce", announce_once)
    found = search(monkeypatch, "AB", 0)
    assert "_SUCCESS is" in str(found.broken), found
