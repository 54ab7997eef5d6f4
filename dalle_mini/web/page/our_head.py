"""What stands in the HTML before Gradio's scripts: our head, and what a link to the page looks like elsewhere.

Contract: ASGI around Gradio. Of the page's HTML the tags for previews are replaced by ours, and one of `heads`, by
language, comes before Gradio's first script: what Gradio itself takes as a head, it puts in when it has read the
language of the browser.
"""

import os
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from dalle_mini.web.page.words import language_of

TITLE = "DALL·E mini: words become pictures"
DESCRIPTION = "Say what you would like to see. A small model draws it nine times and puts the best first."
PICTURE = "/preview.jpg"
OPENING = '<p id="opening">🥑 DALL·E mini</p>'  # where the title will be; head.css
GRADIOS = re.compile(
    r'<meta\s+(?:property="og:|name="twitter:|name="description")[^>]*>\s*'
    # It fetches what makes a frame of huggingface.co as high as the page; embed.js tells that to everybody else's.
    + ("" if "SPACE_ID" in os.environ else r"|<script>(?:(?!</script>).)*iframeResizer\.contentWindow.*?</script>"),
    re.DOTALL,
)

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Callable[[Any], Awaitable[None]]], Awaitable[None]]


class OurHead:
    def __init__(self, app: App, *, heads: Mapping[str, str]) -> None:
        self._app, self._heads = app, heads

    async def __call__(self, scope: Scope, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] != "http" or scope["path"] != "/":
            return await self._app(scope, receive, send)
        wanted = dict(parse_qsl(scope["query_string"].decode("latin1"))).get("lang", "")
        head = self._heads[language_of(wanted, dict(scope["headers"]).get(b"accept-language", b"").decode("latin1"))]
        start: dict[str, Any] = {}
        body = b""

        async def rewrite(message: Any) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            changed = with_head(body.decode(), head).encode()
            headers = [pair for pair in start["headers"] if pair[0] != b"content-length"]
            headers += [(b"content-length", str(len(changed)).encode()), (b"vary", b"Accept-Language")]
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": changed})

        await self._app(scope, receive, rewrite)


def with_head(page: str, head: str) -> str:
    found = re.search(r'"root":\s*"([^"]*)"', page)
    address = found[1].rstrip("/") if found else ""
    tags = {
        "og:title": TITLE,
        "og:description": DESCRIPTION,
        "og:type": "website",
        "og:url": f"{address}/",
        "og:image": address + PICTURE,
        "og:image:alt": "Eight small pictures that the model drew",
        "twitter:card": "summary_large_image",
    }
    ours = f'<meta name="description" content="{DESCRIPTION}">' + "".join(
        f'<meta {"name" if name.startswith("twitter") else "property"}="{name}" content="{content}">'
        for name, content in tags.items()
    )
    page = GRADIOS.sub("", page).replace("<style>", f"{ours}{head}<style>", 1)
    return re.sub("<body[^>]*>", rf"\g<0>{OPENING}", page, count=1)
