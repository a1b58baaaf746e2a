"""One flipped bit anywhere in what a run or a bundle rests on is found."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from random import Random

import pytest

from fcn_ray.bundle import load_bundle, save_bundle
from fcn_ray.config import CAFFE_PREPROCESSING
from fcn_ray.errors import BundleError
from fcn_ray.labels import LabelSet
from fcn_ray.tables.audit import audit
from tests.networks import tiny_model, tiny_spec
from tests.tables.making import commit_pending, finished_run, start_run, write_images, write_table

pytestmark = pytest.mark.keras

FLIPS = 200


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two plans in `out`, one with all chunks but no manifest in `early`, and a bundle."""
    root = tmp_path_factory.mktemp("flips")
    for output in ("early", "out"):
        write_images(root / output / "in", "a.png", "b.png", "c.png")
        write_table(root / output / "in" / "t.parquet", 4)
        run, log = start_run(root / output)
        list(commit_pending(run, log))
    finished_run(root / "out")
    write_images(root / "out" / "in", "d.png")
    finished_run(root / "out")
    labels = LabelSet.from_names(["sky", "road", "car", "tree"])
    metadata = {"metrics": {"mean_iou": 0.12345678901234566, "loss": 1e-05}, "data": {"uri": "Straße.parquet"}}
    save_bundle(f"{root}/bundle", tiny_model(), tiny_spec(), labels, CAFFE_PREPROCESSING, metadata)
    return root


def _audit_finds(folder: Path) -> bool:
    return audit(f"{folder}/out").n_findings > 0


def _loading_finds(folder: Path) -> bool:
    try:
        load_bundle(str(folder))
    except BundleError:
        return True
    return False


def _flip(path: Path, random: Random, is_found: Callable[[Path], bool], where: Path) -> str | None:
    """The place of a bit that was flipped and not found."""
    data = path.read_bytes()
    damaged, at, bit = bytearray(data), random.randrange(len(data)), random.randrange(8)
    damaged[at] ^= 1 << bit
    path.write_bytes(damaged)
    found = is_found(where)
    path.write_bytes(data)
    return None if found else f"bit {bit} of byte {at} of {path.name}"


def test_any_flipped_bit_is_found(root: Path) -> None:
    """Masks, plans, manifests, run.json and _SUCCESS by the audit, model.json and the weights when they are loaded."""
    run, bundle = root / "out", root / "bundle"
    kinds = [
        (_audit_finds, run, f"out/*/{name}") for name in ("masks/*", "plans/*", "manifests/*", "run.json", "_SUCCESS")
    ]
    kinds += [(_loading_finds, bundle, name) for name in ("model.json", "model.safetensors")]
    assert not _audit_finds(run)
    assert not _loading_finds(bundle)
    random = Random(6)
    missed = []
    for is_found, where, pattern in islice(cycle(kinds), FLIPS):
        path = random.choice(sorted(where.glob(pattern)))
        missed.append(_flip(path, random, is_found, where))
    assert [miss for miss in missed if miss] == []
    assert len(missed) == FLIPS


def test_masks_and_plans_need_no_manifest_to_be_proved(root: Path) -> None:
    """Of run.json only the input, which the next job compares, and what is there for people (about) are not."""
    run, random = root / "early", Random(7)
    files = sorted([*run.glob("out/*/masks/*"), *run.glob("out/*/plans/*")])
    assert not _audit_finds(run)
    missed = [_flip(random.choice(files), random, _audit_finds, run) for _ in range(FLIPS)]
    assert [miss for miss in missed if miss] == []
