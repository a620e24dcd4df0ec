"""Trains the judge of pinhole's pictures: which object, colour, place and time of day a 128x128 picture shows.

    python classifier.py --run runs/classifier --vae runs/vae

It sees renders of `scenes.py` alone, never a picture of pinhole's UNet; a part of them has been through pinhole's
autoencoder, with a little noise on the latents, as every generated picture has. Resumable: run the same command again.
When its steps are done it is measured on fresh renders and written as float16 `classifier.safetensors`.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import data
from checkpoint import load, save
from objects import OBJECTS
from scenes import COLOURS, PLACES, TIMES, Scene, held_out
from unet import trained_vae

ATTRIBUTES = {"object": tuple(OBJECTS), "colour": tuple(COLOURS), "place": tuple(PLACES), "time": tuple(TIMES)}
FRESH_SEED = 2 * 10**9  # scenes that are measured on start here, far from those that are trained on
WEIGHTS = Path(__file__).parent / "classifier.safetensors"


def single_scene(seed):
    """The scene of a seed, with one object; held-out combinations are among them: the judge must know all alike."""
    rng = random.Random(seed)
    while len((scene := Scene.random(rng)).things) != 1:
        pass
    return scene


def attributes(scene):
    """(kind, colour, place, time) of the scene's first object."""
    first = scene.things[0]
    return first.kind, first.colour, scene.place, scene.time


def labels(scene):
    """Those as indices into `ATTRIBUTES`."""
    return [names.index(value) for names, value in zip(ATTRIBUTES.values(), attributes(scene))]


class Classifier(nn.Module):
    """A plain convolutional network; every head reads the same features, averaged and at their maxima."""

    def __init__(self, channels=(32, 64, 128)):
        super().__init__()
        layers, before = [nn.PixelUnshuffle(2)], 12
        for width in channels:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.ReLU(),
                       nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * before, len(names)) for name, names in ATTRIBUTES.items()})

    def forward(self, pictures):
        """pictures: (N, 3, 128, 128) in [-1, 1] -> {attribute: (N, names) logits}."""
        features = self.body(pictures)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        return {name: head(pooled) for name, head in self.heads.items()}


def trained(path=WEIGHTS):
    """The classifier of a weight file, float32, and the numbers it was measured at."""
    judge = Classifier()
    judge.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return judge.eval(), json.loads(path.with_suffix(".json").read_text())


@torch.no_grad()
def judged(judge, pictures):
    """pictures: (N, 3, 128, 128) in [-1, 1] -> N tuples of names, in the order of `ATTRIBUTES`."""
    rows = []
    for part in pictures.split(64):
        best = {name: logits.argmax(1).tolist() for name, logits in judge(part).items()}
        rows += list(zip(*([names[k] for k in best[name]] for name, names in ATTRIBUTES.items())))
    return rows


# The pictures it learns from --------------------------------------------------------------------------------------------

@torch.no_grad()
def through(vae, pictures, generator=None):
    """Encoded and decoded; with a generator, noise of up to a quarter of the latents' spread lies on them."""
    device = next(vae.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):
        latents = vae.encode(pictures.to(device, memory_format=torch.channels_last)).latent_dist.mean
        if generator is not None:
            strength = 0.25 * torch.rand(len(latents), 1, 1, 1, generator=generator)
            noise = torch.randn(latents.shape, generator=generator) * strength
            latents = latents + noise.to(device) * latents.std()
        return vae.decode(latents).sample.float().clamp(-1, 1).cpu()


def pool(vae, count, folder):
    """(count, 3, 128, 128) uint8: renders of seeds 0.., every third of them through the autoencoder; made once."""
    path = folder / f"renders-{count}.npy"
    if not path.exists():
        out = np.lib.format.open_memmap(path.with_suffix(".tmp"), mode="w+", dtype=np.uint8, shape=(count, 3, *data.NATIVE))
        for first in range(0, count, 48):
            pictures = torch.stack([data.pixels(single_scene(seed), *data.NATIVE) for seed in range(first, min(first + 48, count))])
            pictures[::3] = through(vae, pictures[::3], torch.Generator().manual_seed(first))
            out[first:first + len(pictures)] = ((pictures + 1) * 127.5).round().byte().numpy()
        out.flush()
        path.with_suffix(".tmp").rename(path)
    return np.load(path, mmap_mode="r")


