"""Behind nginx, as docs/scaling.md prints it: under another name, with https, below a path; and behind worse ones."""

import json
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import httpx
import pytest
from patience import eventually
from visitor import ask, wait_for_gallery

import app
import dalle_mini
from dalle_mini.web import server as web

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAME = "dalle.example.org"
DOCS = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def printed(start: str) -> str:
    """The indented block of the docs that begins with this line."""
    found = re.search(rf"^    {re.escape(start)}\n(?:    .*\n|\n(?=    ))*", DOCS, re.MULTILINE)
    assert found, start
    return dedent(found[0])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def proxied(emoji: dalle_mini.Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of the page: `https`, below a `path` that nginx cuts off, and one `whole` that it passes on."""
    if NGINX is None:
        pytest.fail("no nginx on this machine (Debian: apt install nginx-light)")
    folder = tmp_path_factory.mktemp("nginx")
    key, certificate = folder / "dalle.key", folder / "dalle.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={NAME}"]
    subprocess.run([*request, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    with ExitStack() as stack:
        plain, below = (
            stack.enter_context(app.launch(emoji, root_path=path, trusted_proxy="127.0.0.1")).split(":")[-1].rstrip("/")
            for path in ("", "/dalle")
        )
        https, http = free_port(), free_port()
        server = printed("server {").replace("listen 443", f"listen {https}").replace(":7860", f":{plain}")
        server = server.replace("/etc/ssl/certs/dalle.pem", str(certificate))
        server = server.replace("/etc/ssl/private/dalle.key", str(key))
        location = printed("location /dalle/ {").replace(":7860", f":{below}")
        passed_on = location.replace(f":{below}/;", f":{below};")
        assert passed_on != location
        other = f"server {{ listen {http}; server_name {NAME}; {location} }}"
        another = f"server {{ listen {http}; server_name whole.example.org; {passed_on} }}"
        places = "".join(
            f"{kind}_temp_path {folder}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
            f"http {{ access_log off; {places}\n{server}\n{other}\n{another} }}\n"
        )
        process = subprocess.Popen([NGINX, "-c", str(folder / "nginx.conf"), "-p", str(folder)])
        try:
            addresses = {
                "https": f"https://{NAME}:{https}/",
                "path": f"http://{NAME}:{http}/dalle/",
                "whole": f"http://whole.example.org:{http}/dalle/",
            }
            assert eventually(lambda: asked("GET", addresses["path"] + "healthz").status_code == 200, 20)
            yield addresses
        finally:
            process.terminate()
            process.wait(10)


def asked(method: str, address: str, **rest: object) -> httpx.Response:
    """Of nginx here, whatever the name."""
    url = httpx.URL(address)
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    try:
        with httpx.Client(verify=unchecked, timeout=60, trust_env=False) as client:
            headers = {"Host": f"{url.host}:{url.port}"}
            return client.request(method, url.copy_with(host="127.0.0.1"), headers=headers, **rest)  # type: ignore[arg-type]
    except httpx.ConnectError:
        return httpx.Response(502)


PLACES = ["https", "path", "whole"]


@pytest.mark.parametrize("place", PLACES)
def test_the_api_and_those_who_watch_find_the_server_behind_nginx(proxied: dict[str, str], place: str) -> None:
    address = proxied[place]
    assert asked("GET", f"{address}healthz").json() == {"state": "ready"}
    assert "dalle_mini_slots_in_use" in asked("GET", f"{address}metrics").text
    assert asked("GET", f"{address}config").json()["root"] == address.rstrip("/")
    url = f"{address}gradio_api/call/v2/generate"
    event = asked("POST", url, json={"prompt": "a tiny dog", "num_candidates": 1}).json()["event_id"]
    told = asked("GET", f"{url}/{event}").text
    (answer,) = json.loads(told.strip().rpartition("data: ")[2])
    picture = answer["candidates"][0]["image"]["url"]
    assert picture.startswith(address)
    assert asked("GET", picture).content.startswith(b"\x89PNG")


@pytest.mark.browser
@pytest.mark.parametrize("place", PLACES)
def test_the_page_draws_behind_nginx_and_asks_nobody_else(
    chromium: "Browser", proxied: dict[str, str], place: str
) -> None:
    context = chromium.new_context(ignore_https_errors=True)
    try:
        page, hosts = context.new_page(), set[bytes]()
        context.on("request", lambda request: hosts.add(httpx.URL(request.url).netloc))
        page.goto(proxied[place])
        ask(page, "a tiny dog")
        assert wait_for_gallery(page, 9)
        with page.expect_response(f"{proxied[place]}leave") as left:
            page.evaluate("() => dispatchEvent(new Event('pagehide'))")
        assert left.value.status == 204
        assert hosts - {b""} == {httpx.URL(proxied[place]).netloc}
    finally:
        context.close()


@pytest.mark.parametrize("root_path", ["https://example.org/dalle", "https://example.org/dalle/"])
def test_a_proxy_that_passes_nothing_on_needs_the_whole_address(emoji: dalle_mini.Pipeline, root_path: str) -> None:
    with app.launch(emoji, root_path=root_path) as address:
        for path in ("config", "dalle/config"):
            assert httpx.get(address + path).json()["root"] == "https://example.org/dalle"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"trusted_proxy": "10.0.0.0/33"}, "trusted_proxy must be addresses and networks, .*, got '10.0.0.0/33'"),
        ({"trusted_proxy": "10.0.0.1/8"}, "trusted_proxy must be .*, got '10.0.0.1/8' .*host bits"),
        ({"trusted_proxy": "127.0.0.1,nginx"}, "trusted_proxy must be .*, got 'nginx'"),
        ({"trusted_proxy": "127.0.0.1,*"}, r"trusted_proxy must be .*, got '\*'"),
        ({"trusted_proxy": ""}, "trusted_proxy must be .*, got ''"),
        ({"root_path": "dalle"}, "root_path must be a path such as /dalle, .*, got 'dalle'"),
        ({"root_path": "/a b"}, "root_path must be .*, got '/a b'"),
        ({"root_path": "ftp://x"}, "root_path must be .*, got 'ftp://x'"),
        ({"grace": -1.0}, "grace must be a number of seconds from 0 to 86400, got -1"),
        ({"grace": float("nan")}, "grace must be .*, got nan"),
        ({"grace": float("inf")}, "grace must be .*, got inf"),
    ],
)
def test_a_setting_that_would_silently_mean_nothing_is_named(setting: dict[str, object], sentence: str) -> None:
    usual: dict[str, object] = {"trusted_proxy": None, "root_path": "", "grace": 10.0}
    web.check(**usual)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^{sentence}"):
        web.check(**{**usual, **setting})  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["256.1.1.1", "a b", "x" * 64 + ".org", "-", "nowhere.invalid"])
def test_a_host_that_cannot_be_is_named(host: str) -> None:
    with pytest.raises(ValueError, match=r"^host and port must be free to listen on, got .*:0 \("):
        web.listen(host, 0)
