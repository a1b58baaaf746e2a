"""The audit of plans that list an earlier version again; whole audits are in test_audit.py and test_retry.py."""

from __future__ import annotations

import pytest

from fcn_ray.tables.audit_plans import PlanRow, _check_returns

A, B = "7-1", "7-2"
"""Versions of one path."""


def _rows(*plans: tuple[int, str, int]) -> list[PlanRow]:
    """Plan, version and number of rows, in pieces of two rows at most."""
    return [
        PlanRow("t.parquet", version, first, min(2, count - first), "parquet", "0" * 32, plan)
        for plan, version, count in plans
        for first in range(0, count, 2)
    ]


@pytest.mark.parametrize(
    ("plans", "found"),
    [
        ([(1, A, 5), (2, B, 5), (3, A, 5)], []),
        ([(1, A, 5), (2, B, 4), (3, A, 5), (4, B, 4), (5, A, 5)], []),
        ([(1, A, 5), (3, A, 5)], [("twice", "plan 3 says it is back, but it was there")]),
        ([(1, A, 5), (2, B, 5), (3, A, 5), (5, A, 5)], [("twice", "plan 5 says it is back, but it was there")]),
        ([(1, A, 5), (2, B, 5), (3, A, 4)], [("retry", "plan 3 has 4 rows of 5")]),
    ],
)
def test_what_is_back_was_something_else_and_is_back_whole(
    plans: list[tuple[int, str, int]], found: list[tuple[str, str]]
) -> None:
    problems = list(_check_returns("t.parquet", _rows(*plans), returns={3, 4, 5}))
    assert [(kind, message.partition("): ")[2]) for kind, message in problems] == found
