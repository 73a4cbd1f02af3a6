"""The store on a real S3 server, behind a network that fails in every way: slow or an error, never wrong."""

import contextlib
import os
import re
import time

import pytest

from tasks.artifacts import open_store
from tasks.artifacts.files import open_files
from tasks.artifacts.maintenance import damaged, garbage
from tasks.errors import ArtifactError, StoreError
from tests.tasks.artifacts.toys import CHILDREN, FILL, STEPS, FillSpec, StepsSpec, build_all, child

MULTIPART = 101 * 2**20  # above the size at which s3fs splits an upload into parts


@pytest.fixture
def calm(tmp_path):
    """Digests of an undisturbed build."""
    return [artifact.digest for artifact in build_all(open_store(str(tmp_path / "calm")))]


def digests(artifacts) -> list[str]:
    """Digest of each artifact."""
    return [artifact.digest for artifact in artifacts]


def objects(swift, url) -> dict[str, int]:
    """What the server holds for a store, asked past our own code: {name: size}."""
    bucket = url.removeprefix("s3://").split("/")[0]
    pages = swift.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}


def test_a_store_on_s3_ends_with_the_same_digests_as_one_on_disk(s3_url, swift, calm):
    store = open_store(s3_url)
    assert not store.files.exists()
    built = build_all(store)
    assert digests(built) == calm
    assert store.files.exists()
    assert FILL.build(store, FillSpec()).cached
    assert built[0].path("folder/small.txt").read_text() == "3000 bytes"
    assert [faults for _, faults in damaged(store)] == [[], []]
    assert not garbage(store)
    assert not [name for name in objects(swift, s3_url) if "progress" in name or "owner" in name]


def test_a_flipped_bit_in_the_store_is_detected(s3_url, swift):
    store = open_store(s3_url)
    artifact = FILL.build(store, FillSpec()).artifact
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    name = f"{prefix}/fill/{artifact.key}/attempts/{artifact.manifest.attempt}/large.bin"
    client = swift.client()
    data = client.get_object(Bucket=bucket, Key=name)["Body"].read()
    client.put_object(Bucket=bucket, Key=name, Body=data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"large\.bin .*sha256"):
        artifact.path("large.bin")
    client.delete_object(Bucket=bucket, Key=name)
    with pytest.raises(ArtifactError, match=r"large\.bin .*missing"):
        artifact.path("large.bin")


def test_a_damaged_download_in_the_cache_is_fetched_again(s3_url):
    artifact = FILL.build(open_store(s3_url), FillSpec()).artifact
    kept = artifact.path("large.bin")
    data = kept.read_bytes()
    kept.write_bytes(b"?" * len(data))
    os.utime(kept, ns=(1, 1))  # as another process would find it: not known as verified
    assert artifact.path("large.bin").read_bytes() == data


# ---- one failing request ----

@pytest.mark.parametrize("fault", ["status", "reset", "tear", "drop"])
def test_one_lost_write_of_each_kind_is_survived(s3_url, fault_proxy, calm, fault):
    paths = [r"large\.bin", r"manifest\.json", r"lease\.json", r"state\.json", r"\.owner"]
    rules = [fault_proxy.add(fault, method="PUT", path=path, after=10) for path in paths]
    store = open_store(s3_url)
    assert digests(build_all(store)) == calm
    assert [rule.hits for rule in rules] == [1] * len(rules)
    assert [faults for _, faults in damaged(store)] == [[], []]
    assert not garbage(store)


@pytest.mark.parametrize("fault", ["truncate", "flip", "reset", "status"])
def test_a_disturbed_download_is_repaired_or_an_error_but_never_wrong_bytes(s3_url, fault_proxy, fault):
    artifact = FILL.build(open_store(s3_url), FillSpec()).artifact
    rule = fault_proxy.add(fault, method="GET", path=r"large\.bin", after=100)
    with contextlib.suppress(ArtifactError, StoreError):
        artifact.path("large.bin")
    assert rule.hits == 1
    assert len(artifact.path("large.bin").read_bytes()) == 3000  # not poisoned by what the first try has left
    assert artifact.verify() == []


def test_an_exclusive_write_whose_answer_was_lost_counts_as_ours(s3_url, fault_proxy):
    """The client sends it again, and the server refuses that, since the first one is there."""
    files = open_store(s3_url).files
    rule = fault_proxy.add("drop", method="PUT", path="mine")
    assert files.create("mine", b"ours")
    assert rule.hits == 1
    assert not files.create("mine", b"theirs")
    assert files.read("mine") == b"ours"


def test_a_large_upload_in_parts_survives_a_torn_part_and_a_lost_answer(s3_url, fault_proxy):
    rule = fault_proxy.add("tear", method="PUT", path=r"large\.bin.*partNumber=2", after=1000)
    lost = fault_proxy.add("drop", method="POST", path=r"large\.bin.*uploadId")
    artifact = FILL.build(open_store(s3_url), FillSpec(size=MULTIPART)).artifact
    assert (rule.hits, lost.hits) == (1, 1)
    with artifact.local("large.bin") as path:  # checks all of it
        assert path.stat().st_size == MULTIPART
    assert not path.exists()  # a big file that was read once is not kept


# ---- a network that stays broken at one point ----


