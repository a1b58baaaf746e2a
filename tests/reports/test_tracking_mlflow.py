import os
import sys

import pytest

from fcn_ray.errors import ConfigError, StorageError
from fcn_ray.reports.tracking import follow
from fcn_ray.reports.tracking_mlflow import PARAM_CHARACTERS, RUN_FILE, MLflow

START = {
    "kind": "start",
    "network": "FCN-8s vgg16",
    "images": 367,
    "val_images": 101,
    "workers": 2,
    "step": 0,
    "classes": ["sky", "sign / symbol"],
    "settings": {"epochs": 10, "loss.kind": "dice", "val": None},
}
BUNDLE = {"kind": "bundle", "folder": "runs/a/bundle", "digest": "0123", "epoch": 2, "metrics": {}}


def step(number, loss):
    return {"kind": "step", "step": number, "epoch": 1, "loss": loss, "learning_rate": 1e-3}


class Place:
    """An MLflow without a server, and a training's folder beside it."""

    def __init__(self, folder):
        self.folder, self.out, self.uri = folder, folder / "run", f"file:{folder / 'mlflow'}"

    def track(self, *records, outcome="FINISHED", **changes):
        options = {"uri": self.uri, "experiment": "streets", "run_name": "first", "out": str(self.out)} | changes
        tracker = MLflow(**options)
        for record in records:
            tracker.hear(record)
        tracker.close(outcome)

    @property
    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def runs(self, experiment="streets"):
        return self.client.search_runs([self.client.get_experiment_by_name(experiment).experiment_id])

    def curve(self, run, name):
        history = self.client.get_metric_history(run.info.run_id, name)
        return [(metric.step, metric.value) for metric in history]


@pytest.fixture
def place(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return Place(tmp_path)


def test_mlflow_reads_what_was_told(place):
    page = place.folder / "training.html"
    page.write_text("<html>curves</html>")
    epoch = {"kind": "epoch", "epoch": 1, "step": 20, "loss": 0.7, "val": {"mean_iou": 0.5, "class_iou": [0.4, 0.6]}}
    told = [START, step(10, 0.9), step(20, 0.8), epoch, {"kind": "weather"}, BUNDLE]
    place.track(*told, {"kind": "page", "path": str(page)})
    (run,) = place.runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert run.data.params == {"epochs": "10", "loss.kind": "dice", "val": "None"}
    assert place.curve(run, "loss") == [(10, 0.9), (20, 0.8)]
    assert place.curve(run, "val/mean_iou") == [(20, 0.5)]
    assert place.curve(run, "val/iou/sign _ symbol-1") == [(20, 0.6)]
    tags = {"network": "FCN-8s vgg16", "images": "367", "bundle": "runs/a/bundle", "digest": "0123", "epoch": "2"}
    assert tags.items() <= run.data.tags.items()
    artifacts = place.client.list_artifacts(run.info.run_id)
    assert [artifact.path for artifact in artifacts] == ["training.html"]


def test_a_training_that_goes_on_goes_on_with_its_run(place):
    place.track(START, step(10, 0.9), outcome="FAILED")
    assert [run.info.status for run in place.runs()] == ["FAILED"]
    changed = START | {"step": 10, "settings": START["settings"] | {"epochs": 20, "new": 1}}
    place.track(changed, step(20, 0.8), run_name="another name")
    (run,) = place.runs()
    assert run.info.status == "FINISHED"
    assert place.curve(run, "loss") == [(10, 0.9), (20, 0.8)]
    assert run.data.params == {"epochs": "10", "loss.kind": "dice", "val": "None", "new": "1"}
    assert {k: v for k, v in run.data.tags.items() if k.startswith("changed.")} == {"changed.epochs": "20"}


def test_a_run_that_goes_on_is_running(place):
    place.track(START, outcome="KILLED")
    tracker = MLflow(place.uri, "streets", None, str(place.out))
    tracker.hear(START | {"step": 10})
    assert [run.info.status for run in place.runs()] == ["RUNNING"]
    tracker.close("FINISHED")


def test_another_folder_is_another_run(place):
    place.track(START)
    place.track(START, out=str(place.folder / "elsewhere"))
    assert len(place.runs()) == 2


@pytest.mark.parametrize("lost", ["deleted", "unknown"])
def test_a_run_that_is_gone_is_begun_anew(place, lost):
    place.track(START)
    if lost == "deleted":
        place.client.delete_run(place.runs()[0].info.run_id)
    else:
        (place.out / RUN_FILE).write_text("0" * 32)
    place.track(START)
    assert (place.out / RUN_FILE).read_text() in {run.info.run_id for run in place.runs()}


def test_what_mlflow_has_no_room_for_is_cut(place):
    settings = {f"key {i} <{'x' * 300}>": "v" * 7000 for i in range(120)} | {f"short{i}": i for i in range(120)}
    place.track(START | {"settings": settings}, BUNDLE | {"folder": "f" * 6000})
    (run,) = place.runs()
    assert len(run.data.params) == 240
    assert max(map(len, run.data.params.values())) == PARAM_CHARACTERS
    assert max(map(len, run.data.params)) == 250
    assert len(run.data.tags["bundle"]) == 5000


def test_a_page_that_is_gone_leaves_the_run_ended(place):
    tracker = MLflow(place.uri, "streets", None, str(place.out))
    tracker.hear(START)
    tracker.hear({"kind": "page", "path": str(place.folder / "missing.html")})
    with pytest.raises(StorageError, match=r"missing\.html"):
        tracker.close("FINISHED")
    assert place.runs()[0].info.status == "FINISHED"


def test_a_server_that_is_away_costs_one_line_in_the_log(place, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with follow([MLflow("http://127.0.0.1:9", "streets", None, str(place.out))]) as hear:
        hear(START)
        hear(step(10, 0.9))
    assert len(caplog.records) == 2
    assert caplog.messages[0].startswith("MLflow failed, the training goes on (")
    assert caplog.messages[1] == "MLflow: 3 records did not reach it"
    assert not (place.out / RUN_FILE).exists()


def test_a_server_that_comes_back_gets_its_run(place):
    tracker = MLflow(place.uri, "streets", None, str(place.out))
    client, tracker._client = tracker._client, None
    with pytest.raises(AttributeError):
        tracker.hear(START)
    tracker._client = client
    tracker.hear(step(10, 0.9))
    tracker.close("FINISHED")
    (run,) = place.runs()
    assert run.data.params["epochs"] == "10"
    assert place.curve(run, "loss") == [(10, 0.9)]


@pytest.mark.parametrize("uri", ["htp://server", "nonsense://"])
def test_an_address_of_no_kind_is_refused(place, uri):
    with pytest.raises(ConfigError, match=f"MLflow cannot use {uri}"):
        MLflow(uri, "streets", None, str(place.out))


def test_nobody_else_is_called(place):
    MLflow(place.uri, "streets", None, str(place.out))
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_without_the_package_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.delitem(sys.modules, "mlflow.entities", raising=False)
    with pytest.raises(ConfigError, match=r'pip install "fcn_ray\[mlflow\]"'):
        MLflow("http://server", "streets", None, str(tmp_path))
