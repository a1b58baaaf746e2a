"""A training as a run in MLflow."""

from __future__ import annotations

import logging
import os
import re
import time
from typing import Any

from fcn_ray import storage
from fcn_ray.errors import ConfigError
from fcn_ray.reports.tracking import Outcome, Record, scalars

RUN_FILE = "mlflow-run"
"""File in a training's folder with the id of its run: there a training that goes on finds it, whatever the run, the
experiment or the server's address are called by then, and another training in another folder does not."""

KEY_CHARACTERS, PARAM_CHARACTERS, TAG_CHARACTERS = 250, 500, 5000
"""Longest key, parameter and tag that MLflow takes; before version 2.10 a server took no longer parameters."""


class MLflow:
    """Tells a training in the folder `out` to the MLflow at `uri`: a server, or what else the installed one takes.

    Settings become parameters, and curves metrics by step; what a training that goes on does again is told again. At
    the end the run is FINISHED, FAILED or KILLED, and has the last page that a "page" record named. Raises ConfigError
    when the package mlflow-skinny is not installed, or has no use for `uri`. Credentials come from the environment.
    """

    def __init__(self, uri: str, experiment: str, run_name: str | None, out: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import: our users' jobs call nobody else
        try:
            import mlflow.entities
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise ConfigError(f'MLflow: {error}; pip install "fcn_ray[mlflow]", or leave it out') from error
        # Its retries of a server that is away would fill the job's log; what comes of them is logged once.
        for name, level in (("urllib3", logging.ERROR), ("mlflow", logging.WARNING), ("alembic", logging.WARNING)):
            logging.getLogger(name).setLevel(level)
        self._entities, self._error_type = mlflow.entities, MlflowException
        try:
            self._client = MlflowClient(tracking_uri=uri)
        except MlflowException as error:
            raise ConfigError(f"MLflow cannot use {uri}: {str(error).strip()}") from error
        self._experiment, self._run_name = experiment, run_name
        self._run_file = storage.join(out, RUN_FILE)
        self._run_id: str | None = None
        self._start: Record | None = None
        self._page: str | None = None

    def hear(self, record: Record) -> None:
        """Take one record: {"kind": "start" | "step" | "epoch" | "bundle" | "page", ...}."""
        kind = record["kind"]
        if kind == "start":
            self._start = record
            self._open_run()
        elif kind == "bundle":
            tags = {"bundle": record["folder"], "digest": record["digest"], "epoch": record["epoch"]}
            self._client.log_batch(self._open_run(), tags=self._tags(tags))
        elif kind == "page":
            self._page = record["path"]
        elif kind in ("step", "epoch"):
            now = int(1000 * time.time())
            values = scalars(record, self._start["classes"] if self._start else ())
            metrics = [self._entities.Metric(name, value, now, record["step"]) for name, value in values.items()]
            self._client.log_batch(self._open_run(), metrics=metrics)

    def close(self, outcome: Outcome) -> None:
        """Hand over the page, and end the run."""
        run_id = self._open_run()
        try:
            if self._page is not None:
                text = storage.read_bytes(self._page).decode()
                self._client.log_text(run_id, text, storage.stat(self._page).path)
        finally:
            self._client.set_terminated(run_id, status=outcome)

    def _open_run(self) -> str:
        """Id of the run: that of the folder, or a new one. Tried again at each record while the server is away."""
        if self._run_id is None:
            run = self._find_run() or self._create_run()
            run_id: str = run.info.run_id
            self._run_id = run_id
            storage.replace(self._run_file, run_id.encode())
            self._log_settings(run_id, run.data.params)
        return self._run_id

    def _find_run(self) -> Any:
        """The run that the folder names, if the server still has it; it is RUNNING again."""
        if not storage.is_file(self._run_file):
            return None
        run_id = storage.read_bytes(self._run_file).decode().strip()
        try:
            run = self._client.get_run(run_id)
        except self._error_type as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if run.info.lifecycle_stage != "active":
            return None
        self._client.update_run(run_id, status="RUNNING")
        return run

    def _create_run(self) -> Any:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return self._client.create_run(found.experiment_id, run_name=self._run_name)
        return self._client.create_run(self._client.create_experiment(self._experiment), run_name=self._run_name)

    def _log_settings(self, run_id: str, there: dict[str, str]) -> None:
        """Parameters, which MLflow never changes: of a training that goes on with other settings those become tags."""
        start = self._start or {}
        settings = {_key(name): str(value)[:PARAM_CHARACTERS] for name, value in start.get("settings", {}).items()}
        changed = {f"changed.{name}": value for name, value in settings.items() if there.get(name, value) != value}
        facts = {name: start[name] for name in ("network", "images", "val_images", "workers") if name in start}
        new = [self._entities.Param(name, value) for name, value in settings.items() if name not in there]
        self._client.log_batch(run_id, params=new, tags=self._tags(facts | changed))

    def _tags(self, tags: dict[str, Any]) -> list[Any]:
        return [self._entities.RunTag(_key(name), str(value)[:TAG_CHARACTERS]) for name, value in tags.items()]


def _key(name: str) -> str:
    return re.sub(r"[^\w./ -]", "_", name)[:KEY_CHARACTERS]
