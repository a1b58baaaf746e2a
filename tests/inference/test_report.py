from fcn_ray.inference.report import SegmentReport
from fcn_ray.tables.sources import Quarantined


def test_what_was_left_out_is_named_and_counted() -> None:
    tables = (Quarantined("a.parquet", "cut", False), Quarantined("b.tar", "torn", False))
    report = SegmentReport(
        "out/run=1",
        images=5,
        labelled=0,
        skipped=5,
        statuses={"ok": 5},
        quarantined=tables,
        n_quarantined=1234,
        skipped_files={".txt": 2, ".tar.gz": 1},
    )
    assert list(report.lines()) == [
        "nothing to do: all 5 images were done before",
        "not read: a.parquet: cut",
        "not read: b.tar: torn",
        "inputs that could not be read and have no rows: 1234; mend them and run this again",
        "left out: 1 .tar.gz, 2 .txt; a packed tar is read when it is unpacked to a .tar",
        "masks: out/run=1",
    ]


def test_what_another_job_stored_meanwhile_is_told_apart() -> None:
    report = SegmentReport("out/run=1", images=9, labelled=6, skipped=3, statuses={"ok": 9}, seconds=5, found=2)
    assert list(report.lines()) == [
        "6 images labelled in 5.0 s",
        "2 of them were stored first by another job, or by an attempt that died after it",
        "3 images skipped: they were done before",
        "masks: out/run=1",
    ]
