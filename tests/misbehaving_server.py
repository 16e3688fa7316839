"""An embeddings server that computes with plain transformers and misbehaves on request.

It shares no code with the package: a fault that a test finds, it finds in the answers.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import socket
import ssl
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"

# What goes wrong once and can be tried again, and what the answer itself has wrong.
PASSING = ("429", "429-date", "500", "503-html", "reset", "cut-body", "slow")
LASTING = (
    "short",
    "long",
    "nan",
    "null",
    "zero",
    "narrow",
    "ragged",
    "repeated-index",
    "html-200",
    "empty-object",
    "no-json",
)
# What `check-endpoint` has to find.
WRONG_VECTORS = (
    "end-missing",
    "end-doubled",
    "mean-pooling",
    "first-pooling",
    "not-normalised",
    "prompt-twice",
    "truncated",
    "newlines",
    "stripped",
    "batch-differs",
    "dimensions-refused",
    "dimensions-ignored",
    "cut-only",
)
HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>"


class Model:
    """Plain transformers over a folder, one text at a time."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.lock = threading.Lock()

    def states(self, ids: list[int]) -> np.ndarray:
        with self.lock, torch.inference_mode():
            return self.model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()

    def vector(self, text: str, faults: frozenset[str], limit: int) -> tuple[np.ndarray, int]:
        """What the server sends for a text, and how many tokens it read."""
        if "prompt-twice" in faults:
            text = PROMPT + text
        if "newlines" in faults:
            text = text.replace("\n", " ")
        if "stripped" in faults:
            text = text.strip()
        ids = self.tokenizer(text)["input_ids"]
        end = ids[-1]
        if "truncated" in faults and len(ids) > limit:
            ids = [*ids[: limit - 1], end]
        if "end-missing" in faults:
            ids = ids[:-1]
        if "end-doubled" in faults:
            ids = [*ids, end]
        states = self.states(ids)
        vector = states[-1]
        if "mean-pooling" in faults:
            vector = states.mean(axis=0)
        if "first-pooling" in faults:
            vector = states[0]
        return vector if "not-normalised" in faults else vector / np.linalg.norm(vector), len(ids)


