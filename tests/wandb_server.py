"""A W&B server as small as its client lets it be: it keeps the lines of every run's history where the client puts them.

It can also stop answering (mode "hangs"), break every connection ("drops") or refuse the key ("denies").
"""

import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

PROJECT = {"id": "p", "name": "reprune", "entity": {"id": "e", "name": "me"}}


@contextmanager
def serve():
    """-> .url, .mode, .histories: run id -> line number -> row"""
    state = SimpleNamespace(mode="answers", histories={})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    server.handle_error = lambda *_: None                         # a run that ends hangs up: no word of it
    server.daemon_threads, server.block_on_close = True, False
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    state.mode = "drops"
    server.shutdown()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        while self.state.mode == "hangs":
            time.sleep(0.05)
        if self.state.mode == "drops":
            self.close_connection = True
            return
        if self.state.mode == "denies":
            self._reply({"errors": [{"message": "invalid API key"}]}, 401)
        elif self.path.endswith("/file_stream"):
            lines = (json.loads(body).get("files") or {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            history = self.state.histories.setdefault(self.path.split("/")[-2], {})
            history.update((lines["offset"] + i, json.loads(line)) for i, line in enumerate(lines["content"]))
            self._reply({"exitcode": None, "limits": {}})
        elif self.path.endswith("/graphql"):
            self._reply({"data": self._answer(json.loads(body))})
        else:                                                     # a file of the run
            self._reply({})

    do_GET = do_PUT = do_POST

    def log_message(self, *args):
        pass

    def _reply(self, answer, status=200):
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, asked):
        name = re.search(r"(?:query|mutation)\s+(\w+)", asked.get("query", "") + " query none")[1]
        given = asked.get("variables") or {}
        run, history = given.get("name"), self.state.histories.get(given.get("name"))
        if name == "UpsertBucket":
            self.state.histories.setdefault(run, {})
            bucket = {"id": run, "name": run, "displayName": run, "description": "", "config": "{}", "sweepName": None,
                      "project": PROJECT, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": history is None}}
        if name == "RunResumeStatus":
            tail = json.dumps([json.dumps(history[max(history)])]) if history else "[]"
            bucket = {"id": run, "name": run, "displayName": run, "summaryMetrics": "{}", "config": "{}", "tags": [],
                      "logLineCount": 0, "eventsLineCount": 0, "historyLineCount": len(history or ()),
                      "historyTail": tail, "eventsTail": "[]", "wandbConfig": '{"t": 1}'}
            return {"model": {**PROJECT, "bucket": None if history is None else bucket}}
        if name == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.state.url}/files/{f}"} for f in given["files"]]
            return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if name == "Viewer":
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {}
