"""What lies in jobs/ and cluster.yaml is what people copy: it must load, and it must run."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from fcn_ray.config import SegmentConfig, TrainConfig
from fcn_ray.config_text import load_config
from fcn_ray.tables.audit import audit
from tests import pictures

ROOT = Path(__file__).parents[2]


def test_the_worked_configs_are_valid() -> None:
    assert load_config(TrainConfig, str(ROOT / "jobs/train.yaml")).workers.count == 4
    paper = load_config(TrainConfig, str(ROOT / "jobs/train-paper.yaml"))
    assert (paper.loss.reduction, paper.batch_size, paper.optimizer.momentum) == ("sum", 1, 0.99)
    assert load_config(SegmentConfig, str(ROOT / "jobs/segment.yaml")).predict.actors == 4
    assert load_config(TrainConfig, str(ROOT / "tests/benchmarks/camvid.yaml"), ["data=a", "out=b"]).epochs > 1


def _cluster() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return found


def test_cluster_yaml_passes_rays_own_validation() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(_cluster()))
    validate_config(prepared)
    broken = copy.deepcopy(prepared) | {"available_node_tpyes": {}}
    with pytest.raises(Exception, match="available_node_tpyes"):
        validate_config(broken)


def test_cluster_yaml_has_the_pools_and_files_that_jobs_ask_for() -> None:
    """Ray lets typos inside a node type and missing files pass in silence."""
    config = _cluster()
    types = config["available_node_types"]
    assert set(types) == {"head", "cpu", "gpu"}
    assert types["head"]["resources"]["CPU"] == 0, "no image is to be decoded on the head"
    assert types["gpu"]["resources"]["GPU"] >= 1
    assert all(isinstance(n["node_config"][key], str) for n in types.values() for key in ("InstanceType", "ImageId"))
    assert all("IamInstanceProfile" in types[name]["node_config"] for name in ("cpu", "gpu"))
    assert sum(n.get("max_workers", 0) for n in types.values()) <= config["max_workers"]
    train = load_config(TrainConfig, str(ROOT / "jobs/train.yaml")).workers
    predict = load_config(SegmentConfig, str(ROOT / "jobs/segment.yaml")).predict
    gpu = types["gpu"]
    assert gpu["min_workers"] * gpu["resources"]["GPU"] >= max(train.count * train.gpus, predict.actors * predict.gpus)
    assert gpu["resources"]["CPU"] >= max(train.cpus, predict.cpus)
    commands = " ".join(config["setup_commands"])
    for target, source in config["file_mounts"].items():
        assert (ROOT / source).exists()
        assert target in commands
    assert (ROOT / "requirements.lock").exists()


def test_the_manifest_for_kuberay_has_the_pods_that_the_job_asks_for() -> None:
    manifest = yaml.safe_load((ROOT / "jobs/kuberay.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    cluster = manifest["spec"]["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "requirements.lock").read_text()
    *_, script, _, config = manifest["spec"]["entrypoint"].split()
    for path in (script, config):
        assert (ROOT / path.removeprefix("/home/ray/fcn_ray/")).is_file()
    predict = load_config(SegmentConfig, str(ROOT / "jobs/segment.yaml")).predict
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    pods = {name: group["template"]["spec"]["containers"][0] for name, group in groups.items()}
    limits = pods["gpu"]["resources"]["limits"]
    assert groups["gpu"]["minReplicas"] * int(limits["nvidia.com/gpu"]) >= predict.actors * predict.gpus
    assert int(limits["cpu"]) >= predict.cpus
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "no image is to be decoded on the head"
    pods["head"] = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {pod["image"] for pod in pods.values()} == {"IMAGE"}
    assert all(pod["volumeMounts"][0]["mountPath"] == "/mnt/shared" for pod in pods.values())
    assert all(pod["resources"]["limits"] == pod["resources"]["requests"] for pod in pods.values()), "or it is evicted"


# ------------------------------------------------------------------------------------------------ ray job submit


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[str]:
    """Address of the dashboard of a Ray cluster of its own."""
    port = _free_port()
    ray = Path(sys.executable).with_name("ray")
    command = [
        str(ray),
        "start",
        "--head",
        "--block",
        "--num-cpus=4",
        f"--port={_free_port()}",
        "--disable-usage-stats",
    ]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    command += [f"--dashboard-agent-listen-port={_free_port()}", f"--ray-client-server-port={_free_port()}"]
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as own,  # its sockets want short names
        (tmp_path / "head.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"RAY_TMPDIR": own}) as head,
    ):
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=2)
                    break
                except OSError:
                    assert head.poll() is None, (tmp_path / "head.log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
            for process in family:  # a polite end takes Ray half a minute
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            head.kill()
            head.wait(60)


@pytest.mark.ray
@pytest.mark.keras
@pytest.mark.slow
def test_jobs_segment_runs_under_ray_job_submit(dashboard: str, tmp_path: Path, tiny_bundle: Path) -> None:
    source, output = pictures.write_parquet(tmp_path / "in.parquet", 6), tmp_path / "masks"
    submit = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", dashboard]
    own = {"env_vars": {"TF_CPP_MIN_LOG_LEVEL": "1"}}  # a name that we set too: Ray refuses to be told twice
    submit += ["--runtime-env-json", json.dumps(own), "--"]
    job = [sys.executable, str(ROOT / "jobs/segment.py"), str(source), str(output), "--model", str(tiny_bundle)]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    result = subprocess.run([*submit, *job], capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "6 images labelled" in result.stdout + result.stderr
    (status,) = output.glob("run=*/status.json")
    assert json.loads(status.read_text())["state"] == "complete"
    assert audit(str(output)).ok
