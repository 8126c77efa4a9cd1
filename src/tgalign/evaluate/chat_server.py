"""A server of OpenAI's chat protocol (vLLM, SGLang, llama.cpp) as a host of evaluations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from tgalign.errors import UserError
from tgalign.evaluate.generate import Prompt, Said, before
from tgalign.evaluate.pictures import data_url

RETRIES = 3
"""After a refused connection, a timeout, 408, 409, 429 or 5xx: after 0.5, 1 and 2 seconds."""

_AGAIN = frozenset((408, 409, 429))


class ChatServer:
    """One model of a server, asked at temperature 0."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        concurrency: int = 32,
        max_new_tokens: int = 256,
        timeout: float = 120.0,
        key: str | None = None,
    ) -> None:
        """Reach the server and see that it serves the model.

        Args:
            url: Where the protocol starts, with or without ``/v1``.
            model: The name under which it serves the model.
            concurrency: Questions under way at a time.
            max_new_tokens: Length at which an answer is cut.
            timeout: Seconds to wait for one answer.
            key: Sent as a bearer token, or None.

        Raises:
            UserError: The server cannot be reached, or does not list the model.
        """
        import httpx

        root = url.rstrip("/")
        self.url = root if root.endswith("/v1") else f"{root}/v1"
        self.model, self.concurrency, self.max_new_tokens = model, concurrency, max_new_tokens
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=concurrency)
        self._client = httpx.Client(timeout=timeout, headers=headers, limits=limits)
        self._seen: dict[str, str] = {}
        try:
            listed = self._client.get(f"{self.url}/models").raise_for_status().json()["data"]
            names = [str(row["id"]) for row in listed]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as fault:
            raise UserError(
                f"no chat server at {self.url} ({fault}): expected one that answers GET /models, "
                "such as `vllm serve` or `llama-server`"
            ) from None
        if model not in names:
            raise UserError(
                f"the server at {self.url} does not serve {model!r}; it serves {', '.join(names)}"
            )

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Said]]:
        """Answer prompts, in the order in which answers arrive.

        What the server filters itself (``content_filter``, a ``refusal`` field) is said in
        ``detail``. A prompt that fails after all retries ends in ``server_error``.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            sent = {pool.submit(self._ask, prompt): i for i, prompt in enumerate(prompts)}
            try:
                for done in as_completed(sent):
                    yield sent[done], done.result()
            except BaseException:  # interrupted: what is not yet asked need not be
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def describe(self) -> dict[str, Any]:
        """What is known of what answers depend on; a server keeps its weights to itself."""
        return {
            "host": "server",
            "name": self.model,
            "url": self.url,
            "revision": self._seen.get("system_fingerprint"),
            "served_as": self._seen.get("model"),
            "chat_template_sha256": None,
            "chat_template": None,
            "decoding": {"temperature": 0, "max_tokens": self.max_new_tokens, "seed": 0},
        }

    def _ask(self, prompt: Prompt) -> Said:
        import httpx

        body = {
            "model": self.model,
            "messages": chat_messages(prompt),
            "temperature": 0,
            "seed": 0,
            "max_tokens": self.max_new_tokens,
        }
        for attempt in range(RETRIES + 1):
            if attempt:
                time.sleep(0.25 * 2**attempt)
            try:
                reply = self._client.post(f"{self.url}/chat/completions", json=body)
            except httpx.HTTPError as fault:
                detail = f"{type(fault).__name__}: {fault}"
                continue
            if reply.status_code in _AGAIN or reply.status_code >= 500:
                detail = f"status {reply.status_code}: {reply.text[:200]}"
                continue
            return self._read(reply)
        return Said(None, error="server_error", detail=detail)

    def _read(self, reply: Any) -> Said:
        if reply.status_code != 200:
            detail = f"status {reply.status_code}: {reply.text[:200]}"
            return Said(None, error="server_error", detail=detail)
        try:
            content = reply.json()
            choice = content["choices"][0]
            message, reason = choice["message"], choice.get("finish_reason")
            text, refusal = message.get("content"), message.get("refusal")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as fault:
            return Said(None, error="server_error", detail=f"no chat completion: {fault!r}")
        for name in ("model", "system_fingerprint"):
            if content.get(name):
                self._seen[name] = str(content[name])
        if refusal:
            return Said(str(refusal), detail="refusal_field")
        filtered = "content_filter" if reason == "content_filter" else None
        return Said(str(text or "").strip(), cut=reason == "length", detail=filtered)


def chat_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """A prompt in OpenAI's form, its picture inline as a data URL before the text."""
    talk: list[dict[str, Any]] = []
    for asked, answered in prompt.turns:
        talk.append({"role": "user", "content": asked})
        talk.append({"role": "assistant", "content": answered})
    content: list[dict[str, Any]] = [{"type": "text", "text": prompt.text}]
    if prompt.picture is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": data_url(prompt.picture)}})
    if prompt.caption is not None:
        content = before(prompt.caption, content)
    return [*talk, {"role": "user", "content": content}]
