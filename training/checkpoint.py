"""Run state on disk: written beside the old one and moved over it, so that a kill leaves a whole checkpoint."""

import os

import torch


def save(run, parts, state):
    """Writes the `state_dict` of every part and the plain values of `state` to `run/state.pt`."""
    blob = {name: part.state_dict() for name, part in parts.items()} | {"state": state}
    torch.save(blob, run / "state.tmp")
    os.replace(run / "state.tmp", run / "state.pt")


def load(run, parts, device):
    """Reads into `parts` what is there; the plain values, `{"step": 0}` on a fresh run."""
    path = run / "state.pt"
    if not path.exists():
        return {"step": 0}
    blob = torch.load(path, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(blob[name])
    return blob["state"]
