"""The kinds of fault: each disturbs the jobs of one trial; what comes after is the same for all.

A disturbed job may end in any way, or go on. Whoever starts a job here ends it, or kills it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import psutil

from tests import s3
from tests.benchmarks.fault_trial import ROOT, Trial, is_running, session
from tests.inference import poisoning

OF_PUTS = ("put.", "write.", "chunk.")
OF_RUNS = ("plan.", "manifest.", "success.", "run.", "status.", "replace.")
"""How the names of failpoints begin."""
DECODER, PREDICTOR, COMMITTER = "ray::MapBatches(PrepareChunks", "ray::MapWorker", "ray::MapBatches(CommitChunks"


def _disturbed(action: Callable[[Trial, psutil.Popen], object], **environment: str) -> Callable[[Trial], None]:
    """A job to which `action` happens after a random number of chunks."""

    def kind(trial: Trial) -> None:
        job = trial.start(**environment)
        running = trial.wait_for_chunks(job)
        trial.struck = action(trial, job) is not False and running
        trial.end(job)

    return kind


def _kill_process(*names: str) -> Callable[[Trial], None]:
    return _disturbed(lambda trial, job: trial.kill_one(job, *names))


def _kill_task(name: str) -> Callable[[Trial], None]:
    """A process at its task, which bears the name only as long as the task takes: so there are large images too."""

    def kind(trial: Trial) -> None:
        _write_large(trial, 16)
        job = trial.start()
        time.sleep(trial.random.uniform(0, 2))
        trial.struck = trial.kill_one(job, name)
        trial.end(job)

    return kind


def _write_large(trial: Trial, count: int) -> None:
    """As many pictures of 9 MB."""
    trial.draw = lambda: trial.noise.integers(0, 255, (1500, 2000, 3), dtype="uint8")  # type: ignore[method-assign]
    for number in range(count):
        trial.write_image(f"large-{number:02}.png")


def _killed_whole(trial: Trial) -> None:
    job = trial.start()
    trial.struck = trial.wait_for_chunks(job)
    trial.kill_all(job)


def _failpoint(action: str, *prefixes: str, most: int = 3) -> Callable[[Trial], None]:
    """A random step of the protocol, when a process comes there for the first to `most`-th time."""

    def kind(trial: Trial) -> None:
        source = "".join(path.read_text() for path in sorted((ROOT / "fcn_ray").rglob("*.py")))
        names = [name for name in re.findall(r'fail_at\("([a-z.]+)"\)', source) if name.startswith(prefixes)]
        where = f"{trial.random.choice(names)}:{trial.random.randint(1, most)}:{action}"
        code = trial.end(trial.start(FCN_RAY_FAILPOINT=where))
        trial.struck = code == -signal.SIGKILL or trial.was_logged(f"failpoint {where}")

    return kind


def _poison(what: str) -> Callable[[Trial], None]:
    """One to three pictures for which the decoder has a bug, in every job of the trial."""

    def kind(trial: Trial) -> None:
        trial.environment["PYTHONPATH"] = os.pathsep.join([poisoning.FOLDER, trial.environment["PYTHONPATH"]])
        trial.settings += ["decode_seconds=5", "decode_memory=500000000"]
        for number in trial.random.sample(range(16, 40), trial.random.randint(1, 3)):
            trial.write_image(f"{number}.png", poisoning.encode_poison(what))

    return kind


# ------------------------------------------------------------------------------------------------------ nodes


def _cluster(trial: Trial, **head: int) -> object:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False, **head})
    trial.stack.callback(cluster.shutdown)
    return cluster


def _lost_node(trial: Trial) -> None:
    """Of two, the one without the driver, without grace; half of the work is on it."""
    cluster = _cluster(trial)
    node = cluster.add_node(num_cpus=3)  # type: ignore[attr-defined]
    trial.settings.append("predict.actors=2")
    job = trial.start(RAY_ADDRESS=cluster.address)  # type: ignore[attr-defined]
    trial.struck = trial.wait_for_chunks(job)
    cluster.remove_node(node, allow_graceful=False)  # type: ignore[attr-defined]
    trial.end(job)
    trial.settings.pop()


def _full_object_store(trial: Trial) -> None:
    """79 MB for Ray's objects, and twelve chunks of 36 MB."""
    cluster = _cluster(trial, object_store_memory=79 << 20)
    _write_large(trial, 12)
    trial.end(trial.start(RAY_ADDRESS=cluster.address))  # type: ignore[attr-defined]
    trial.struck = True