def augmented(pictures, generator):
    """(N, 3, 128, 128) in [-1, 1]: mirrored, moved, blurred, a little brighter or darker, noisy; each by chance."""
    n = len(pictures)
    rand = lambda *shape: torch.rand(*shape, generator=generator)
    pictures = torch.where(rand(n, 1, 1, 1) < 0.5, pictures.flip(3), pictures)
    dx, dy = (int(v) for v in torch.randint(-6, 7, (2,), generator=generator))
    padded = F.pad(pictures, (6, 6, 6, 6), mode="replicate")
    pictures = padded[:, :, 6 + dy:134 + dy, 6 + dx:134 + dx]
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pictures = torch.lerp(pictures, soft, (rand(n, 1, 1, 1) * 1.4 - 0.4).clamp(0))
    pictures = pictures * (0.94 + 0.12 * rand(n, 1, 1, 1)) + 0.08 * (rand(n, 1, 1, 1) - 0.5)
    return pictures + 0.06 * rand(n, 1, 1, 1) * torch.randn(pictures.shape, generator=generator)


# Measuring and training ---------------------------------------------------------------------------------------------------

def accuracy(judge, vae=None, count=1200, wanted=lambda scene: True):
    """Share judged rightly by attribute and all four at once, over fresh renders (through `vae`, if given)."""
    scenes = filter(wanted, map(single_scene, range(FRESH_SEED, FRESH_SEED + 100 * count)))
    hits, total = [], 0
    while total < count:
        some = [next(scenes) for _ in range(min(48, count - total))]
        pictures = torch.stack([data.pixels(scene, *data.NATIVE) for scene in some])
        rows = judged(judge, pictures if vae is None else through(vae, pictures))
        hits += [[a == b for a, b in zip(row, attributes(scene))] for row, scene in zip(rows, some)]
        total += len(some)
    hits = torch.tensor(hits, dtype=torch.float64)
    return {**{name: round(v, 4) for name, v in zip(ATTRIBUTES, hits.mean(0).tolist())},
            "all four": round(hits.prod(1).mean().item(), 4)}


def loss_of(judge, pictures, targets):
    """The heads' cross-entropies, summed."""
    out = judge(pictures)
    return sum(F.cross_entropy(out[name], targets[:, k]) for k, name in enumerate(ATTRIBUTES))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    here = Path(__file__).parent / "runs"
    parser.add_argument("--run", type=Path, default=here / "classifier")
    parser.add_argument("--vae", type=Path, default=here / "vae")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--pool", type=int, default=14_400, help="renders that are kept")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    args.run.mkdir(parents=True, exist_ok=True)
    vae = trained_vae(args.vae).to(device, memory_format=torch.channels_last)
    began = time.time()
    renders = pool(vae, args.pool, args.run)
    truth = torch.tensor([labels(single_scene(seed)) for seed in range(args.pool)])
    judge = Classifier().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(judge.parameters(), lr=args.lr, weight_decay=1e-2)
    parts = {"judge": judge, "optimiser": optimiser}
    state = load(args.run, parts, device)
    print(f"{sum(p.numel() for p in judge.parameters())} parameters, {args.pool} renders, {time.time() - began:.0f} s, "
          f"from step {state['step']}", flush=True)
    for step in range(state["step"], args.steps):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(0, args.pool, (args.batch,), generator=generator).sort().values
        pictures = augmented(torch.from_numpy(renders[rows.numpy()]).float() / 127.5 - 1, generator)
        for group in optimiser.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        loss = loss_of(judge, pictures.to(device, memory_format=torch.channels_last), truth[rows].to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} loss {loss.item():.4f} {time.time() - began:.0f} s", flush=True)
            save(args.run, parts, {"step": step + 1})
    finish(judge, vae.cpu(), args)


def finish(judge, vae, args):
    """Writes the weights, and beside them what the written weights measure."""
    save_file({name: value.cpu().half().contiguous() for name, value in judge.state_dict().items()}, args.out)
    judge = Classifier()
    judge.load_state_dict({name: value.float() for name, value in load_file(args.out).items()})
    judge.eval()
    unseen = lambda scene: held_out(*attributes(scene))
    measured = {"steps": args.steps, "fresh renders": accuracy(judge), "through the autoencoder": accuracy(judge, vae),
                "held-out combinations, through the autoencoder": accuracy(judge, vae, 400, unseen)}
    args.out.with_suffix(".json").write_text(json.dumps(measured, indent=2) + "\n")
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
