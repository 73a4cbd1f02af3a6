"""A real S3 server on loopback: OpenStack Swift with its s3api middleware, from the environment .venv-swift.

To have one by hand, until Enter is pressed:  .venv/bin/python -m tests.servers.swift
"""

import contextlib
import http.client
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = Path(__file__).parents[2] / ".venv-swift"
PYTHON = ENVIRONMENT / "bin" / "python"
KEY, SECRET = "test:tester", "testsecret"
START_SECONDS = 60.0

RINGS = """
import sys
from swift.common.ring import RingBuilder
for name, port in zip(("object", "container", "account"), map(int, sys.argv[1:])):
    builder = RingBuilder(4, 1, 1)
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "d1", "weight": 1.0,
                     "replication_ip": "127.0.0.1", "replication_port": port, "meta": ""})
    builder.rebalance()
    builder.get_ring().save(name + ".ring.gz")
"""

COMMON = """
[swift-hash]
swift_hash_path_suffix = tests
[storage-policy:0]
name = default
default = yes
"""

STORAGE = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
devices = {folder}/srv
mount_check = false
workers = 0
db_preallocation = false
log_level = WARNING
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""

# No memcached: port 1 refuses at once. `slo` carries multipart uploads, `copy` server-side copies.
PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
workers = 0
log_level = WARNING
[pipeline:main]
pipeline = catch_errors gatekeeper cache listing_formats s3api tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1
dns_compliant_bucket_names = true
min_segment_size = 1024
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testsecret .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""

# The supervisor ends the servers when the pipe from the tests closes, however the tests have ended. It keeps their ids
# because each server makes itself the leader of a session of its own, so a process group does not hold them together.
SUPERVISOR = """
for name in object container account proxy; do
  "$0" "$1/swift-$name-server" $name-server.conf >$name.log 2>&1 </dev/null & ids="$ids $!"
done
read -r _
kill -KILL $ids
wait
rm -rf -- "$2"
"""


@dataclass(frozen=True)
class Swift:
    """A running server; `endpoint` is what AWS_ENDPOINT_URL takes."""

    endpoint: str
    key: str = KEY
    secret: str = SECRET

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self):
        """A botocore S3 client: to look at the server past the code that is tested."""
        import botocore.session

        return botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
        )

    def bucket(self) -> str:
        """Makes a new empty bucket and returns its name."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name


def missing() -> str | None:
    """Says in one sentence why no server can be started here, or None."""
    if (ENVIRONMENT / "bin" / "swift-proxy-server").exists():
        return None
    return "OpenStack Swift is not installed: `make test` installs it into .venv-swift"


@contextlib.contextmanager
def running_swift() -> Iterator[Swift]:
    """Starts the server on free loopback ports in a temporary folder; nothing of it is left when the block ends."""
    with contextlib.ExitStack() as held:
        folder = Path(tempfile.mkdtemp(prefix="swift-"))  # removed by the supervisor, also when the tests are killed
        ports = [held.enter_context(_free_port()) for _ in range(4)]
        numbers = [port.getsockname()[1] for port in ports]
        _configure(folder, numbers)
        held.close()  # frees the ports for the servers
        process = subprocess.Popen(
            ["bash", "-c", SUPERVISOR, PYTHON, PYTHON.parent, folder],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal ends the tests first, then their servers
        )
        try:
            _wait(numbers, folder)
            yield Swift(f"http://127.0.0.1:{numbers[-1]}")
        finally:
            process.communicate()  # closes the pipe and waits


def _free_port() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


def _configure(folder: Path, ports: list[int]) -> None:
    (folder / "srv" / "d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(COMMON)
    for name, port in zip(("object", "container", "account"), ports, strict=False):
        (folder / f"{name}-server.conf").write_text(STORAGE.format(name=name, port=port, folder=folder))
    (folder / "proxy-server.conf").write_text(PROXY.format(port=ports[-1], folder=folder))
    rings = [PYTHON, "-W", "ignore", "-c", RINGS, *map(str, ports[:3])]
    subprocess.run(rings, cwd=folder, check=True, stdin=subprocess.DEVNULL)


def _wait(ports: list[int], folder: Path) -> None:
    """Returns when all four servers answer."""
    deadline = time.monotonic() + START_SECONDS
    for port in ports:
        while not _answers(port):
            if time.monotonic() > deadline:
                logs = "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in sorted(folder.glob("*.log")))
                raise RuntimeError(f"Swift did not answer on port {port} in {START_SECONDS:.0f} s; its logs:\n{logs}")
            time.sleep(0.05)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthcheck")
        connection.getresponse().read()
        return True
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    with running_swift() as server:
        print("\n".join(f"export {name}={value}" for name, value in server.environment().items()))
        print(f"a bucket: s3://{server.bucket()}")
        input("Enter ends it.")
