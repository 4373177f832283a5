"""An S3 store on loopback: a Ceph RADOS Gateway behind a proxy, which counts requests and is as slow as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

SCRIPT = Path(__file__).parents[3] / "scripts/ceph-rgw"
_PART = 64 << 10


def absent() -> str | None:
    """Why there can be none here, or None."""
    if shutil.which("radosgw") is None and not Path("/usr/bin/radosgw").exists():
        return f"no S3 gateway is installed: {SCRIPT.name} install, as root"
    return None


@dataclass
class Access:
    """Where a store is, and as whom."""

    endpoint: str
    key: str
    secret: str
    bucket: str


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Access]:
    """A gateway that is stopped at the end.

    Raises:
        RuntimeError: if it does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        told = subprocess.run(
            ["bash", str(SCRIPT), "up", str(folder)], capture_output=True, text=True, check=False
        )
        if told.returncode != 0:
            raise RuntimeError(f"the S3 gateway did not start: {told.stderr.strip()[-500:]}")
        yield Access(*told.stdout.split()[-4:])
    finally:
        subprocess.run(["bash", str(SCRIPT), "down", str(folder)], capture_output=True, check=False)


@dataclass
class Proxy:
    """Passes requests on, in a thread of its own.

    ``latency``: seconds that each request waits. ``cap``: bytes a second in each direction, of all connections; none if
    0. ``requests``: how many there were of each verb; a list of objects counts as LIST. ``sent`` and ``received``: the
    bytes of bodies to and from the store.
    """

    access: Access
    latency: float = 0.0
    cap: float = 0.0
    requests: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    received: int = 0
    endpoint: str = ""

    def __enter__(self) -> Proxy:
        ready = threading.Event()
        self._free = {"up": 0.0, "down": 0.0}

        async def serve() -> None:
            server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=1 << 20)
            self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
            ready.set()
            await self._ended.wait()
            server.close()

        self._thread = threading.Thread(
            target=lambda: asyncio.run(serve()), name="proxy", daemon=True
        )
        self._thread.start()
        if not ready.wait(10):
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def forget(self) -> None:
        """Counts anew."""
        self.requests.clear()
        self.sent = self.received = 0

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        of = urlsplit(self.access.endpoint)
        store_in, store_out = await asyncio.open_connection(of.hostname, of.port, limit=1 << 20)
        try:
            while await self._request(reader, writer, store_in, store_out):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # Either side may end a connection between requests, and the proxy ends with open ones.
            pass
        finally:
            writer.close()
            store_out.close()

    async def _request(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        store_in: asyncio.StreamReader,
        store_out: asyncio.StreamWriter,
    ) -> bool:
        """Passes one request on, and its answer back. False if the connection ends."""
        head = await reader.readuntil(b"\r\n\r\n")
        line, fields = _head(head)
        verb, path, _ = line.split(" ", 2)
        listed = verb == "GET" and "list-type" in path
        self.requests["LIST" if listed else verb] += 1
        if self.latency:
            await asyncio.sleep(self.latency)
        if fields.get("expect", "").lower() == "100-continue":
            # The client waits for this, and the store shall not.
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = b"\r\n".join(
                p for p in head.split(b"\r\n") if not p.lower().startswith(b"expect:")
            )
        store_out.write(head)
        await self._body(reader, store_out, fields, "up")
        while True:
            head = await store_in.readuntil(b"\r\n\r\n")
            line, answer = _head(head)
            if not line.split(" ")[1].startswith("1"):
                break
        writer.write(head)
        bodiless = verb == "HEAD" or line.split(" ")[1] in ("204", "304")
        if not bodiless:
            await self._body(store_in, writer, answer, "down")
        await writer.drain()
        return "close" not in (fields.get("connection", "") + answer.get("connection", "")).lower()

    async def _body(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fields: dict[str, str],
        way: str,
    ) -> None:
        if fields.get("transfer-encoding", "").lower() != "chunked":
            await self._pass(reader, writer, int(fields.get("content-length", 0)), way)
            return
        size = -1
        while size != 0:
            line = await reader.readline()
            size = int(line.split(b";")[0], 16)
            writer.write(line)
            await self._pass(reader, writer, size, way)
            writer.write(await reader.readexactly(2))

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int, way: str
    ) -> None:
        left = size
        while left > 0:
            part = await reader.read(min(left, _PART))
            if not part:
                raise ConnectionError("the body ended early")
            left -= len(part)
            # Before whoever gets it can ask how much it was.
            if way == "up":
                self.sent += len(part)
            else:
                self.received += len(part)
            if self.cap:
                # The line is free for the next part once this one is through.
                now = time.monotonic()
                begin = max(now, self._free[way])
                self._free[way] = begin + len(part) / self.cap
                if self._free[way] - now > 0.002:
                    await asyncio.sleep(self._free[way] - now)
            writer.write(part)
            await writer.drain()


def _head(head: bytes) -> tuple[str, dict[str, str]]:
    first, *rest = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    fields = (line.partition(":") for line in rest)
    return first, {name.strip().lower(): value.strip() for name, _, value in fields}
