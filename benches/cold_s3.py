"""The first search of a process over a database in an S3 store that answers each request later by some milliseconds.

    pip install 'moto[server]' pyarrow numpy
    python benches/cold_s3.py --dataset minilm [--only "sql graph"] [--rows N] [--delay-ms 25] [--endpoint URL --bucket NAME]

Runs `ann cold` (benches/ann/cold.rs): the rows are written and indexed at the store itself, and the
processes that are measured reach it through a proxy here. Without `--endpoint` the store is moto's server, in Python: its own time is
part of what is measured, some milliseconds a request. With it, the AWS variables of the environment say who asks, and the bucket is there.

The proxy holds what a client sends for the time that is added and lets it pass at the rate it came: a request comes later, a large one not
slower than a small one. What the store answers passes at once.
"""

import argparse
import asyncio
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

import rivals

CHUNK_BYTES, BUCKET = 1 << 18, "bench"


class Proxy:
    """A proxy of TCP on the loopback, in a thread of its own."""

    def __init__(self, host: str, port: int, delay_s: float):
        self.host, self.port, self.delay_s = host, port, delay_s
        self.listening, self.own_port = threading.Event(), 0
        threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True).start()
        if not self.listening.wait(10):
            raise SystemExit("the proxy does not listen")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.own_port}"

    async def serve(self) -> None:
        server = await asyncio.start_server(self.connection, "127.0.0.1", 0, limit=CHUNK_BYTES)
        self.own_port = server.sockets[0].getsockname()[1]
        self.listening.set()
        async with server:
            await server.serve_forever()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            store_reader, store_writer = await asyncio.open_connection(self.host, self.port, limit=CHUNK_BYTES)
        except OSError:
            writer.close()
            return
        # Either side may leave in the middle of what the other one says.
        with contextlib.suppress(OSError):
            await asyncio.gather(self.later(reader, store_writer), self.at_once(store_reader, writer))
        for end in (writer, store_writer):
            end.close()

    async def later(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clock, held = asyncio.get_running_loop().time, asyncio.Queue()

        async def read() -> None:
            while chunk := await reader.read(CHUNK_BYTES):
                held.put_nowait((clock() + self.delay_s, chunk))
            held.put_nowait((clock() + self.delay_s, b""))

        async def write() -> None:
            while True:
                due, chunk = await held.get()
                await asyncio.sleep(due - clock())
                if not chunk:
                    writer.write_eof()
                    return
                writer.write(chunk)
                await writer.drain()

        await asyncio.gather(read(), write())

    async def at_once(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()


@contextlib.contextmanager
def moto():
    """A store of its own, with the bucket made: its address."""
    program = shutil.which("moto_server", path=f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if not program:
        raise SystemExit("moto_server is not here: pip install 'moto[server]', or give --endpoint")
    port = rivals.free_port()
    log = pathlib.Path(tempfile.gettempdir()) / f"sagitta-bench-moto-{os.getpid()}.log"
    with rivals.running([program, "-H", "127.0.0.1", "-p", str(port)], port, log=log):
        url = f"http://127.0.0.1:{port}"
        urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=30)
        yield url
    log.unlink()


def measure(url: str, bucket: str, given: argparse.Namespace) -> None:
    place = urllib.parse.urlsplit(url)
    if place.scheme != "http":
        raise SystemExit(f"the proxy passes plain HTTP on, not {url}: it cannot look into what is encrypted")
    proxy = Proxy(place.hostname, place.port or 80, given.delay_ms / 1e3)
    environment = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"} | os.environ
    environment |= {"AWS_ENDPOINT": url, "AWS_ALLOW_HTTP": "true", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    command = ["cargo", "bench", "--workspace", "--bench", "ann", "--", "cold", "--dataset", given.dataset]
    command += ["--location", f"s3://{bucket}/sagitta-bench-{int(time.time())}"]
    command += ["--slow-endpoint", proxy.url, "--slow-ms", str(given.delay_ms)]
    command += ["--only", given.only] if given.only else []
    command += ["--rows", str(given.rows)] if given.rows else []
    if subprocess.run(command, cwd=rivals.HERE.parent, env=environment).returncode:
        raise SystemExit("ann cold failed")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--dataset", default="minilm")
    arguments.add_argument("--only", help="a part of the name of a configuration")
    arguments.add_argument("--rows", type=int)
    arguments.add_argument("--delay-ms", type=float, default=25)
    arguments.add_argument("--endpoint", help="a store that runs; moto's if absent")
    arguments.add_argument("--bucket", default=BUCKET)
    given = arguments.parse_args()
    if given.endpoint:
        measure(given.endpoint, given.bucket, given)
        return
    with moto() as url:
        measure(url, BUCKET, given)


if __name__ == "__main__":
    main()
