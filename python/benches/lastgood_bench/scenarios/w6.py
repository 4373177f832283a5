"""W6: saves and restores on an S3 store on loopback: as it is, and as slow as a remote one."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lastgood as lg

from lastgood_bench import gateway, states, tensors
from lastgood_bench.jobs import Job, Records
from lastgood_bench.scenarios import base
from lastgood_bench.scenarios.base import Metric, Plan, Scenario
from lastgood_bench.tensors import Flat, Layout
from lastgood_bench.ways import WAYS
from lastgood_bench.ways.formats import Tensorstore

#: Seconds that each request waits, and bytes a second.
LINES = {"loopback": (0.0, 0.0), "20 ms, 100 MB/s": (0.02, 100e6)}
#: The ways that speak S3 here. DCP would by s3fs, torchsnapshot by aiobotocore, which few install for that alone.
NAMES = ("lastgood", "lastgood zstd:1", "tensorstore")
#: Below which a way's objects lie in the bucket.
PREFIX = "bench"


def jobs(plan: Plan, state: str) -> Iterator[Job]:
    names = [name for name in NAMES if name in plan.ways]
    for rep in range(plan.reps):
        for line in LINES:
            for name in base.in_turn(plan, names, rep):
                yield base.job(plan, "W6", state, name, line, rep)


def run(job: Job, records: Records) -> None:
    latency, cap = LINES[job.case]
    with (
        # Paths of sockets have a length that they may not exceed.
        tempfile.TemporaryDirectory(prefix="lastgood-s3-") as short,
        gateway.started(Path(short)) as access,
        gateway.Proxy(access, latency, cap) as proxy,
    ):
        os.environ |= {
            "AWS_ENDPOINT": proxy.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": access.key,
            "AWS_SECRET_ACCESS_KEY": access.secret,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        state = base.live(job)
        for number, case in ((1, "first save"), (2, "second save")):
            if number == 1:
                remote = _remote(job, state, proxy, access)
            else:
                remote.guard()
                state.step()
            proxy.forget()
            begin = time.perf_counter()
            remote.save(number)
            remote.finish()
            _note(job, records, case, "durable_s", time.perf_counter() - begin, proxy)
        expected, layout = tensors.digest(state.flat()), tensors.layout_of(state.flat())
        remote.close()
        empty = _remote(job, states.skeleton(job.state), proxy, access)
        proxy.forget()
        begin = time.perf_counter()
        loaded = empty.load(2, layout)
        tensors.touch(loaded)
        _note(job, records, "restore", "load_s", time.perf_counter() - begin, proxy)
        tensors.compare(expected, loaded, job.way)
        empty.close()


def _note(
    job: Job, records: Records, case: str, metric: str, seconds: float, proxy: gateway.Proxy
) -> None:
    case = f"{case}: {job.case}"
    records.add(case, metric, seconds)
    for verb in ("PUT", "GET", "HEAD", "LIST", "POST", "DELETE"):
        records.add(case, verb.lower(), proxy.requests[verb])
    records.add(
        case,
        "put_bytes" if metric == "durable_s" else "got_bytes",
        proxy.sent if metric == "durable_s" else proxy.received,
    )


def _remote(job: Job, state: Any, proxy: gateway.Proxy, access: gateway.Access) -> Any:
    if job.way == "tensorstore":
        return _TensorstoreS3(Path(job.work) / "local", state, proxy.endpoint, access.bucket)
    return _LastgoodS3(job, state, access.bucket)


class _LastgoodS3:
    """The way of the job, with its store in a bucket."""

    def __init__(self, job: Job, state: Any, bucket: str) -> None:
        self.state = state
        settings = WAYS[job.way].settings  # type: ignore[attr-defined]
        never = lg.Policy(at=[2**62])
        self.run = lg.open(
            f"s3://{bucket}/{PREFIX}", state.components, policy=never, preflight="off", **settings
        )

    def save(self, number: int) -> None:
        self.last = self.run.save(number)

    def guard(self) -> None:
        self.run.wait_captured()

    def finish(self) -> None:
        self.last.durable.result()

    def load(self, number: int, layout: Layout) -> Flat:
        self.run.restore(at=number)
        return self.state.flat()

    def close(self) -> None:
        self.run.close()


class _TensorstoreS3(Tensorstore):
    """TensorStore's `s3` driver, which has the credentials from the environment."""

    def __init__(self, folder: Path, state: Any, endpoint: str, bucket: str) -> None:
        super().__init__(folder, state)
        self.endpoint, self.bucket = endpoint, bucket

    def _spec(self, number: int, name: str) -> dict[str, Any]:
        store = {
            "driver": "s3",
            "bucket": self.bucket,
            "path": f"{PREFIX}/{number:06}/{name}/",
            "endpoint": self.endpoint,
            "aws_region": "us-east-1",
            "aws_credentials": {"type": "environment"},
        }
        return {"driver": "zarr3", "kvstore": store}


SCENARIO = Scenario(
    "W6",
    "saves and restores on an S3 store on loopback, with its requests",
    ("A-S",),
    (
        Metric("durable_s", "durable", "s"),
        Metric("load_s", "load", "s"),
        Metric("put_bytes", "bytes put", "B"),
        Metric("got_bytes", "bytes got", "B"),
        *(
            Metric(verb, verb.upper(), "")
            for verb in ("put", "get", "head", "list", "post", "delete")
        ),
    ),
    jobs,
    run,
    # Looked up when it is asked, as tests replace it.
    absent=lambda: gateway.absent(),
    chart=("second save: 20 ms, 100 MB/s", "durable_s"),
)
