"""The two engines that against_diffusers.py and on_gpu.py compare, each behind the same few methods."""

import io
import itertools
import json
import os
import resource
import subprocess
import tempfile
import time
import urllib.request
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.utils import logging
from PIL import Image

PROMPT = "a red house in the snow at night"
SAMPLER = "dpmpp_2m"


def rank(values, percent):
    """A percentile by nearest rank, as `darkroom bench` takes it."""
    ordered = sorted(values)
    return ordered[max(1, -(-len(ordered) * percent // 100)) - 1]


def peak_memory_mib(pid="self"):
    """The most memory a process has held, by Linux's word; None elsewhere."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


class Picture:
    """What is drawn: the model's own defaults, with the sampler named here for both."""

    def __init__(self, model):
        defaults = json.loads((model / "darkroom.json").read_text())["defaults"]
        self.width, self.height = defaults["width"], defaults["height"]
        self.steps, self.guidance_scale = defaults["steps"], defaults["guidance_scale"]
        self.prompt = PROMPT

    def __str__(self):
        return f"{self.width}x{self.height}, {self.steps} steps of `{SAMPLER}`, guidance {self.guidance_scale:g}"

    def flags(self):
        """The same for `darkroom`."""
        named = {"width": self.width, "height": self.height, "steps": self.steps, "guidance-scale": self.guidance_scale,
                 "sampler": SAMPLER, "prompt": self.prompt}
        return [text for name, value in named.items() for text in (f"--{name}", str(value))]


class Darkroom:
    """The release binary. Every measurement is a process of its own, which loads the model and warms up before it measures."""

    def __init__(self, binary, model, picture, device="cpu", dtype=None):
        self.binary, self.model, self.picture = binary.resolve(), model.resolve(), picture
        self.place = ["--device", device, *(["--dtype", dtype] if dtype else [])]
        # Settings of whoever calls must not change what is measured.
        self.environment = {name: value for name, value in os.environ.items()
                            if not name.startswith("DARKROOM_") and name != "RAYON_NUM_THREADS"}

    def run(self, *arguments, threads=None):
        environment = self.environment | ({"RAYON_NUM_THREADS": str(threads)} if threads else {})
        done = subprocess.run([self.binary, *map(str, arguments)], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"darkroom {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    def version(self):
        return self.run("--version").split()[-1]

    def time_ms(self, stage, size, threads, repeats, warmup):
        """What each repeat of one stage took."""
        counted = "--rows" if stage == "unet" else "--pictures"
        (measured,) = self.stages([stage], repeats, warmup, counted, size, threads=threads)
        return measured["ms"]

    def stages(self, stages, repeats, warmup, *counted, threads=None):
        """What one process says of several stages and sizes: `stage`, `rows` or `pictures`, and `ms` of each repeat."""
        report = self.run("bench", "engine", "--json", "--model", self.model, *self.place, "--stages", ",".join(stages), *counted,
                          "--repeats", repeats, "--warmup", warmup, *self.picture.flags(), threads=threads)
        return json.loads(report)["stages"]

    def processor_ms(self, stage, size, repeats):
        """Processor time of one run on one thread: what many more of them add to a process."""
        def spent(count):
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            self.time_ms(stage, size, 1, count, 0)
            return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        return (spent(1 + repeats) - spent(1)) / repeats * 1e3

    def pictures(self, seed, count):
        """`count` pictures of one request, whose seeds are `seed`, `seed + 1`, ..., as arrays of bytes."""
        with tempfile.TemporaryDirectory() as folder:
            self.run("generate", "--model", self.model, *self.place, "--seed", seed, "--num-images", count,
                     *self.picture.flags(), "--output", Path(folder) / "out.png")
            names = ["out.png"] if count == 1 else [f"out-{index}.png" for index in range(count)]
            return [np.asarray(Image.open(Path(folder) / name).convert("RGB")) for name in names]

    @contextmanager
    def serving(self, threads, **settings):
        """A `darkroom serve` with SQLite and files in a temporary folder; else with its default settings, or with these
        (`WORKERS__POLICY="grouped"` is `workers.policy`)."""
        environment = self.environment | {"DARKROOM_LOG__FILTER": "warn", "RAYON_NUM_THREADS": str(threads)}
        environment |= {f"DARKROOM_{name}": str(value) for name, value in settings.items()}
        with tempfile.TemporaryDirectory() as folder:
            command = [self.binary, "serve", "--listen", "127.0.0.1:0", "--data-dir", folder, "--model", self.model]
            process = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True)
            try:
                line = process.stdout.readline()
                if "http://" not in line:
                    raise SystemExit(f"the server did not say where it listens, but `{line.strip()}`")
                yield Server(self, process, line.split()[-1])
            finally:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()


class Server:
    """A running `darkroom serve`."""

    def __init__(self, darkroom, process, url):
        self.darkroom, self.process, self.url = darkroom, process, url

    def closed_loop(self, in_flight, jobs, seed):
        """What `darkroom bench` says of `jobs` jobs, `in_flight` at a time."""
        picture = self.darkroom.picture
        report = json.loads(self.darkroom.run(
            "bench", "--json", "--url", self.url, "--concurrency", in_flight, "--jobs", jobs, "--seed", seed,
            "--watch-every", 0, "--prompt", PROMPT, "--size", f"{picture.width}x{picture.height}", "--steps", picture.steps,
            "--sampler", SAMPLER, "--guidance-scale", picture.guidance_scale))
        if report["jobs"]["succeeded"] != jobs:
            raise SystemExit(f"of {jobs} jobs, not all succeeded: {report['jobs']}")
        return {"pictures_per_second": report["pictures_per_second"], "p50_ms": report["latency_ms"]["p50"],
                "p95_ms": report["latency_ms"]["p95"], "mean_batch": report["batches"]["mean_pictures"]}

    def picture(self, seed):
        """One picture over HTTP, as bytes."""
        drawn = self.darkroom.picture
        body = {"prompt": PROMPT, "width": drawn.width, "height": drawn.height, "steps": drawn.steps, "sampler": SAMPLER,
                "guidance_scale": drawn.guidance_scale, "seed": seed, "reuse": False}
        request = urllib.request.Request(f"{self.url}/v1/jobs", json.dumps(body).encode(),
                                         {"Content-Type": "application/json", "Accept": "image/png"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))

    def peak_memory_mib(self):
        return peak_memory_mib(self.process.pid)


class Diffusers:
    """The same folder by diffusers, in this process, as `from_pretrained` gives it."""

    def __init__(self, model, picture, device="cpu", dtype=torch.float32):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        transformers.logging.disable_progress_bar()
        self.picture, self.device, self.dtype = picture, device, dtype
        self.pipe = StableDiffusionPipeline.from_pretrained(model, dtype=dtype, safety_checker=None).to(device)
        self.pipe.scheduler = DPMSolverMultistepScheduler.from_config(self.pipe.scheduler.config)
        self.pipe.set_progress_bar_config(disable=True)

    def use_dtype(self, dtype):
        self.dtype = dtype
        self.pipe.to(dtype=dtype)

    def noise(self, seeds):
        """Latents to begin from, a picture for each seed: drawn in float32 on the CPU, as Darkroom's are, whatever computes."""
        factor, drawn = self.pipe.vae_scale_factor, self.picture
        shape = 1, self.pipe.unet.config.in_channels, drawn.height // factor, drawn.width // factor
        latents = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.cat(latents).to(self.device, self.dtype)

    def stage(self, stage, size):
        """A function that runs one stage; its inputs are made here."""
        pipe, drawn = self.pipe, self.picture
        text = lambda: pipe.encode_prompt(drawn.prompt, self.device, 1, False)[0]
        latents = self.noise(range(1, 1 + size))
        if stage == "text":
            return text
        if stage == "unet":
            pipe.scheduler.set_timesteps(drawn.steps)
            timesteps = list(itertools.islice(itertools.cycle(pipe.scheduler.timesteps.tolist()), size))
            timesteps = torch.tensor(timesteps, device=self.device)
            hidden_states = text().repeat(size, 1, 1)
            return lambda: pipe.unet(latents, timesteps, hidden_states, return_dict=False)[0]
        if stage == "vae":
            scale, finish = pipe.vae.config.scaling_factor, pipe.image_processor.postprocess
            return lambda: finish(pipe.vae.decode(latents / scale, return_dict=False)[0], output_type="pil")
        return lambda: self.draw(1, size)

    def use_threads(self, threads):
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def time_ms(self, stage, size, threads, repeats, warmup):
        """What each repeat of one stage took."""
        self.use_threads(threads)
        work = self.stage(stage, size)
        # A GPU works on after a call has returned.
        wait = torch.cuda.synchronize if self.device.startswith("cuda") else lambda: None
        for _ in range(warmup):
            work()
        took = []
        for _ in range(repeats):
            wait()
            began = time.perf_counter()
            work()
            wait()
            took.append((time.perf_counter() - began) * 1e3)
        return took

    def processor_ms(self, stage, size, repeats):
        """Processor time of one run on one thread."""
        self.time_ms(stage, size, 1, 1, 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        self.time_ms(stage, size, 1, repeats, 0)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_utime - before) / repeats * 1e3

    def draw(self, seed, count):
        """`count` pictures with seeds from `seed` on, evaluated together."""
        drawn = self.picture
        return self.pipe(drawn.prompt, width=drawn.width, height=drawn.height, num_inference_steps=drawn.steps,
                         guidance_scale=drawn.guidance_scale, num_images_per_prompt=count,
                         latents=self.noise(range(seed, seed + count))).images

    def pictures(self, seed, count):
        """The same as arrays of bytes."""
        return [np.asarray(image) for image in self.draw(seed, count)]

    def closed_loop(self, in_flight, jobs, seed):
        """One pipeline, requests in turn: `in_flight` clients, each of which sends its next request when its last is answered.

        The clients are a queue in this process, so this server answers over no network, stores nothing and forgets everything;
        like the other it encodes a PNG for every request.
        """
        waiting, sent, latencies = deque(), in_flight, []
        began = time.perf_counter()
        waiting.extend((number, began) for number in range(in_flight))
        while waiting:
            number, since = waiting.popleft()
            (image,) = self.draw(seed + number, 1)
            image.save(io.BytesIO(), "png")
            ended = time.perf_counter()
            latencies.append((ended - since) * 1e3)
            if sent < jobs:
                waiting.append((sent, ended))
                sent += 1
        return {"pictures_per_second": jobs / (time.perf_counter() - began), "p50_ms": rank(latencies, 50),
                "p95_ms": rank(latencies, 95), "mean_batch": 1.0}

    def peak_memory_mib(self):
        return peak_memory_mib()