# ----------------------------------------------------------------------------------------------------- file systems


def _mount(trial: Trial, size: str) -> None:
    """The output in a file system in memory."""
    Path(trial.output).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", trial.output], check=True)
    trial.stack.callback(subprocess.run, ["umount", "-l", trial.output], check=True)


def _remount(trial: Trial, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", trial.output], check=True)


def _full_disk(trial: Trial) -> None:
    _mount(trial, f"{trial.random.randint(30, 90)}k")
    trial.struck = trial.end(trial.start()) == 9
    _remount(trial, "size=100m")


def _read_only(trial: Trial) -> None:
    _mount(trial, "100m")
    job = trial.start()
    running = trial.wait_for_chunks(job)
    command = ["mount", "-o", "remount,ro", trial.output]  # refused while a file is open to be written
    refused = (subprocess.run(command, capture_output=True, check=False).returncode for _ in range(1000))
    trial.struck = running and not all(refused) and is_running(job)
    trial.end(job)
    _remount(trial, "rw")


# ------------------------------------------------------------------------------------------------------- stores


def _in_store(trial: Trial) -> s3.Shim:
    """Input and output in an S3 server of the trial's own."""
    import boto3

    from fcn_ray.storage import s3 as module

    address, shim = trial.stack.enter_context(s3.serving())
    trial.environment |= {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    trial.stack.callback(module.forget)
    trial.stack.enter_context(patch.dict(os.environ, trial.environment))
    module.forget()
    bucket = boto3.resource("s3").Bucket(s3.BUCKET)
    bucket.create()
    trial.stack.callback(bucket.delete)  # servers of one process share their buckets
    trial.stack.callback(lambda: bucket.objects.all().delete())
    trial.stack.callback(shim.fail, "none")
    for path in sorted((trial.root / "in").rglob("*")):
        bucket.put_object(Key=f"in/{path.name}", Body=path.read_bytes())
    trial.input, trial.output = f"s3://{s3.BUCKET}/in", f"s3://{s3.BUCKET}/out"
    return shim


def _store(method: str, share: float, *faults: s3.Fault) -> Callable[[Trial], None]:
    """A share of the requests meets one of the faults, through a whole job."""

    def kind(trial: Trial) -> None:
        shim = _in_store(trial)

        def sometimes(app: object, environ: dict[str, object], start_response: Callable[..., object]) -> object:
            if trial.random.random() < share:
                trial.struck = True
                return trial.random.choice(faults)(app, environ, start_response)
            return app(environ, start_response)  # type: ignore[operator]

        shim.fail(method, always=sometimes)
        trial.end(trial.start())
        shim.fail("none")

    return kind


def _store_storm(trial: Trial) -> None:
    """SlowDown for all, for twenty seconds."""
    shim = _in_store(trial)
    job = trial.start()
    trial.struck = trial.wait_for_chunks(job)
    shim.fail("any", always=s3.answer("503 Slow Down", "SlowDown"))
    time.sleep(20)
    shim.fail("none")
    trial.end(job)


def _expired_credentials(trial: Trial) -> None:
    """The store takes them no more until the job has ended; then they are renewed."""
    shim = _in_store(trial)
    job = trial.start()
    trial.struck = trial.wait_for_chunks(job)
    shim.fail("any", always=s3.answer("400 Bad Request", "ExpiredToken"))
    trial.end(job)
    shim.fail("none")


# ------------------------------------------------------------------------------------------------ inputs and jobs


def _changed_input(trial: Trial) -> None:
    def change(trial: Trial, job: psutil.Popen) -> None:
        for number in trial.random.sample(range(16), 6):
            trial.write_image(f"{number:02}.png")

    _disturbed(change)(trial)


def _deleted_input(trial: Trial) -> None:
    def delete(trial: Trial, job: psutil.Popen) -> None:
        for number in trial.random.sample(range(16), 6):
            (trial.root / "in" / f"{number:02}.png").unlink()
            trial.masks[f"{number:02}.png", 0] = [None]

    _disturbed(delete)(trial)


def _two_drivers(trial: Trial) -> None:
    """At once, over a folder that grows: before, between and behind what is there."""
    jobs = [trial.start(), trial.start()]
    for number in range(12):
        time.sleep(trial.random.uniform(0.2, 1.5))
        trial.write_image(f"{trial.random.choice(['0', '05', '9'])}-{number}.png")
    trial.struck = all(map(is_running, jobs))
    for job in jobs:
        trial.end(job)


def _zombie(trial: Trial) -> None:
    """A job with all its processes stands still; another does its work; then it goes on."""
    zombie = trial.start()
    trial.struck = trial.wait_for_chunks(zombie)
    asleep = session(zombie.pid)
    for process in asleep:
        process.suspend()
    trial.end(trial.start())
    for process in asleep:
        process.resume()
    trial.end(zombie)


def _clock_back(trial: Trial) -> None:
    """The clock of all later jobs is a year behind the first's, in all their processes. It takes a C compiler."""
    _killed_whole(trial)
    (trial.root / "clock.c").write_text(YEAR_BEHIND)
    library = trial.root / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, trial.root / "clock.c", "-ldl"], check=True)
    trial.environment["LD_PRELOAD"] = str(library)
    trial.end(trial.start())


