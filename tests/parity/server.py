"""`darkroom serve`, and pictures by it over HTTP."""

import base64
import io
import json
import os
import subprocess
import tempfile
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
from PIL import Image


class Refused(Exception):
    """A request that is not valid; its faults."""


class Server:
    def __init__(self, url):
        self.url = url

    def call(self, path, body=None, **headers):
        data = None if body is None else json.dumps(body).encode()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"} | headers)
        try:
            with urllib.request.urlopen(request, timeout=900) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(json.loads(error.read())["detail"]) from None

    def draw(self, model, cell):
        """Pictures in bytes, (N, H, W, 3)."""
        body = {"model": model, "sigma_schedule": cell["schedule"]}
        body |= {name: cell[name] for name in ("prompt", "negative_prompt", "width", "height", "steps", "guidance_scale",
                                               "sampler", "seed", "num_images", "eta")}
        if cell["start"] != "text":
            body |= {"init_image": encoded(cell["image"]), "strength": cell["strength"]}
        if cell["start"] == "mask":
            body["mask_image"] = encoded(cell["mask"])
        job = json.loads(self.call("/v1/jobs", body | {"reuse": False}, Prefer="wait=600"))
        if job["status"] != "succeeded":
            raise Refused(json.dumps(job.get("error") or job["status"]))
        pictures = [self.call(image["url"].removeprefix(self.url), Accept="image/png") for image in job["images"]]
        return np.stack([np.asarray(Image.open(io.BytesIO(each)).convert("RGB")) for each in pictures])


def encoded(image):
    data = io.BytesIO()
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


@contextmanager
def serving(binary, models, threads=1):
    # Settings of whoever calls must not change what is compared.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    environment |= {"DARKROOM_LOG__FILTER": "warn", "DARKROOM_WORKERS__PREVIEW_EVERY": "0", "RAYON_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        command = [binary.resolve(), "serve", "--listen", "127.0.0.1:0", "--data-dir", folder]
        command += [word for model in models for word in ("--model", model.resolve())]
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True)
        try:
            line = process.stdout.readline()
            if "http://" not in line:
                raise SystemExit(f"the server did not say where it listens, but `{line.strip()}`")
            yield Server(line.split()[-1])
        finally:
            process.terminate()
            process.wait(60)
