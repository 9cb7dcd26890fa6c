"""A server with the OpenAI protocol that translates word by word, and misbehaves when it is told to."""

import collections
import contextlib
import json
import math
import random
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set

KEY = "sk-secret-0123456789"


def translation(source: str) -> str:
    """What this server's model says for a sentence: each word backwards, in upper case."""
    return " ".join(word[::-1].upper() for word in source.split())


class Asked(NamedTuple):
    """A request as it came in. time: 0 from the server's start; attempt: of this body, from 1"""

    path: str
    headers: Dict[str, str]
    body: Dict[str, Any]
    source: str
    attempt: int
    time: float


# what a behaviour may do: give (status, headers, body), or "drop", "half" or "hang" the connection; None: answer well
Behaviour = Callable[[Asked], Any]


class Server:
    """Serves until its `with` block ends; `asked` holds all requests, `counts` how often each source came."""

    def __init__(self, behaviour: Behaviour = lambda asked: None, key: Optional[str] = None, logprobs: bool = True):
        self.behaviour, self.key, self.logprobs = behaviour, key, logprobs
        self.asked: List[Asked] = []
        self.counts: Dict[str, int] = collections.Counter()
        self.answered: Dict[str, int] = collections.Counter()
        self._attempts: Dict[str, int] = collections.Counter()
        self._lock = threading.Lock()
        self.at_once = self.most_at_once = 0
        self.connections: Set[Any] = set()
        self._start = time.monotonic()

    def __enter__(self) -> "Server":
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                with contextlib.suppress(ConnectionError):
                    server.serve(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            request_queue_size = 256
            daemon_threads = True

            def handle_error(self, *arguments: Any) -> None:
                pass

        self._http = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        body = json.loads(raw)
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self._attempts[raw] += 1
            text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
            source = source_in(text)
            self.counts[source] += 1
            now = time.monotonic() - self._start
            self.connections.add(handler.client_address)
            asked = Asked(handler.path, dict(handler.headers), body, source, self._attempts[raw], now)
            self.asked.append(asked)
        try:
            self._answer(handler, asked)
        finally:
            with self._lock:
                self.at_once -= 1

    def _answer(self, handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        if self.key is not None and handler.headers.get("Authorization") != f"Bearer {self.key}":
            given = handler.headers.get("Authorization", "").partition(" ")[2]
            return send(handler, 401, {}, {"error": {"message": f"Incorrect API key provided: {given}"}})
        misdeed = self.behaviour(asked)
        if misdeed == "drop":
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
        elif misdeed == "hang":
            time.sleep(30)
        elif misdeed == "half":
            content = json.dumps(self.reply(asked)).encode()
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content[: len(content) // 2])
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
        elif misdeed is not None:
            send(handler, *misdeed)
        else:
            with self._lock:
                self.answered[asked.source] += 1
            send(handler, 200, {}, self.reply(asked))

    def reply(self, asked: Asked, *texts: str, finish: str = "stop", **more: Any) -> Dict[str, Any]:
        """A well-formed reply with these answers, or with the model's."""
        number = asked.body.get("n", 1)
        if not texts:
            texts = (translation(asked.source),) * number
            if asked.body.get("temperature", 0) > 0:
                draws = random.Random(str(asked.body.get("seed")))
                # words of other lengths have other log-probabilities
                texts = tuple(f"{text} {'X' * draws.randint(0, 9)}{draws.random():.6f}" for text in texts)
        choices = []
        for index, text in enumerate(texts):
            choice: Dict[str, Any] = {"index": index, "finish_reason": finish, **more}
            if asked.path.endswith("/chat/completions"):
                choice["message"] = {"role": "assistant", "content": text}
            else:
                choice["text"] = f" {text}"
            if self.logprobs and asked.body.get("logprobs"):
                values = logprobs_of(text)
                tokens = [{"token": "t", "logprob": value, "top_logprobs": []} for value in values]
                is_chat = "message" in choice
                choice["logprobs"] = {"content": tokens} if is_chat else {"token_logprobs": values}
            choices.append(choice)
        tokens = [len(asked.source), sum(map(len, texts))]
        usage = dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), (*tokens, sum(tokens))))
        kind = "chat.completion" if asked.path.endswith("/chat/completions") else "text_completion"
        model = asked.body["model"]
        return {"id": "1", "object": kind, "created": 1, "model": model, "choices": choices, "usage": usage}


def logprobs_of(text: str) -> List[float]:
    """Of a text's tokens, which are its words here."""
    return [-1 / (1 + len(word)) for word in text.split()] or [-1.0]


def score_of(text: str) -> float:
    """By definition: the mean log-probability per token."""
    values = logprobs_of(text)
    return math.fsum(values) / len(values)


def source_in(text: str) -> str:
    """The sentence in a filled prompt: its last line, or the one before a line that ends in a colon."""
    lines = [line for line in text.split("\n") if line]
    return lines[-2].partition(": ")[2] if lines[-1].endswith(":") else lines[-1]


def send(handler: BaseHTTPRequestHandler, status: int, headers: Dict[str, str], body: Any) -> None:
    """body: bytes as they are, else as JSON"""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


@contextlib.contextmanager
def serving(*arguments: Any, **options: Any) -> Iterator[Server]:
    """A running Server."""
    with Server(*arguments, **options) as server:
        yield server
