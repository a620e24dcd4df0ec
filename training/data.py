"""Scenes as batches: which pictures, captions and sizes the training sees."""

import random

import numpy as np
import torch

from scenes import Scene, caption, held_out, render

# (width, height): native first; the rest teach aspect ratios from 1:2 to 2:1 around it.
NATIVE = (128, 128)
OTHER_SIZES = ((96, 96), (160, 160), (160, 112), (112, 160), (192, 96), (96, 192), (144, 128), (128, 144))


def scene_for(seed):
    """The training scene of a seed; held-out combinations never come up."""
    rng = random.Random(seed)
    return Scene.random(rng, held_out), rng


def pixels(scene, width, height):
    """(3, height, width) float32 in [-1, 1]."""
    array = np.asarray(render(scene, width, height), dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1


def crops(seed, count, side):
    """(count, 3, side, side): random crops of fresh scenes, for the autoencoder."""
    out = []
    for k in range(count):
        scene, rng = scene_for(seed * 4096 + k)
        picture = pixels(scene, *NATIVE)
        x, y = rng.randrange(NATIVE[0] - side + 1), rng.randrange(NATIVE[1] - side + 1)
        out.append(picture[:, y:y + side, x:x + side])
    return torch.stack(out)


def captioned(seed):
    """A scene and its caption."""
    scene, rng = scene_for(seed)
    return scene, caption(scene, rng)
