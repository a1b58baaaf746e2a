import pytest

from fcn_ray.reports.training_lines import TrainingLines

START = {
    "kind": "start",
    "network": "FCN-8s vgg16",
    "images": 367,
    "val_images": 101,
    "steps": 910,
    "epochs": 10,
    "workers": 2,
    "class_weights": None,
    "classes": ["sky", "road"],
    "settings": {},
    "step": 0,
}
EPOCH = {
    "kind": "epoch",
    "epoch": 2,
    "step": 182,
    "loss": 0.43125,
    "images_per_second": 12.34,
    "input_wait": 0.031,
    "seconds": 30.0,
    "memory_bytes": 10**9,
}
VAL = {"pixel_accuracy": 0.9, "mean_accuracy": 0.8, "mean_iou": 0.7, "frequency_weighted_iou": None}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def step(number, **changes):
    record = {"kind": "step", "step": number, "epoch": 2, "loss": 0.5, "learning_rate": 1e-3}
    return record | {"images_per_second": 12.34, "input_wait": 0.031} | changes


@pytest.fixture
def heard(capsys):
    """Function of records, or (seconds since the start, record): the lines that they print."""

    def hear(*records):
        clock = Clock()
        lines = TrainingLines(clock)
        capsys.readouterr()
        for entry in records:
            seconds, record = entry if isinstance(entry, tuple) else (0, entry)
            clock.now = max(clock.now, 100.0 + seconds)
            lines.hear(record)
        return capsys.readouterr().out.splitlines()

    return hear


def test_the_start_says_what_there_is_to_do(heard):
    workers = {"kind": "workers", "count": 2, "step": 0}
    assert heard(START, workers) == [
        "training FCN-8s vgg16 on 367 images (101 more to validate): 910 steps in 10 epochs",
        "starting 2 workers at step 0",
    ]
    assert heard(START | {"val_images": 0, "step": 182})[1:] == ["going on from step 182/910"]
    assert "367 images:" in heard(START | {"val_images": 0})[0]
    assert heard(START, workers | {"count": 1})[1] == "starting 1 worker at step 0"


def test_steps_that_were_all_left_out_have_no_loss(heard):
    assert "  loss -  " in heard(START, step(100, loss=None))[1]


def test_each_step_record_is_a_line_and_the_second_one_knows_the_time_left(heard):
    assert heard(START, (10, step(100)), (20, step(110)))[1:] == [
        "step 100/910  epoch 2/10  loss 0.5000  12.3 images/s  input wait 3.1 %",
        "step 110/910  epoch 2/10  loss 0.5000  12.3 images/s  input wait 3.1 %  13 min 20 s left",
    ]


def test_the_time_left_is_that_of_the_recent_speed(heard):
    slow = [(10 * n, step(n)) for n in range(1, 101)]
    fast = [(1000 + n, step(100 + n)) for n in range(1, 121)]
    assert heard(START, *slow, *fast)[-1].endswith("11 min 30 s left")  # 690 steps, one a second


def test_after_a_restart_the_time_left_is_found_anew(heard):
    workers = {"kind": "workers", "count": 2, "step": 90}
    back = heard(START, (10, step(100)), (20, step(110)), (500, workers), (510, step(100)), (520, step(110)))
    assert "left" not in back[-2]
    assert back[-1].endswith("13 min 20 s left")
    untold = heard(START, (10, step(100)), (20, step(110)), (510, step(100)), (520, step(110)))
    assert "left" not in untold[-2]
    assert untold[-1].endswith("13 min 20 s left")
    forward = heard(START, (10, step(100)), (20, step(110)), (500, workers), (510, step(120)), (520, step(130)))
    assert forward[-1].endswith("13 min left")


def test_the_last_step_has_nothing_left(heard):
    assert heard(START, (10, step(900)), (20, step(910)))[-1].endswith("0.0 s left")


def test_an_epoch_is_a_line_and_its_validation_a_table(heard):
    assert heard(START, EPOCH)[1:] == ["epoch 2: loss 0.4313, 12.3 images/s, input wait 3.1 %"]
    validated = EPOCH | {"val": VAL | {"class_iou": [0.9, None], "confusion": [[1, 0, 0], [0, 0, 0]]}}
    assert heard(START, validated)[1:] == [
        "epoch 2: loss 0.4313, 12.3 images/s, validation mean IoU 70.0 %, pixel accuracy 90.0 %, input wait 3.1 %",
        "  sky    90.0 %   road        -",
    ]


def test_a_listener_that_missed_the_start_names_classes_by_id(heard):
    assert heard(EPOCH | {"val": VAL | {"class_iou": [0.9, 0.1]}})[1] == "  class 0   90.0 %   class 1   10.0 %"


def test_checkpoints_warnings_and_the_bundle_are_lines(heard):
    assert heard(
        {"kind": "checkpoint", "step": 182, "epoch": 2, "folder": "runs/a/checkpoints/182"},
        {"kind": "warning", "step": 190, "message": "the gradient is not finite: skipped"},
        {"kind": "bundle", "folder": "runs/a/bundle", "digest": "0123456789abcdef", "epoch": 2, "metrics": {}},
    ) == [
        "checkpoint of step 182: runs/a/checkpoints/182",
        "warning: the gradient is not finite: skipped (step 190)",
        "bundle runs/a/bundle holds epoch 2 (digest 0123456789ab)",
    ]


def test_what_it_does_not_know_is_passed_over(heard):
    assert heard({"kind": "weather", "sky": "blue"}) == []
