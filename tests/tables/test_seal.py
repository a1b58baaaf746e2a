import io
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_ray.errors import AuditError
from fcn_ray.tables import seal
from fcn_ray.tables.audit import audit
from fcn_ray.tables.commit import read_receipt
from fcn_ray.tables.manifest import finish
from fcn_ray.tables.plan import pending_chunks
from tests.tables.making import commit_pending, finished_run, start_run, write_images


def _sealed(metadata: dict[bytes, bytes | str]) -> bytes:
    file = io.BytesIO()
    table = pa.table({"text": ["0" * 64, "1"]})
    with pq.ParquetWriter(file, table.schema, write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(metadata)
    return seal.seal(file)


def test_a_seal_is_the_digest_of_the_file_with_zeros_in_its_place() -> None:
    data = _sealed({seal.KEY: seal.BLANK})
    found = pq.read_metadata(io.BytesIO(data)).metadata[b"fcn_ray.seal"]
    assert data.count(found) == 1
    assert sha256(data.replace(found, b"0" * 64)).hexdigest().encode() == found
    assert not seal.is_broken(data)
    assert pq.read_table(io.BytesIO(data))["text"].to_pylist() == ["0" * 64, "1"]


def test_every_changed_bit_that_leaves_it_readable_breaks_the_seal() -> None:
    data = _sealed({seal.KEY: seal.BLANK})
    for at in range(4, len(data) - 8):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        try:
            metadata = pq.read_metadata(io.BytesIO(damaged)).metadata or {}
        except (pa.ArrowException, OSError, ValueError):
            continue
        assert seal.KEY not in metadata or seal.is_broken(bytes(damaged)), f"byte {at}"


def test_files_from_before_there_were_seals_are_whole(tmp_path: Path) -> None:
    write_images(tmp_path / "in", "a.png", "b.png")
    run, log = start_run(tmp_path)
    list(commit_pending(run, log))
    for path in (*Path(run.uri).glob("masks/*"), *Path(run.uri).glob("plans/*")):
        table, metadata = pq.read_table(path), pq.read_metadata(path).metadata
        kept = {key: value for key, value in metadata.items() if key not in {seal.KEY, b"ARROW:schema"}}
        pq.write_table(table.replace_schema_metadata(kept), path)
    assert finish(run, log).rows == 2
    assert finished_run(tmp_path)
    report = audit(f"{tmp_path}/out")
    assert (report.findings, report.unfinished) == ([], [])


@pytest.mark.parametrize("folder", ["masks", "plans"])
def test_damage_does_not_get_into_a_manifest(tmp_path: Path, folder: str) -> None:
    """Of a file that another job put: its digest would be that of the damage. Here in the version of the writer."""
    write_images(tmp_path / "in", "a.png")
    run, log = start_run(tmp_path)
    (ref,) = pending_chunks(log)
    list(commit_pending(run, log))
    (path,) = Path(run.uri, folder).iterdir()
    path.write_bytes(path.read_bytes().replace(b"parquet-cpp-arrow version", b"parquet-cpp-arrow versiom"))
    assert {finding.kind for finding in audit(f"{tmp_path}/out").findings} == {
        {"masks": "seal", "plans": "plan"}[folder]
    }
    with pytest.raises(AuditError, match="is damaged: it is not what was written"):
        finish(run, log)
    assert not Path(run.uri, "manifests").exists()
    if folder == "masks":
        with pytest.raises(AuditError, match="is damaged: it is not what was written"):
            read_receipt(run, ref.chunk_id, ref.n_rows)
