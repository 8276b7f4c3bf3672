#!/usr/bin/env bash
# jupyter_server 2.21.1 with tornado 6.6.1: a message of more than 10 MiB to a kernel, such as a photograph in ipywidgets'
# FileUpload, is dropped: the connection ends, and neither the kernel, the page nor the server's log says a word. The
# remedy is `websocket_max_message_size` in `ServerApp.tornado_settings`, but given as KEY=VALUE on the command line, as
# traitlets takes dictionaries, it makes things worse: no message arrives any more, not even a small one.
#
# Why a good guess is wrong: the server starts without a complaint. It has limits named `max_body_size` and
# `max_buffer_size` of 512 MB, so one expects that 11 MB fit. And KEY=VALUE is what traitlets prints in `--help-all` for
# such an option. But its value stays a text, and tornado compares it with a number only when a message comes.
#
# Seen: of a small message and one of 11 MB there arrive: the small one by default, both with a dictionary in braces, and
# none with KEY=VALUE, after "TypeError: '>' not supported between instances of 'int' and 'str'" in the log.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jupyter_server==2.21.1 tornado==6.6.1 ipykernel==7.4.0
cat > "$folder/send.py" <<'PYTHON'
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid

from tornado.websocket import WebSocketClosedError, websocket_connect

folder = sys.argv[1]
environment = os.environ | {f"JUPYTER_{name}_DIR": f"{folder}/{name}" for name in ("CONFIG", "DATA", "RUNTIME")}
LETTERS = [10, 11_000_000]


def request(code):
    header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "", "session": "s", "version": "5.3"}
    content = {"code": code, "silent": False}
    return json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"})


async def arrived(address):
    """List the numbers of letters that the kernel has counted, until a message is lost."""
    connection, seen = await websocket_connect(address, max_message_size=2**30), []
    for letters in LETTERS:
        try:
            await connection.write_message(request(f"print(len('{'a' * letters}'))"))
            while text := await asyncio.wait_for(connection.read_message(), 60):
                message = json.loads(text)
                if message["msg_type"] == "stream":
                    seen.append(int(message["content"]["text"]))
                    break
        except (WebSocketClosedError, OSError):
            pass
    return seen


def run(*options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", f"--port={port}", *options]
    command += ["--IdentityProvider.token=t", f"--ServerApp.root_dir={folder}"]
    with open(f"{folder}/log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token=t").close()
                break
            except OSError:
                time.sleep(0.5)
        start = urllib.request.Request(f"http://127.0.0.1:{port}/api/kernels?token=t", data=b"{}")
        with urllib.request.urlopen(start) as answer:
            kernel = json.load(answer)["id"]
        seen = asyncio.run(arrived(f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels?token=t"))
    finally:
        server.terminate()
        server.wait(30)
    with open(f"{folder}/log") as log:
        return seen, [word for word in ("TypeError", "too big") if word in log.read()]


setting = "--ServerApp.tornado_settings"
results = {}
for name, options in {
    "default": [],
    "in braces": [setting + "={'websocket_max_message_size': 536870912}"],
    "KEY=VALUE": [setting + "=websocket_max_message_size=536870912"],
}.items():
    results[name] = run(*options)
    print(f"{name}: arrived {results[name][0]}, in the log {results[name][1]}")
expected = {"default": (LETTERS[:1], []), "in braces": (LETTERS, []), "KEY=VALUE": ([], ["TypeError"])}
if results != expected:
    sys.exit(f"expected {expected}: the behaviour changed")
PYTHON
"$folder/venv/bin/python" "$folder/send.py" "$folder"
