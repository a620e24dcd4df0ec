"""Trains pinhole's UNet and text encoder together on latents of captioned scenes.

    python unet.py --run runs/unet --vae runs/vae --minutes 60

Resumable: run the same command again. The latents of a pool of scenes are encoded once and kept beside the run.
"""

import argparse
import copy
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

import data
import model
import tokens
import vae as autoencoder
from checkpoint import load, save
from scenes import caption

DROPPED = 0.1  # share of captions left out, for classifier-free guidance


def trained_vae(run):
    """The autoencoder of a finished run; its latents' scale is measured by `latent_pool`."""
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
    parser.add_argument("--lr", type=float, default=8e-4)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    args.run.mkdir(parents=True, exist_ok=True)
    tokens.write(args.run / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(args.run / "tokenizer")
    batches = Batches(trained_vae(args.vae), args, device)
    nets = torch.nn.ModuleDict({"unet": model.unet(), "text": model.text_encoder()}).to(device, memory_format=torch.channels_last)
    ema = copy.deepcopy(nets).requires_grad_(False)
    schedule = model.noise_schedule()
    optimiser = torch.optim.AdamW(nets.parameters(), lr=args.lr, weight_decay=1e-3, betas=(0.9, 0.99))
    parts = {"nets": nets, "ema": ema, "optimiser": optimiser}
    state = load(args.run, parts, device) | {"scale": batches.scale}
    step = state["step"]
    print(f"{sum(p.numel() for p in nets.parameters())} parameters, latent scale {batches.scale:.4f}, from step {step}", flush=True)
    began = saved = time.time()
    mean, stopping = None, []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    while not stopping and time.time() - began < args.minutes * 60:
        latents, captions = batches.at(step)
        loss = loss_of(nets, schedule, tokenizer, latents.to(device), captions, step)
        for group in optimiser.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 300)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimiser.step()
        step += 1
        decay = min(0.9993, (1 + step) / (20 + step))
        torch._foreach_lerp_(list(ema.parameters()), list(nets.parameters()), 1 - decay)
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"step {step} loss {mean:.4f} {time.time() - began:.0f} s", flush=True)
        if time.time() - saved > 240:
            saved = time.time()
            save(args.run, parts, {"step": step, "scale": batches.scale})
    save(args.run, parts, {"step": step, "scale": batches.scale})
    print(f"stopped at step {step}", flush=True)


def loss_of(nets, schedule, tokenizer, latents, captions, step):
    """Mean squared error of v over random noise levels; noise and levels are the step's own."""
    generator = torch.Generator().manual_seed(step)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    levels = torch.randint(0, schedule.config.num_train_timesteps, (len(latents),), generator=generator).to(latents.device)
    ids = tokenizer(captions, padding="max_length", max_length=tokens.LENGTH, truncation=True, return_tensors="pt").input_ids
    noisy = schedule.add_noise(latents, noise, levels).contiguous(memory_format=torch.channels_last)
    with torch.autocast(latents.device.type, torch.bfloat16):
        words = nets["text"](ids.to(latents.device)).last_hidden_state
        out = nets["unet"](noisy, levels, words).sample
    return F.mse_loss(out.float(), schedule.get_velocity(latents, noise, levels))


if __name__ == "__main__":
    main()
