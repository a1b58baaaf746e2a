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
    """Images in the run, bad ones included; one that changed or was tried again counts once."""
    labelled: int
    """Images that had no result before, and have one now."""
    skipped: int
    """Images that had one before."""
    statuses: Mapping[str, int]
    """Images of the run by status, by the row that counts; of this job alone when it ended early, none in a dry run."""
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
    """More bad images than the limits allow, nothing but bad ones, or inputs that could not be read: exit code 3."""
    skipped_files: Mapping[str, int] = field(default_factory=dict)
    """Files that are neither images, tables nor tars, by suffix."""
    older: int = 0
    """New inputs that were left out because they are older than `since`."""
    since: str = ""
    """The moment that `since` stands for."""
    stopped: str | None = None
    """Why the job ended early, or at its last image: too many were bad."""
    left: int = 0
    """Images that are still to do."""
    memory: str = ""
    """What each process would reserve; of a dry run."""
    found: int = 0
    """Those of `labelled` that somebody else stored first: another job, or an attempt that died behind its put."""

    @property
    def bad(self) -> int:
        """Images without a mask among those of `statuses`."""
        return sum(count for status, count in self.statuses.items() if status != OK)

    def lines(self) -> Iterator[str]:
        """The report as lines of text."""
        yield from self._work_lines()
        if self.stopped:
            end = f": {self.left} images are still to do, and the same command goes on" if self.left else " at the end"
            yield f"stopped{end}: {self.stopped}"
        if self.bad:
            kinds = ", ".join(f"{count} {status}" for status, count in self.statuses.items() if status != OK)
            of = self.labelled if self.left else self.images
            yield f"{self.bad} of {of} images have no mask: {kinds} (columns status and error say why)"
        for table in self.quarantined:
            yield f"not read: {table.path}: {table.reason}"
        if self.quarantined:
            yield f"inputs that could not be read and have no rows: {self.n_quarantined}; mend them and run this again"
        if self.older:
            yield f"{self.older} new inputs left out, older than {self.since}: the same job without --since takes them"
        if self.skipped_files:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.skipped_files.items()))
            packed = "; a packed tar is read when it is unpacked to a .tar" if ".tar." in kinds else ""
            yield f"left out: {kinds}{packed}"
        yield f"{'would write to' if self.dry_run else 'masks'}: {self.run}"

    def _work_lines(self) -> Iterator[str]:
        if self.dry_run:
            yield f"plan: {self.images - self.skipped} of {self.images} images to do, {self.skipped} done before"
            yield f"memory: {self.memory}"
        elif self.labelled:
            rate = f", {self.images_per_second:.1f} images/s once started" if self.images_per_second else ""
            yield f"{self.labelled} images labelled in {format_duration(self.seconds)}{rate}"
            if self.found:
                yield f"{self.found} of them were stored first by another job, or by an attempt that died after it"
            if self.skipped:
                yield f"{self.skipped} images skipped: they were done before"
        elif not self.images:
            yield "no images were found"
        else:
            yield f"nothing to do: all {self.images} images were done before"
