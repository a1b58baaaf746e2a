"""SegmentReport: what a labelling job did, and what its run holds now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fcn_ray.reports.progress import format_duration
from fcn_ray.tables.schema import OK
from fcn_ray.tables.sources import Quarantined


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """What a labelling job did, and what its run holds now."""

    run: str
    """Folder of the run."""
    images: int
    """Images in the run, bad ones included."""
    labelled: int
    """Images that this job gave a result."""
    skipped: int
    """Images that had one before."""
    statuses: Mapping[str, int]
    """Images of the run by status; only of this job's plan in a dry run."""
    quarantined: tuple[Quarantined, ...] = ()
    """The first 1000 inputs that could not be used; `n_quarantined` counts all."""
    n_quarantined: int = 0
    seconds: float = 0.0
    first_commit_seconds: float | None = None
    """From the call to the first committed chunk."""
    images_per_second: float | None = None
    """Between the first and the last committed chunk: without the start."""
    dry_run: bool = False
    too_bad: bool = False
    """More bad images than `max_bad_fraction`, or inputs that could not be read: exit code 3."""
    skipped_files: Mapping[str, int] = field(default_factory=dict)
    """Files that are neither images, tables nor tars, by suffix."""

    @property
    def bad(self) -> int:
        """Images of the run without a mask."""
        return sum(count for status, count in self.statuses.items() if status != OK)

    def lines(self) -> Iterator[str]:
        """The report as lines of text."""
        if self.dry_run:
            yield f"plan: {self.images - self.skipped} of {self.images} images to do, {self.skipped} done before"
        elif self.labelled:
            rate = f", {self.images_per_second:.1f} images/s once started" if self.images_per_second else ""
            yield f"{self.labelled} images labelled in {format_duration(self.seconds)}{rate}"
            if self.skipped:
                yield f"{self.skipped} images skipped: they were done before"
        else:
            yield f"nothing to do: all {self.images} images were done before"
        if self.bad:
            kinds = ", ".join(f"{count} {status}" for status, count in self.statuses.items() if status != OK)
            yield f"{self.bad} of {self.images} images have no mask: {kinds} (columns status and error say why)"
        for table in self.quarantined:
            yield f"not read: {table.path}: {table.reason}"
        if self.quarantined:
            yield f"inputs that could not be read and have no rows: {self.n_quarantined}; mend them and run this again"
        if self.skipped_files:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.skipped_files.items()))
            packed = "; a packed tar is read when it is unpacked to a .tar" if ".tar." in kinds else ""
            yield f"left out, by suffix: {kinds}{packed}"
        yield f"{'would write to' if self.dry_run else 'masks'}: {self.run}"
