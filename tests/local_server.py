"""A small real server of OpenAI's chat protocol: it answers with a checkpoint of ours."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from tgalign.evaluate.generate import Prompt, answer_each

Reply = tuple[int, Any]
"""Status, and a body that is sent as JSON (bytes: as they are)."""


def completion(text: str | None, reason: str = "stop", **message: Any) -> Reply:
    """A chat completion."""
    choice = {
        "index": 0,
        "finish_reason": reason,
        "message": {"role": "assistant", "content": text, **message},
    }
    return 200, {
        "id": "1",
        "object": "chat.completion",
        "model": "served",
        "system_fingerprint": "fp",
        "choices": [choice],
    }


@contextmanager
def serving(reply: Callable[[dict[str, Any]], Reply], name: str = "m") -> Iterator[str]:
    """Serve on a free local port; gives the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": [{"id": name, "object": "model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*reply(body | {"_authorization": self.headers.get("Authorization")}))

        def _send(self, status: int, content: Any) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def model_reply(model: Any, processor: Any) -> Callable[[dict[str, Any]], Reply]:
    """Answers as a checkpoint gives them; one at a time, as the model is not thread-safe."""
    lock = threading.Lock()

    def reply(body: dict[str, Any]) -> Reply:
        *before, last = body["messages"]
        texts = [part["text"] for part in last["content"] if part["type"] == "text"]
        urls = [part["image_url"]["url"] for part in last["content"] if part["type"] == "image_url"]
        turns = tuple(
            (before[i]["content"], before[i + 1]["content"]) for i in range(0, len(before), 2)
        )
        prompt = Prompt(
            texts[-1],
            _picture(urls[0]) if urls else None,
            texts[0] if len(texts) > 1 else None,
            turns,
        )
        with lock:
            said = next(
                answer_each(
                    model, processor, [prompt], batch_size=1, max_new_tokens=body["max_tokens"]
                )
            )[1]
        return completion(said.text, "length" if said.cut else "stop")

    return reply


def _picture(url: str) -> Image.Image:
    head, encoded = url.split(",", 1)
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        return picture.convert("RGB")
