"""The proxy of the compose file, as a real nginx before a real Prefect server and a real Ray dashboard."""

import base64
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers.waiting import eventually, free_port, unavailable

COMPOSE = Path(__file__).parents[2] / "infra" / "compose"
WRAPPER = """\
daemon off; pid {folder}/pid; error_log {folder}/error.log; {user}
events {{ }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    include {folder}/default.conf;
}}
"""


class Proxy:
    """Where it listens, and how one logs in."""

    def __init__(self, prefect: int, ray: int, login: tuple[str, str], certificate: Path) -> None:
        self.prefect, self.ray = f"https://localhost:{prefect}", f"https://localhost:{ray}"
        self.port, self.login = prefect, login
        self.verify = ssl.create_default_context(cafile=str(certificate))

    def get(self, url: str, **options: Any) -> httpx.Response:
        return httpx.get(url, verify=self.verify, timeout=30, **options)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    if shutil.which("nginx") is None or shutil.which("openssl") is None:
        reason = "nginx or openssl is not installed (Debian, Ubuntu: apt-get install nginx openssl)"
        unavailable(reason, "SAEFLOW_REQUIRE_SERVERS")
    from tasks import cluster, guard
    from tasks.runtime import Runtime

    folder = tmp_path_factory.mktemp("proxy")
    script = shutil.copy(COMPOSE / "secrets.sh", folder)
    made = subprocess.run([script, "ada"], capture_output=True, text=True, check=True)
    [password] = re.findall(r"password (\w+)", made.stdout)
    secrets = folder / "secrets"
    api, server, dashboard = free_port(), free_port(), free_port()
    guard.protect(folder=folder)
    ray = cluster.attach_or_start(Runtime())
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    given = _read(secrets / "proxy.env") | {
        "TLS_FOLDER": str(secrets / "tls"), "LOGINS": str(secrets / "logins"), "RAY_TOKEN": token,
        "PREFECT": f"127.0.0.1:{api}", "RAY_DASHBOARD": ray.dashboard.removeprefix("http://"),
        "LISTEN_PREFECT": str(server), "LISTEN_RAY": str(dashboard),
    }  # fmt: skip
    text = (COMPOSE / "proxy.conf.template").read_text()
    for name, value in given.items():
        text = text.replace(f"${{{name}}}", value)
    assert "${" not in text, "a variable of the proxy has no value"
    (folder / "default.conf").write_text(text)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(WRAPPER.format(folder=folder, user=user))
    start = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(api)]
    own = {"PREFECT_HOME": str(folder / "prefect")}
    own |= {name: value for name, value in _read(COMPOSE.parent / "prefect" / "server.env").items() if "UI" in name}
    own["PREFECT_SERVER_API_AUTH_STRING"] = _read(secrets / "prefect.env")["PREFECT_SERVER_API_AUTH_STRING"]
    with (folder / "server.log").open("wb") as log:
        prefect = subprocess.Popen(start, env=os.environ | own, stdout=log, stderr=log, start_new_session=True)
        nginx = subprocess.Popen(["nginx", "-c", folder / "nginx.conf"], stdout=log, stderr=log)
    try:
        eventually(lambda: httpx.get(f"http://127.0.0.1:{api}/api/health").status_code == 200)
        assert nginx.poll() is None, (folder / "error.log").read_text()
        yield Proxy(server, dashboard, ("ada", password), secrets / "tls" / "server.crt")
    finally:
        for process in (nginx, prefect):
            process.terminate()
            process.wait(30)
        cluster.shutdown()
        guard.release()


def _read(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines() if line[0] != "#")


def test_nobody_sees_a_page_without_a_login(proxy: Proxy) -> None:
    for place in ("", "/dashboard", "/api/health", "/ui-settings", "/api/flow_runs/count"):
        assert proxy.get(proxy.prefect + place).status_code == 401
    assert proxy.get(proxy.ray + "/api/version").status_code == 401
    assert proxy.get(proxy.prefect, auth=("ada", "guess")).status_code == 401
    wrong = base64.b64encode(b"saeflow:guess").decode()
    assert proxy.get(f"{proxy.prefect}/api/flows/count", headers={"Authorization": f"Basic {wrong}"}).status_code == 401


def test_with_a_login_prefect_and_ray_answer(proxy: Proxy) -> None:
    page = proxy.get(f"{proxy.prefect}/dashboard", auth=proxy.login, headers={"Accept": "text/html"})
    assert page.status_code == 200 and "<html" in page.text
    counted = httpx.post(
        f"{proxy.prefect}/api/flow_runs/count", json={}, auth=proxy.login, verify=proxy.verify, timeout=30
    )
    assert counted.status_code == 200 and counted.json() == 0
    told = proxy.get(f"{proxy.prefect}/ui-settings", auth=proxy.login).json()
    assert told["auth"] is None, "the page would ask for the server's own password"
    version = proxy.get(f"{proxy.ray}/api/version", auth=proxy.login)
    assert version.status_code == 200 and version.json()["ray_version"]
    jobs = proxy.get(f"{proxy.ray}/api/jobs/", auth=proxy.login)
    assert jobs.status_code == 200


def test_a_page_can_call_nobody_else(proxy: Proxy) -> None:
    for answer in (proxy.get(proxy.prefect, auth=proxy.login), proxy.get(proxy.prefect), proxy.get(proxy.ray)):
        policy = answer.headers["Content-Security-Policy"]
        assert "connect-src 'self'" in policy and "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert "max-age" in answer.headers["Strict-Transport-Security"]
        assert "nginx/" not in answer.headers["Server"]


def test_plain_http_is_led_to_tls(proxy: Proxy) -> None:
    plain = httpx.get(f"http://localhost:{proxy.port}/runs")
    assert plain.status_code == 301 and plain.headers["Location"] == f"https://localhost:{proxy.port}/runs"


@pytest.mark.browser
def test_the_page_works_behind_it(proxy: Proxy, chromium: Any, tmp_path: Path) -> None:
    name, password = proxy.login
    context = chromium.new_context(ignore_https_errors=True, http_credentials={"username": name, "password": password})
    page = context.new_page()
    refused: list[str] = []
    page.on("console", lambda said: refused.append(said.text) if "Content Security Policy" in said.text else None)
    page.goto(f"{proxy.prefect}/dashboard")
    page.get_by_text("Run a task or flow to get started").wait_for(timeout=30_000)  # what the API says: none yet
    page.screenshot(path=str(tmp_path / "dashboard.png"))
    page.goto(f"{proxy.prefect}/deployments")
    page.get_by_text("Deployments").first.wait_for(timeout=30_000)
    assert not refused
    context.close()