class Server(ThreadingHTTPServer):
    """Serves a model; what it does wrong is in its attributes, which a test may change between requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, model: Model | None, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scheme = "http" if certificate is None else "https"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # The handshake belongs to a connection's own thread.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.model = model
        self.faults: frozenset[str] = frozenset()
        self.key: str | None = None
        # Where the embeddings are; None for any path that ends so.
        self.path: str | None = None
        self.redirects_to: str | None = None
        self.serves: str | None = None
        # Errors that it sends with status 200, one a request.
        self.within: list[dict] = []
        self.limit = 512
        self.most_texts: int | None = None
        self.most_tokens: int | None = None
        # Texts that it refuses, with the status.
        self.refuses: dict[str, int] = {}
        self.refuses_all: int | None = None
        # Texts whose vector it spoils.
        self.spoils: dict[str, str] = {}
        # Faults of the transport, one a request, until they are used up.
        self.script: list[str] = []
        self.retry_after = "0.01"
        self.release = threading.Event()
        self.served = threading.Lock()
        self.requests: list[dict] = []
        self.sent_headers: list[dict] = []
        self.done: Counter[str] = Counter()
        self.now = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address) -> None:
        # A client that gave up, which is what the slow answers are for.
        pass


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.served:
            server.requests.append(body)
            server.sent_headers.append(dict(self.headers))
            fault = server.script.pop(0) if server.script else ""
            server.done[fault] += 1
            server.now += 1
            server.most_at_once = max(server.most_at_once, server.now)
        try:
            self.answer(body, fault)
        finally:
            with server.served:
                server.now -= 1

    def answer(self, body: dict, fault: str) -> None:
        server = self.server
        if server.redirects_to is not None:
            return self.send_bytes(301, b"", "text/html", {"Location": server.redirects_to})
        if not self.path.endswith("/embeddings") or server.path not in (None, self.path):
            return self.send(404, {"error": {"message": "no such path"}})
        if server.key is not None and self.headers.get("Authorization") != f"Bearer {server.key}":
            # Some services repeat what they were sent.
            return self.send(401, {"error": {"message": f"bad key in {self.headers.get('Authorization')}"}})
        if fault in ("429", "429-date"):
            wait = "Wed, 21 Oct 2015 07:28:00 GMT" if fault == "429-date" else server.retry_after
            return self.send(429, {"error": {"message": "slow down"}}, {"Retry-After": wait})
        if fault == "500":
            return self.send(500, {"error": {"message": "out of memory"}}, {"Retry-After": server.retry_after})
        if fault == "503-html":
            return self.send_bytes(503, HTML, "text/html", {"Retry-After": server.retry_after})
        if fault == "html-200":
            return self.send_bytes(200, HTML, "text/html")
        if fault == "no-json":
            return self.send_bytes(200, b'{"data": [', "application/json")
        if fault == "empty-object":
            return self.send(200, {})
        if fault == "reset":
            # RST instead of FIN: the client sees a connection reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            self.connection.close()
            return None
        if server.serves not in (None, body["model"]):
            return self.send(404, {"object": "error", "message": f"The model `{body['model']}` does not exist."})
        if server.within:
            return self.send(200, server.within.pop(0))
        if "encoding_format" in body and "format-refused" in server.faults:
            return self.send(422, {"detail": "Extra inputs are not permitted"})
        texts = body["input"]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return self.send(400, {"error": {"message": "this server takes texts only"}})
        if server.most_texts is not None and len(texts) > server.most_texts:
            return self.send(413, {"error": {"message": f"batch size {len(texts)} > {server.most_texts}"}})
        if server.refuses_all is not None:
            words = {"error": {"message": "nothing works here"}}
            return self.send(server.refuses_all, words, {"Retry-After": server.retry_after})
        for text, status in server.refuses.items():
            if text in texts:
                words = {"error": {"message": f"this server does not read {text!r:.20}"}}
                return self.send(status, words, {"Retry-After": server.retry_after})
        dimensions = body.get("dimensions")
        if dimensions is not None and "dimensions-refused" in server.faults:
            return self.send(400, {"error": {"message": "the model does not support matryoshka representation"}})
        found = [server.model.vector(text, server.faults, server.limit) for text in texts]
        if server.most_tokens is not None and max(count for _, count in found) > server.most_tokens:
            return self.send(400, {"error": {"message": f"this model's context is {server.most_tokens} tokens"}})
        vectors = [vector for vector, _ in found]
        if "batch-differs" in server.faults and len(vectors) > 1:
            # As where padding is attended to: each vector has something of its neighbour's.
            vectors = [vector + 0.5 * other for vector, other in zip(vectors, vectors[1:] + vectors[:1], strict=True)]
            vectors = [vector / np.linalg.norm(vector) for vector in vectors]
        if dimensions is not None and "dimensions-ignored" not in server.faults:
            vectors = [vector[:dimensions] for vector in vectors]
            if "cut-only" not in server.faults:
                vectors = [vector / np.linalg.norm(vector) for vector in vectors]
        rows = [vector.tolist() for vector in vectors]
        data = self.spoiled(fault, rows, texts)
        answer = {"object": "list", "data": data, "model": body["model"]}
        if "no-usage" not in server.faults:
            answer["usage"] = {"prompt_tokens": sum(count for _, count in found)}
        return self.send(200, answer, cut=fault == "cut-body", slow=fault == "slow")

    def spoil(self, fault: str, rows: list, place: int) -> None:
        """Break one vector."""
        if fault == "nan":
            rows[place][3] = float("nan")
        if fault == "null":
            rows[place][3] = None
        if fault == "no-vector":
            rows[place] = None
        if fault == "words":
            rows[place] = "no numbers"
        if fault == "zero":
            rows[place] = [0.0] * len(rows[place])

    def spoiled(self, fault: str, rows: list[list[float]], texts: list[str]) -> list[dict]:
        """Break the last vector, or the list of them."""
        self.spoil(fault, rows, -1)
        for text, spoilt in self.server.spoils.items():
            if text in texts:
                self.spoil(spoilt, rows, texts.index(text))
        if fault == "narrow":
            rows = [row[:-1] for row in rows]
        if fault == "ragged":
            rows[-1] = rows[-1][:-1]
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        if fault == "short":
            data.pop()
        if fault == "long":
            data.append({**data[-1], "index": len(data)})
        if fault == "repeated-index":
            data[-1]["index"] = 0
        for item in data:
            if "no-index" in self.server.faults:
                del item["index"]
            if "zero-index" in self.server.faults:
                item["index"] = 0
            if "one-based" in self.server.faults:
                item["index"] += 1
            if "strings" in self.server.faults:
                item["embedding"] = [str(number) for number in item["embedding"]]
            if "base64" in self.server.faults:
                item["embedding"] = base64.b64encode(np.array(item["embedding"], dtype="<f4").tobytes()).decode()
        if "half-index" in self.server.faults:
            del data[-1]["index"]
        if "empty-data" in self.server.faults:
            data = []
        if "shuffled" in self.server.faults:
            random.Random(len(data)).shuffle(data)
        return data

    def send(self, status: int, content: dict, headers: dict | None = None, **how: bool) -> None:
        self.send_bytes(status, json.dumps(content).encode(), "application/json", headers, **how)

    def send_bytes(
        self, status: int, content: bytes, kind: str, headers: dict | None = None, cut: bool = False, slow: bool = False
    ) -> None:
        headers = headers or {}
        if "gzip" in self.server.faults:
            content = gzip.compress(content)
            headers["Content-Encoding"] = "gzip"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if cut or slow:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
            if slow:
                # Half of the answer, and the rest when the test is over.
                self.server.release.wait()
            return
        self.wfile.write(content)


@contextmanager
def serving(model: Model | None, certificate: Path | None = None):
    """Run a server of its own in a thread; with a file of a key and its certificate, over TLS."""
    server = Server(model, certificate)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
