"""What is asked of both sides: requests that take turns in size, steps, prompt, guidance and seed, so that few are alike."""

import itertools

import numpy as np
from PIL import Image

from checkpoints import make_checkpoints
from reference_samplers import SAMPLERS, SCHEDULES, make_samplers

# By the autoencoder's factor: multiples of 8 that are none of 64.
SIZES = {2: [(40, 24), (24, 56), (56, 40)], 4: [(72, 40), (40, 88), (56, 56)], 8: [(72, 104), (88, 72), (120, 72)]}
# The words of one are more than the text encoders take.
TEXTS = [make_checkpoints.PROMPTS[0], make_checkpoints.PROMPTS[2], make_checkpoints.PROMPTS[3]]
NEGATIVES = ["red", None, "fog and rain"]
ETA = {"ddim": [0.0, 0.4], "tcd": [0.3, 0.0]}


def guidance_scales(name):
    """With guidance and without; a latent consistency model is told the scale instead."""
    return [8.5, 1.0, 4.0] if "lcm" in name else [5.0, 1.0, 7.5, 0.0] if "turbo" not in name else [0.0, 5.0]


def step_counts(name, sampler):
    few = "turbo" in name or "lcm" in name
    # PNDM's Runge-Kutta steps are three; k-diffusion's third function needs two.
    return [4, 5, 6] if few and sampler == "pndm" else [4, 2, 3] if few else [6, 4, 7, 5]


def cell(name, factor, number, sampler, schedule, **more):
    """One request; `number` decides what takes turns."""
    turn = lambda choices, by=1: choices[number // by % len(choices)]
    width, height = turn(SIZES[factor])
    guidance = turn(guidance_scales(name))
    return {"start": "text", "sampler": sampler, "schedule": schedule, "steps": turn(step_counts(name, sampler), 2), "width": width,
            "height": height, "prompt": turn(TEXTS, 3), "negative_prompt": turn(NEGATIVES, 2) if guidance > 1 and "lcm" not in name else None,
            "guidance_scale": guidance, "seed": turn([1000 + number, 2**33 + number, 2**62 - number]), "num_images": turn([2, 1, 3, 1]),
            "eta": turn(ETA.get(sampler, [0.0]), 2) if schedule == "default" else 0.0} | more


def from_noise(name, factor, pairs):
    for number, (sampler, schedule) in enumerate(pairs):
        yield cell(name, factor, number, sampler, schedule)


def every_pair():
    return itertools.product(SAMPLERS, SCHEDULES)


def some_pairs(shift):
    """Every sampler with one of the sigma schedules, which take turns."""
    for number, sampler in enumerate(SAMPLERS):
        yield sampler, SCHEDULES[(number + shift) % len(SCHEDULES)]


def picture(width, height, number):
    """Waves and noise, and a mask of two parts of which one is half white."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    waves = np.stack([128 + 110 * np.sin(x / (4 + 2 * k) + y / (9 - 2 * k) + k + number) for k in range(3)], -1)
    mask = Image.new("L", (width, height))
    mask.paste(255, (width // 4, height // 5, 2 * width // 3, 3 * height // 4))
    mask.paste(140, (2 * width // 3, height // 3, 5 * width // 6, height // 2))
    return Image.fromarray(np.clip(waves + rng.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)), mask


def from_pictures(name, factor):
    """Image to image and inpainting, of samplers that diffusers has: k-diffusion's functions know neither."""
    number = 0
    for start, (sampler, schedule) in itertools.product(("image", "mask"), some_pairs(1)):
        number += 1
        # What a class without levels of its own would add as noise is the levels' affair; PNDM begins late only where its
        # Runge-Kutta steps are left out.
        made = schedule not in ("default", *make_samplers.WISHES) or sampler in ("ddpm", "ddim", "pndm", "lcm", "tcd", "euler_a")
        if sampler in make_samplers.K_DIFFUSION or (sampler == "pndm" and "inpainting" not in name):
            continue
        asked = cell(name, factor, number, sampler, "default" if made else schedule)
        # Of LCM's and TCD's few steps a strength leaves none.
        strength = [0.6, 1.0, 0.4][number % 3]
        image, mask = picture(asked["width"], asked["height"], number)
        yield asked | {"start": start, "image": image, "mask": mask, "steps": max(asked["steps"], 5), "strength": strength}