YEAR_BEHIND = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
#define YEAR 31000000

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec -= YEAR;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    int failed = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


def _signal(number: signal.Signals) -> Callable[[Trial], None]:
    return _disturbed(lambda trial, job: job.send_signal(number))


KINDS: dict[str, Callable[[Trial], None]] = {
    "decoding process killed": _kill_task(DECODER),
    "predicting actor killed": _kill_process(PREDICTOR),
    "committing process killed": _kill_task(COMMITTER),
    "killed in a put": _failpoint("kill", *OF_PUTS),
    "killed in plan or manifest": _failpoint("kill", *OF_RUNS, most=1),
    "error in any step": _failpoint("raise", *OF_PUTS, *OF_RUNS, most=1),
    "driver killed": _disturbed(lambda trial, job: job.kill()),
    "everything killed": _killed_whole,
    "SIGTERM": _signal(signal.SIGTERM),
    "SIGINT": _signal(signal.SIGINT),
    "raylet killed": _kill_process("/raylet/raylet "),
    "control store killed": _kill_process("/gcs/gcs_server "),
    "node lost": _lost_node,
    "object store full": _full_object_store,
    "disk full": _full_disk,
    "output read-only": _read_only,
    "store answers 500": _store("any", 0.25, s3.answer("500 Internal Server Error", "InternalError")),
    "store answers 409": _store("PUT", 0.4, s3.answer("409 Conflict", "ConditionalRequestConflict")),
    "store overloaded for 20 s": _store_storm,
    "credentials expire": _expired_credentials,
    "connection reset in a put": _store("PUT", 0.4, s3.reset),
    "reply lost after a put": _store("PUT", 0.4, s3.lose_reply),
    "answers cut": _store("GET", 0.25, s3.cut),
    "store stalls": _store("any", 0.03, s3.stall(8)),
    "picture kills the decoder": _poison("kill"),
    "picture hangs the decoder": _poison("hang"),
    "picture fills the memory": _poison("fill"),
    "input changed": _changed_input,
    "input deleted": _deleted_input,
    "two jobs, growing input": _two_drivers,
    "zombie": _zombie,
    "clock a year back": _clock_back,
}
