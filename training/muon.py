"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal; AdamW for what is no matrix.

A convolution counts as the matrix (out, in * kh * kw). The step is scaled by 0.2 sqrt(max(rows, columns)) to the size AdamW's
would have (Liu et al. 2025, "Muon is scalable for LLM training"), so that one learning rate serves both.
"""

import torch

# Quintic of the Newton-Schulz iteration, from the author's description of the method.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonal(matrix, rounds=5):
    """The nearest matrix with singular values about 1, in bfloat16."""
    wide = matrix.bfloat16()
    tall = wide.shape[0] > wide.shape[1]
    if tall:
        wide = wide.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(rounds):
        gram = wide @ wide.T
        wide = A * wide + (B * gram + C * (gram @ gram)) @ wide
    return (wide.T if tall else wide).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for the matrices inside, AdamW for embeddings, norms, biases, the first and the last convolution."""

    def __init__(self, nets, lr, momentum=0.95, betas=(0.9, 0.99), weight_decay=1e-2, eps=1e-8):
        outer = ("embedding.weight", "conv_in.weight", "conv_out.weight")
        matrices, rest = [], []
        for name, parameter in nets.named_parameters():
            (matrices if parameter.ndim >= 2 and not name.endswith(outer) else rest).append(parameter)
        common = dict(lr=lr, momentum=momentum, betas=betas, weight_decay=weight_decay, eps=eps)
        super().__init__([{"params": matrices, "matrix": True}, {"params": rest, "matrix": False}], common)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            update = self._matrix if group["matrix"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, self.state[parameter], group)

    @staticmethod
    def _matrix(parameter, state, group):
        velocity = state.setdefault("velocity", torch.zeros_like(parameter))
        velocity.lerp_(parameter.grad, 1 - group["momentum"])
        ahead = parameter.grad.lerp(velocity, group["momentum"]).flatten(1)
        size = 0.2 * max(ahead.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonal(ahead).view_as(parameter), alpha=-group["lr"] * size)

    @staticmethod
    def _adam(parameter, state, group):
        first, second = group["betas"]
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        square = state.setdefault("square", torch.zeros_like(parameter))
        count = state["count"] = state.get("count", 0) + 1
        mean.lerp_(parameter.grad, 1 - first)
        square.mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
        denominator = (square / (1 - second ** count)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(mean, denominator, value=-group["lr"] / (1 - first ** count))
