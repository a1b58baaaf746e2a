"""The folders of imports that were killed go; those of imports that run stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fcn_ray.datasets.unfinished import PREFIX, work_folder

WORKING = """
import os, sys, time
from pathlib import Path
from fcn_ray.datasets.unfinished import work_folder
with work_folder(Path(sys.argv[1])) as work:
    (work / "train").mkdir()
    os.utime(work, (1, 1))
    print(work, flush=True)
    time.sleep(60)
"""


def _left(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PREFIX}*"))


def test_what_a_killed_import_left_goes_and_what_a_running_one_has_stays(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WORKING, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with work_folder(tmp_path) as ours:
            assert _left(tmp_path) == sorted([ours, theirs])
        other.send_signal(signal.SIGKILL)
    assert _left(tmp_path) == [theirs]
    with work_folder(tmp_path) as ours:
        assert _left(tmp_path) == [ours]
    assert _left(tmp_path) == []


def test_one_that_may_not_be_locked_yet_stays(tmp_path: Path) -> None:
    young, old = tmp_path / f"{PREFIX}young", tmp_path / f"{PREFIX}old"
    for folder, age in ((young, 10), (old, 100)):
        folder.mkdir()
        os.utime(folder, (time.time() - age,) * 2)
    with work_folder(tmp_path) as ours:
        assert _left(tmp_path) == sorted([ours, young])


def test_links_and_files_of_that_name_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    os.utime(tmp_path / "mine", (1, 1))
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "mine")
    (tmp_path / f"{PREFIX}file").write_bytes(b"")
    os.utime(tmp_path / f"{PREFIX}file", (1, 1))
    with work_folder(tmp_path):
        assert len(_left(tmp_path)) == 3
    assert (tmp_path / "mine").is_dir()
