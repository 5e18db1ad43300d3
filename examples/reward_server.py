"""A reward service to copy, for the reward `remote`. Nothing is needed but Python.

python examples/reward_server.py 8000

rewards: [{name: remote, args: {url: "http://127.0.0.1:8000/score"}}]
"""

import base64
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def score(prompt, completion, solution=None, **_):
    """Reward of one row; None where it does not apply. Every column of the dataset comes by its name."""
    if isinstance(completion, dict):  # An image.
        return len(base64.b64decode(completion["png"])) / 1000  # Kilobytes of its PNG file.
    return None if solution is None else float(str(solution) in completion)


class Service(BaseHTTPRequestHandler):
    def do_POST(self):
        columns = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        columns["prompt"], columns["completion"] = columns.pop("prompts"), columns.pop("completions")
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        answer = json.dumps({"rewards": [score(**row) for row in rows]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8000), Service)
    print(f"rewards at http://127.0.0.1:{server.server_port}/score", flush=True)
    server.serve_forever()
