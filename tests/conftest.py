"""What all tests share: an environment of their own, and the real servers and browser some of them need.

    swift          a real S3 server for the session: .endpoint .key .secret .environment() .client() .bucket()
    s3_url         "s3://<new bucket>/store", with this process's environment pointing at that server
    fault_proxy    a proxy before that server that does what networks do (tests/servers/fault_proxy.py)
    browser_page   a page in a real Chromium; a script error or a request that leaves the machine fails the test
"""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import settings

from tests.servers import swift as swift_server
from tests.servers.fault_proxy import FaultProxy
from tests.servers.waiting import unavailable

SHARED = Path(__file__).parents[2] / "shared"  # data beside the repository; tests that use it skip without it
FOREIGN = ("AWS_", "ANTHROPIC_", "HF_", "HUGGING", "PREFECT_", "RAY_", "SAEFLOW_", "WANDB_", "XDG_")
KEPT = ("SAEFLOW_REQUIRE_BROWSER", "SAEFLOW_REQUIRE_S3", "SAEFLOW_REQUIRE_SERVERS")
HOME = pytest.StashKey[str]()
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def pytest_configure(config: pytest.Config) -> None:
    """Hides the user's settings, keys and caches from every test and from all processes that tests start."""
    settings.register_profile("saeflow", deadline=None, max_examples=25, derandomize=True)  # no timed test
    settings.load_profile("saeflow")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a background job starts would ignore Ctrl-C
    home = config.stash[HOME] = tempfile.mkdtemp(prefix="saeflow-tests-")
    for name in [name for name in os.environ if name.startswith(FOREIGN) and name not in KEPT]:
        del os.environ[name]
    os.environ |= {
        "HOME": home,
        "XDG_CACHE_HOME": f"{home}/cache",
        "XDG_CONFIG_HOME": f"{home}/config",
        "AWS_CONFIG_FILE": f"{home}/no-aws-config",
        "AWS_SHARED_CREDENTIALS_FILE": f"{home}/no-aws-credentials",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PREFECT_HOME": f"{home}/prefect",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels for a GPU run without one; 0: on the GPU


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes what the session's processes wrote into their home."""
    shutil.rmtree(config.stash[HOME], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by the fixtures they use: `-m "not s3 and not browser"` leaves those out."""
    for item in items:
        for mark, fixture in (("s3", "swift"), ("browser", "chromium")):
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(mark)


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path) -> Iterator[None]:
    """Gives each test a store and caches of its own, and takes back what it did to the environment."""
    before = dict(os.environ)
    os.environ |= {
        "SAEFLOW_STORE": str(tmp_path / "saeflow-store"),
        "SAEFLOW_CACHE": str(tmp_path / "saeflow-cache"),
    }
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ |= before
    _forget_stores()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and texts beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared data folder {SHARED.name}/ is not beside this repository")
    return SHARED


@pytest.fixture(scope="session")
def swift() -> Iterator[swift_server.Swift]:
    """A real S3 server on loopback, started once per session."""
    reason = swift_server.missing()
    if reason:
        unavailable(reason, "SAEFLOW_REQUIRE_S3")
    with swift_server.running_swift() as server:
        yield server


@pytest.fixture
def s3_url(swift: swift_server.Swift) -> str:
    """The URL of a new empty store on the S3 server; the credentials are in the environment."""
    os.environ |= swift.environment()
    _forget_stores()
    return f"s3://{swift.bucket()}/store"


@pytest.fixture
def fault_proxy(s3_url: str, swift: swift_server.Swift) -> Iterator[FaultProxy]:
    """A proxy before the S3 server, with AWS_ENDPOINT_URL pointing at it; `s3_url` names the same bucket."""
    with FaultProxy(swift.endpoint) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        yield proxy


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium, started once per session."""
    path = next((found for found in map(shutil.which, CHROMIUM) if found), None)
    if path is None:
        unavailable("no Chromium is installed (Debian, Ubuntu: apt-get install chromium)", "SAEFLOW_REQUIRE_BROWSER")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]
    mark = os.environ.pop("SAEFLOW_RUN", None)  # of a guard that protects this process: it would end the browser too
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        if mark is not None:
            os.environ["SAEFLOW_RUN"] = mark
        yield browser
        browser.close()


@pytest.fixture
def browser_page(chromium):
    """A new page; when the test ends, script errors and requests that would have left the machine fail it."""
    page = chromium.new_page()
    faults: list[str] = []

    def only_local(route) -> None:
        host = urlsplit(route.request.url).hostname
        if host in (None, "localhost", "127.0.0.1"):
            route.continue_()
        else:
            faults.append(f"request to {route.request.url}")
            route.abort()

    page.route("**/*", only_local)
    page.on("pageerror", lambda error: faults.append(f"script error: {error}"))
    yield page
    page.close()
    assert not faults, faults


def _forget_stores() -> None:
    """File systems and stores are kept per process and URL, with the endpoint of the test that opened them."""
    if "tasks.artifacts.store" in sys.modules:
        sys.modules["tasks.artifacts.store"].open_store.cache_clear()
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()
