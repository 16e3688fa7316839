"""An index made on this machine, searched with query vectors from a server.

The server here is a stand-in of a few lines around `tiny`; put the URL of vLLM, Text Embeddings Inference or a service
in its place.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from qwen3_embed_integrations import Qwen3Encoder, RemoteEncoder
from qwen3_embed_integrations.endpoint_check import check_endpoint

local = Qwen3Encoder("tiny")


class StandIn(BaseHTTPRequestHandler):
    """Answers `POST /v1/embeddings`."""

    def do_POST(self) -> None:
        """Embed what was sent, as it is."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        vectors = local.encode_documents(request["input"]).tolist()
        data = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": data}).encode())

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1"

remote = RemoteEncoder(url, model="tiny", dimensions=128)
here = Qwen3Encoder("tiny", dimensions=128)
print(f"one vector space: {remote.fingerprint == here.fingerprint}")

documents = ["Copy a directory tree.", "Compute a square root.", "Parse the command line."]
scores = remote.encode_queries(["how do I copy a folder?"]) @ here.encode_documents(documents).T
print(documents[scores.argmax()])

report = check_endpoint(url, model="tiny", max_tokens=512)
print(f"faults: {report.faults}, lowest cosine to the model's vectors {min(report.cosines):.4f}")
server.shutdown()
