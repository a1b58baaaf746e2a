"""What an import took in and what not: counted in full, named by the first few."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fcn_ray.datasets.encodings import Wrong
from fcn_ray.labels import LabelSet
from fcn_ray.tables.schema import trim_error

MAX_WRONG = 1000
"""Most wrong ids and colours that are told apart: a blurred label has more colours than anyone reads."""

MAX_NAMED = 1000
"""Most files of a kind that are kept by name."""

_SHOWN_WRONG, _SHOWN_FILES = 10, 3

_OTHERS = "others"


@dataclass(slots=True)
class WrongValue:
    """Where an id or a colour was found that is no class: pixels, labels, and the first label."""

    first: str
    pixels: int = 0
    labels: int = 0


@dataclass(slots=True)
class Refused:
    """Files that were not imported for one reason: how many, and the first of them."""

    count: int = 0
    files: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ImportReport:
    """What an import did. `images` and `shards` are numbers by split.

    `wrong` is what was found in labels that is no class ("id 17", "colour 1,2,3"): those pixels are ignored now.
    `refused` are files that were not imported, by reason; `pixels` (256,) those of each id in the labels, as they are
    now; `turned` images that EXIF has turned or mirrored, which their labels are not.
    """

    format: str
    out: str
    labels: LabelSet
    images: dict[str, int] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, WrongValue] = field(default_factory=dict)
    refused: dict[str, Refused] = field(default_factory=dict)
    pixels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    turned: int = 0

    @property
    def n_refused(self) -> int:
        """Files, or pairs of files, that were not imported."""
        return sum(refused.count for refused in self.refused.values())

    def refuse(self, reason: str, what: str) -> None:
        """Count a file that is not imported."""
        refused = self.refused.setdefault(reason, Refused())
        refused.count += 1
        if len(refused.files) < MAX_NAMED:
            refused.files.append(what)

    def note_wrong(self, wrong: Wrong, path: str) -> None:
        """Count the pixels of one label that are no class."""
        for name, pixels in wrong.items():
            key = name if name in self.wrong or len(self.wrong) < MAX_WRONG else _OTHERS
            value = self.wrong.setdefault(key, WrongValue(path))
            value.pixels += pixels
            value.labels += 1

    def lines(self) -> Iterator[str]:
        """The report as lines of text."""
        yield f"{self.format}: {sum(self.images.values())} labelled images of {len(self.labels)} classes in {self.out}"
        for split, count in self.images.items():
            yield f"  {split}: {_count(count, 'image')} in {_count(self.shards[split], 'file')}"
        yield from self._doubts()
        if self.wrong:
            yield f"no class, and ignored from now on (id {self.labels.ignore_id}):"
        worst = sorted(self.wrong.items(), key=lambda item: -item[1].pixels)
        for name, value in worst[:_SHOWN_WRONG]:
            yield f"  {name}: {value.pixels} pixels in {_count(value.labels, 'label')}, first {trim_error(value.first)}"
        if len(worst) > _SHOWN_WRONG:
            yield f"  and {len(worst) - _SHOWN_WRONG} more"
        if self.refused:
            yield f"not imported ({self.n_refused}):"
        for reason, refused in self.refused.items():
            more = f" and {refused.count - _SHOWN_FILES} more" if refused.count > _SHOWN_FILES else ""
            yield f"  {reason}: {refused.count}: {', '.join(map(trim_error, refused.files[:_SHOWN_FILES]))}{more}"

    def _doubts(self) -> Iterator[str]:
        """What may be right, and often is not."""
        missing = [f"{name} (id {index})" for index, name in enumerate(self.labels.names) if not self.pixels[index]]
        ignored = self.pixels[self.labels.ignore_id] / max(1, self.pixels.sum())
        if missing and self.pixels.any():
            more = f" and {len(missing) - _SHOWN_WRONG} more" if len(missing) > _SHOWN_WRONG else ""
            yield f"in no label: {', '.join(missing[:_SHOWN_WRONG])}{more}"
        if ignored > 0 and len(missing) == len(self.labels) - 1:
            yield (
                f"{100 * ignored:.1f} % of the pixels are {self.labels.ignore_id}, which means to ignore them: "
                "if that is a class in these masks, give it the class's id first"
            )
        if self.turned:
            yield f"{_count(self.turned, 'image')} turned or mirrored by EXIF: their labels must be upright as they are"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