@pytest.mark.parametrize("fault", ["reset", "drop"])
def test_a_manifest_that_can_never_be_written_is_an_error_and_loses_nothing(s3_url, fault_proxy, calm, fault):
    """`drop` is the telling one: the manifest is there, although every answer said that it is not."""
    rule = fault_proxy.add(fault, method="PUT", path=r"fill/.*/manifest\.json", times=1000)
    with pytest.raises(StoreError, match=r"s3://.*"):
        build_all(open_store(s3_url))
    assert rule.hits > 1
    rule.times = 0
    store = open_store(s3_url)
    assert [faults for _, faults in damaged(store)] == ([[]] if fault == "drop" else [])
    assert digests(build_all(store)) == calm
    assert [faults for _, faults in damaged(store)] == [[], []]


def test_data_that_can_never_be_written_commit_nothing(s3_url, fault_proxy, swift, calm):
    rule = fault_proxy.add("tear", method="PUT", path=r"large\.bin", times=1000, after=100)
    with pytest.raises(StoreError, match=r"s3://.*"):
        FILL.build(open_store(s3_url), FillSpec())
    rule.times = 0
    assert not objects(swift, s3_url)  # it also tidied up
    assert digests(build_all(open_store(s3_url))) == calm


# ---- killed at any request ----


def build_there(url: str) -> None:
    """Builds both stages."""
    build_all(open_store(url))


@pytest.mark.parametrize("carried_out", [0, 1], ids=["before the request", "after the request"])
def test_killed_at_any_request_the_next_run_ends_the_same(s3_url, fault_proxy, calm, carried_out):
    """At some requests of all, so that it stays short; the two halves of the test take different ones."""
    before = len(fault_proxy.requests)
    build_all(open_store(f"{s3_url}-count"))
    total = len(fault_proxy.requests) - before
    assert total > 15
    for number in range(6 * carried_out, total, 12):
        url = f"{s3_url}-{number}"
        rule = fault_proxy.add("hold", path=re.escape(url.removeprefix("s3:/")), skip=number, after=carried_out)
        process = child(build_there, url)
        while not rule.reached.wait(0.02) and process.is_alive():
            pass
        process.kill()
        process.join()
        rule.times = 0
        store = open_store(url)
        assert all(not faults for _, faults in damaged(store)), f"request {number} of {total}"
        assert digests(build_all(store)) == calm, f"request {number} of {total}"
        assert all(not faults for _, faults in damaged(store))


# ---- two at once ----


def build_at_once(url, barrier, results):
    """Builds when all are ready."""
    store = open_store(url)
    barrier.wait()
    built = build_all(store)[1]
    results.put((built.digest, built.verify()))


def test_two_builds_of_one_key_end_with_one_digest_and_whole_artifacts(s3_url, calm):
    """Swift's exclusive create is not atomic, so double work is allowed here; a wrong or partial result is not."""
    barrier, results = CHILDREN.Barrier(2), CHILDREN.Queue()
    processes = [child(build_at_once, s3_url, barrier, results) for _ in range(2)]
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert found == [(calm[1], [])] * 2
    assert [faults for _, faults in damaged(open_store(s3_url))] == [[], []]


# ---- what a person can get wrong ----


def quick_error(url: str) -> str:
    """The message with which the first check of a store fails, which must not take long."""
    begin = time.monotonic()
    with pytest.raises(StoreError) as caught:
        open_store(url).check()
    assert time.monotonic() - begin < 20
    return str(caught.value)


def test_a_wrong_secret_is_one_clear_error(s3_url, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    message = quick_error(s3_url)
    assert s3_url in message
    assert "AWS_SECRET_ACCESS_KEY" in message
    assert "wrong" not in message


def test_a_missing_secret_is_one_clear_error(s3_url, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "AWS_ACCESS_KEY_ID" in quick_error(s3_url)


def test_an_endpoint_that_is_down_is_one_clear_error(s3_url, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    message = quick_error(s3_url)
    assert "AWS_ENDPOINT_URL" in message
    assert "127.0.0.1:1" in message


def test_a_bucket_that_does_not_exist_is_one_clear_error(s3_url):
    assert "no-such-bucket/store does not exist" in quick_error("s3://no-such-bucket/store")
    with pytest.raises(StoreError, match=r"'no-such-bucket' .*create it"):
        FILL.build(open_store("s3://no-such-bucket/store"), FillSpec())


def test_secrets_enter_no_artifact_and_no_pickle(s3_url, swift):
    import pickle

    store = open_store(s3_url)
    built = build_all(store)
    assert swift.secret.encode() not in pickle.dumps(built)
    client = swift.client()
    bucket = s3_url.removeprefix("s3://").split("/")[0]
    for name in objects(swift, s3_url):
        assert swift.secret.encode() not in client.get_object(Bucket=bucket, Key=name)["Body"].read()


def test_progress_can_be_read_by_another_process_from_its_url(s3_url):
    from tasks.artifacts import Stage

    seen = {}

    def run(spec, out):
        out.progress.write("checkpoint/state", b"123")
        seen["data"] = open_files(out.progress.url).read("checkpoint/state")
        return {}

    Stage("trains", version=1, spec=StepsSpec, run=run, progress=True).build(open_store(s3_url), StepsSpec())
    assert seen == {"data": b"123"}
    assert STEPS.progress
