"""The servers of the tests do what they say: else the tests that lean on them prove nothing."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.servers.fault_proxy import FaultProxy

SESSION = """
import sys, time
from tests.servers.swift import running_swift
with running_swift() as server:
    print(server.endpoint, flush=True)
    time.sleep(600)
"""


def put(swift, endpoint, bucket, name, body, **more):
    """One PUT without the client's own retries."""
    import botocore.config
    import botocore.session

    client = botocore.session.Session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=endpoint,
        aws_access_key_id=swift.key,
        aws_secret_access_key=swift.secret,
        config=botocore.config.Config(retries={"max_attempts": 0}),
    )
    with contextlib.closing(client):
        client.put_object(Bucket=bucket, Key=name, Body=body, **more)


def stored(swift, bucket):
    """What the server holds: {name: size}."""
    listing = swift.client().list_objects_v2(Bucket=bucket)
    return {entry["Key"]: entry["Size"] for entry in listing.get("Contents", [])}


def test_swift_refuses_a_wrong_key_and_a_wrong_checksum(swift):
    import botocore.exceptions

    bucket = swift.bucket()
    wrong = type(swift)(swift.endpoint, secret="wrong")
    with pytest.raises(botocore.exceptions.ClientError, match=r"SignatureDoesNotMatch|403"):
        put(wrong, swift.endpoint, bucket, "a", b"x")
    with pytest.raises(botocore.exceptions.ClientError, match="BadDigest"):
        put(swift, swift.endpoint, bucket, "a", b"x", ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg==")
    assert stored(swift, bucket) == {}


def test_swift_dies_with_the_tests():
    from tests.servers.swift import missing

    if missing():
        pytest.skip(missing())
    process = subprocess.Popen([sys.executable, "-c", SESSION], stdout=subprocess.PIPE, text=True)
    with process.stdout:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
    servers = descendants(process.pid)
    assert len([name for name in servers.values() if "-server.conf" in name and "bash" not in name]) == 4
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while alive(servers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(servers)


def descendants(pid):
    """{pid: command line} of all processes below one."""
    import psutil

    found = {}
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found[child.pid] = " ".join(child.cmdline())
    return found


def alive(processes):
    """Those of `processes` that still run the same command."""
    found = []
    for pid, command in processes.items():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip() == command:
                found.append(pid)
    return found


@pytest.mark.parametrize(("fault", "arrives"), [("status", False), ("reset", False), ("tear", False), ("drop", True)])
def test_fault_proxy_fails_one_request_and_the_server_has_it_or_not(swift, fault, arrives):
    bucket = swift.bucket()
    with FaultProxy(swift.endpoint) as proxy:
        rule = proxy.add(fault, method="PUT", path="first", after=1000)
        with pytest.raises(Exception, match=r"SlowDown|[Cc]onnection"):
            put(swift, proxy.endpoint, bucket, "first", b"x" * 100_000)
        put(swift, proxy.endpoint, bucket, "second", b"y" * 10)
    assert rule.hits == 1
    assert stored(swift, bucket) == {"second": 10} | ({"first": 100_000} if arrives else {})


def test_fault_proxy_alters_answers(swift):
    import urllib.request

    bucket = swift.bucket()
    swift.client().put_object(Bucket=bucket, Key="data", Body=b"0123456789")
    url = swift.client().generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "data"})

    def fetch(endpoint):
        request = urllib.request.Request(url.replace(swift.endpoint, endpoint))
        request.add_header("Host", swift.endpoint.removeprefix("http://"))  # the name that was signed
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()

    with FaultProxy(swift.endpoint) as proxy:
        proxy.add("flip", method="GET", path="data")
        proxy.add("truncate", method="GET", path="data", after=4)
        assert fetch(proxy.endpoint) == b"012345678" + bytes([ord("9") ^ 1])
        with pytest.raises(Exception, match="IncompleteRead"):
            fetch(proxy.endpoint)
        assert fetch(proxy.endpoint) == b"0123456789"


def test_browser_page_shows_a_local_page(browser_page, tmp_path):
    (tmp_path / "page.html").write_text("<p id=a></p><script>document.getElementById('a').textContent = 6 * 7</script>")
    browser_page.goto(f"file://{tmp_path}/page.html")
    assert browser_page.locator("#a").text_content() == "42"
