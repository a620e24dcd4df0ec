"""Trains pinhole's UNet and text encoder together on latents of captioned scenes.

    python unet.py --run runs/unet --vae runs/vae --minutes 60

Resumable: run the same command again. The latents of a pool of scenes are encoded once and kept beside the run. Where the
run is gone, `--begin ../models/pinhole` goes on from exported weights, with fresh moments of the optimiser.
"""

import argparse
import copy
import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

import data
import model
import tokens
import vae as autoencoder
from checkpoint import load, save
from muon import Muon
from scenes import caption

DROPPED = 0.1  # share of captions left out, for classifier-free guidance


def trained_vae(run):
    """The autoencoder of a finished run or of an exported folder; its latents' scale is measured by `Batches`."""
    if (run / "config.json").exists():
        return AutoencoderKL.from_pretrained(run, torch_dtype=torch.float32).eval().requires_grad_(False)
    vae = AutoencoderKL(**autoencoder.CONFIG)
    blob = torch.load(run / "state.pt", map_location="cpu", weights_only=True)
    vae.load_state_dict(blob["model"])
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def latent_pool(vae, size, count, folder, device):
    """(count, 4, h, w) float16 posterior means of scenes `0..count` at `size`, unscaled; encoded once."""
    path = folder / f"latents-{size[0]}x{size[1]}-{count}.npy"
    if not path.exists():
        shape = (count, 4, size[1] // 4, size[0] // 4)
        pool = np.lib.format.open_memmap(path.with_suffix(".tmp"), mode="w+", dtype=np.float16, shape=shape)
        vae = vae.to(device, memory_format=torch.channels_last)
        for first in range(0, count, 32):
            seeds = range(first, min(first + 32, count))
            pictures = torch.stack([data.pixels(data.scene_for(seed)[0], *size) for seed in seeds])
            with torch.autocast(device, torch.bfloat16):
                mean = vae.encode(pictures.to(device, memory_format=torch.channels_last)).latent_dist.mean
            pool[first:first + len(seeds)] = mean.float().cpu().numpy()
        pool.flush()
        path.with_suffix(".tmp").rename(path)
    return np.load(path, mmap_mode="r")


class Batches:
    """Step number to (latents, captions): the same on every run."""

    def __init__(self, vae, args, device):
        args.run.mkdir(parents=True, exist_ok=True)
        self.batch = args.batch
        self.native = latent_pool(vae, data.NATIVE, args.pool, args.run, device)
        self.others = [latent_pool(vae, size, args.pool // 40, args.run, device) for size in data.OTHER_SIZES]
        self.scale = 1 / float(self.native[:2048].astype(np.float32).std())

    def at(self, step):
        rng = random.Random(step)
        pool = self.native if rng.random() < 0.88 else rng.choice(self.others)
        seeds = sorted(rng.randrange(len(pool)) for _ in range(self.batch))
        latents = torch.from_numpy(np.stack([pool[seed] for seed in seeds]).astype(np.float32)) * self.scale
        # The scene is its seed's; its words are drawn anew each time it comes up.
        captions = [caption(data.scene_for(seed)[0], rng) if rng.random() > DROPPED else "" for seed in seeds]
        return latents, captions


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    here = Path(__file__).parent / "runs"
    parser.add_argument("--run", type=Path, default=here / "unet")
    parser.add_argument("--vae", type=Path, default=here / "vae")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pool", type=int, default=24_000, help="scenes whose latents are kept")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=20_000, help="the learning rate falls to 5 %% over the last third of them")
    parser.add_argument("--begin", type=Path, help="exported folder whose weights a run without a state starts from")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    args.run.mkdir(parents=True, exist_ok=True)
    tokens.write(args.run / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(args.run / "tokenizer")
    batches = Batches(trained_vae(args.vae), args, device)
    nets = networks(args.begin).to(device, memory_format=torch.channels_last)
    ema = copy.deepcopy(nets).requires_grad_(False)
    schedule = model.noise_schedule()
    optimiser = Muon(nets, lr=args.lr)
    parts = {"nets": nets, "ema": ema, "optimiser": optimiser}
    state = load(args.run, parts, device)
    if state["step"] == 0 and args.begin:
        state["step"] = json.loads((args.begin / "darkroom.json").read_text())["training_steps"]
        state["first"] = state["step"]
    step, first = state["step"], state.get("first", 0)
    print(f"{sum(p.numel() for p in nets.parameters())} parameters, latent scale {batches.scale:.4f}, from step {step}", flush=True)
    began = saved = time.time()
    mean, stopping = None, []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    while not stopping and step < args.steps and time.time() - began < args.minutes * 60:
        latents, captions = batches.at(step)
        loss = loss_of(nets, schedule, tokenizer, latents.to(device), captions, step)
        for group in optimiser.param_groups:
            group["lr"] = args.lr * learning_rate(step, first, args.steps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimiser.step()
        step += 1
        decay = min(0.999, (1 + step) / (20 + step))
        torch._foreach_lerp_(list(ema.parameters()), list(nets.parameters()), 1 - decay)
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"step {step} loss {mean:.4f} {time.time() - began:.0f} s", flush=True)
        if time.time() - saved > 240:
            saved = time.time()
            save(args.run, parts, {"step": step, "first": first, "scale": batches.scale})
    save(args.run, parts, {"step": step, "first": first, "scale": batches.scale})
    print(f"stopped at step {step}", flush=True)


def networks(begin):
    """UNet and text encoder: fresh, or the exported ones of `begin`."""
    if begin:
        unet = UNet2DConditionModel.from_pretrained(begin / "unet", torch_dtype=torch.float32)
        text = CLIPTextModel.from_pretrained(begin / "text_encoder", torch_dtype=torch.float32)
    else:
        unet, text = model.unet(), model.text_encoder()
    # Plain products: backward through PyTorch's fused attention is several times slower on a CPU at these sizes.
    unet.set_attn_processor(AttnProcessor())
    return torch.nn.ModuleDict({"unet": unet.train(), "text": text.train()})


def learning_rate(step, first, steps):
    """Share of the full rate: 200 steps of warming from `first`, down to 5 % over the last third of `steps`."""
    warm = min(1, (step - first + 1) / 200)
    return warm * max(0.05, min(1, (steps - step) / (steps / 3)))


def loss_of(nets, schedule, tokenizer, latents, captions, step):
    """Mean squared error of v over random noise levels; noise and levels are the step's own."""
    generator = torch.Generator().manual_seed(step)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    # More of the noisy levels: there it is decided which object a picture shows, and that is what is hardest to learn.
    share = torch.rand(len(latents), generator=generator) ** 0.6
    levels = (share * schedule.config.num_train_timesteps).long().to(latents.device)
    ids = tokenizer(captions, padding="max_length", max_length=tokens.LENGTH, truncation=True, return_tensors="pt").input_ids
    noisy = schedule.add_noise(latents, noise, levels).contiguous(memory_format=torch.channels_last)
    with torch.autocast(latents.device.type, torch.bfloat16):
        words = nets["text"](ids.to(latents.device)).last_hidden_state
        out = nets["unet"](noisy, levels, words).sample
    return F.mse_loss(out.float(), schedule.get_velocity(latents, noise, levels))


if __name__ == "__main__":
    main()
