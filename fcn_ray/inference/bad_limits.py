"""When a job has come to so many bad images that it should not go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fcn_ray.tables.commit import Receipt
from fcn_ray.tables.schema import OK

UNREADABLE_FIRST = 1000
"""Images that none of which can be read, from the first on: that is not theirs, and would go on to the last."""


@dataclass(slots=True)
class BadLimits:
    """The limits of a job over a run of `images` images, and how near it has come to them.

    `superseded` are images by chunk id that newer plans have again: they may be bad and the run still be good. With
    `fresh` the run has nothing yet that tells whether its input can be read.
    """

    max_fraction: float
    max_consecutive: int
    images: int
    superseded: Mapping[str, int]
    fresh: bool = True
    _bad: int = 0
    _run: int = 0
    _unreadable: int = 0
    _others: int = 0

    def add(self, receipt: Receipt) -> str | None:
        """Why the job should end after this chunk; None while it may go on.

        The bad images that it has come to itself are more than `max_fraction` of the run, so that no image to come can
        make up for them; or there were `max_consecutive` (0: no limit) in a row, in the order of chunks and their rows;
        or nothing can be read at all, of a `fresh` run.
        """
        bad = receipt.n_rows - receipt.statuses.get(OK, 0)
        self._bad += max(0, bad - self.superseded.get(receipt.chunk_id, 0))
        begins, longest, ends = receipt.bad_runs
        longest = max(longest, self._run + begins)
        self._run = self._run + receipt.n_rows if bad == receipt.n_rows else ends
        if is_above(self.max_fraction, self._bad, self.images):
            return f"{self._bad} of {self.images} images are bad, max_bad_fraction is {self.max_fraction:g}"
        unreadable = receipt.statuses.get("unreadable", 0)
        self._unreadable, self._others = self._unreadable + unreadable, self._others + receipt.n_rows - unreadable
        if self.fresh and self._unreadable >= UNREADABLE_FIRST and not self._others:
            return (
                f"the first {self._unreadable} images are all unreadable (column error says why): may the workers read "
                "the input, and do links or paths lead out of it (allow_paths)?"
            )
        if 0 < self.max_consecutive <= longest:
            return f"{longest} images in a row are bad, max_bad_consecutive is {self.max_consecutive}"
        return None


def is_above(fraction: float, bad: int, images: int) -> bool:
    """True when more than this fraction of the images are bad. 29 of 100 are 0.29, while 0.29 * 100 is less than 29."""
    return bad > 0 and bad / max(images, 1) > fraction
