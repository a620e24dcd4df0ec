"""Pictures by Darkroom's own engine: a server that runs already, or one started here for as long as it is needed."""

import io
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
IN_FLIGHT = 32  # requests at once: more than a batch takes, so that the next one is always full
ANSWER_S = 900


def arguments(parser):
    """The flags that say where the pictures come from."""
    parser.add_argument("--binary", type=Path, default=HERE.parent / "target" / "release" / "darkroom",
                        help="the darkroom that is started here")
    parser.add_argument("--url", help="a darkroom that serves the model already, instead")
    parser.add_argument("--model", type=Path, default=HERE.parent / "models" / "pinhole", help="the model's folder")


@contextmanager
def serving(args):
    """The address of a server of the model; one that was started here ends with the block."""
    if args.url:
        yield args.url.rstrip("/")
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % probe.getsockname()[1]
    # Settings of whoever calls must not change what is measured.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    clean["DARKROOM_LOG__FILTER"] = "warn"
    with tempfile.TemporaryDirectory() as folder:
        command = [args.binary.resolve(), "serve", "--listen", address, "--data-dir", folder, "--model", args.model.resolve()]
        server = subprocess.Popen(command, env=clean, cwd=folder, stdout=subprocess.DEVNULL)
        try:
            wait_until_ready(f"http://{address}", server)
            yield f"http://{address}"
        finally:
            server.terminate()
            server.wait(60)


def wait_until_ready(url, server, limit_s=120):
    """Returns once the server says it is ready; its early end or `limit_s` is an error."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit(f"the server ended at once with exit code {server.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"the server was not ready after {limit_s} s")


def defaults(url):
    """What the served model draws with when a request does not say: width, height, steps, sampler and so on."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
        return next(model for model in json.load(answer)["models"] if model["default"])["defaults"]


def draw(url, requests):
    """RGB pictures of the requests (dicts in the API's words), in their order; drawn together, so that they share batches."""
    def one(request):
        message = urllib.request.Request(f"{url}/v1/jobs", json.dumps(request | {"reuse": False}).encode(),
                                         {"Content-Type": "application/json", "Accept": "image/png"})
        try:
            with urllib.request.urlopen(message, timeout=ANSWER_S) as answer:
                return Image.open(io.BytesIO(answer.read())).convert("RGB")
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{request}: {error.code} {error.read().decode(errors='replace')}") from error

    with ThreadPoolExecutor(IN_FLIGHT) as hands:
        return list(hands.map(one, requests))
