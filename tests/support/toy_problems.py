"""Problems whose every constant is known: quadratics, and bilinear ones as LoRA has them; many draws at once.

A round from a given point: devices' gradients with noise of known size, sums over a channel of known error, the step.
Everything is float64; draws are the leading axis.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from airpfed.core.run_files import Constants, MeanSquaredErrors, SlotError

DRAWS = 600


@dataclass(frozen=True)
class Shape:
    """N tasks of K_n devices with D_k samples; ranks; noise: of gradients (C, sigma_SGD^2) and of the channel."""

    devices: tuple[int, ...]
    samples: tuple[int, ...]
    ranks: tuple[int, int]
    c: float
    sgd: float
    channel: float
    lam: float
    seed: int


@dataclass(frozen=True)
class Toy:
    """A problem at a point. loss, gradient: of all devices at batches of points; lengths: d_s, d_p."""

    shape: Shape
    kind: str
    task_of: Tensor
    samples: Tensor
    lengths: tuple[int, int]
    start: tuple[Tensor, Tensor]
    parts: tuple[Tensor, ...]

    def losses(self, shared: Tensor, personal: Tensor) -> Tensor:
        """(draws, d_s), (draws, N, d_p) -> (draws, K)."""
        own = torch.cat([shared[:, None, :].expand(-1, len(self.task_of), -1), personal[:, self.task_of]], 2)
        if self.kind == "quadratic":
            bend, middle = self.parts
            away = own - middle
            return 0.5 * torch.einsum("mki,kij,mkj->mk", away, bend, away)
        return 0.5 * (self.product(own) - self.parts[0]).square().sum((2, 3))

    def product(self, own: Tensor) -> Tensor:
        """B_s A_s + B_p A_p of every device, (draws, K, L, Q)."""
        r_s, r_p = self.shape.ranks
        (d_s, _), size = self.lengths, SIDE
        out = torch.zeros(*own.shape[:2], size, size, dtype=own.dtype)
        for rank, row in ((r_s, own[:, :, :d_s]), (r_p, own[:, :, d_s:])):
            b, a = row[:, :, : size * rank].unflatten(2, (size, rank)), row[:, :, size * rank :]
            out = out + b @ a.unflatten(2, (rank, size)) if rank else out
        return out

    def gradients(self, shared: Tensor, personal: Tensor) -> tuple[Tensor, Tensor]:
        """grad F_k: (draws, K, d_s), (draws, K, d_p)."""
        count = len(self.task_of)
        s = shared[:, None, :].expand(-1, count, -1).clone().requires_grad_()
        p = personal[:, self.task_of].clone().requires_grad_()
        own = torch.cat([s, p], 2)
        if self.kind == "quadratic":
            bend, middle = self.parts
            value = 0.5 * torch.einsum("mki,kij,mkj->", own - middle, bend, own - middle)
        else:
            value = 0.5 * (self.product(own) - self.parts[0]).square().sum()
        g_s, g_p = torch.autograd.grad(value, (s, p))
        return g_s, g_p

    def beta(self, reach: float) -> float:
        """A1 within a ball: exact for quadratics; 3/2 r^2 + ||T_n|| for F_n = 1/2 ||B A - T_n||^2, ||(B, A)|| <= r."""
        within = torch.stack([self.samples * (self.task_of == n) for n in range(len(self.shape.devices))])
        within = within / within.sum(1, keepdim=True)
        if self.kind == "quadratic":
            mean = torch.einsum("nk,kij->nij", within, self.parts[0])
            return float(torch.linalg.eigvalsh(mean).max())
        mean = torch.einsum("nk,kij->nij", within, self.parts[0])
        return 1.5 * reach**2 + float(torch.linalg.matrix_norm(mean, 2).max())


SIDE = 3
"""L and Q of the bilinear problems."""


def toy(shape: Shape, kind: str) -> Toy:
    """A random problem of a shape, at a random point."""
    rng = torch.Generator().manual_seed(shape.seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    task_of = torch.tensor([n for n, count in enumerate(shape.devices) for _ in range(count)])
    count, tasks = len(task_of), len(shape.devices)
    d_s, d_p = (2 * SIDE * rank for rank in shape.ranks)
    if kind == "quadratic":
        half = normal(count, d_s + d_p, d_s + d_p)
        parts: tuple[Tensor, ...] = (half @ half.mT / (d_s + d_p), normal(count, d_s + d_p))
    else:
        parts = (normal(count, SIDE, SIDE),)
    start = (normal(1, d_s), normal(1, tasks, d_p))
    samples = torch.tensor(shape.samples[:count], dtype=torch.float64)
    return Toy(shape, kind, task_of, samples, (d_s, d_p), start, parts)


@dataclass(frozen=True)
class Round:
    """DRAWS draws of one round, and the theory's constants at its point.

    Per draw: change of F, E1 + E2, ||step||^2 in the weights of F. mse: as a record would have it.
    """

    eta: float
    constants: Constants
    gradient: float
    printed: float
    change: Tensor
    first: Tensor
    length: Tensor
    mse: MeanSquaredErrors
    shares: dict[str, float]


def play(problem: Toy, lib: Any, gains: Tensor | None = None, step: float = 1.0) -> Round:
    """One round, drawn DRAWS times, at `step` times the rule's step size; `lib` holds the modules of the theory.

    gains: of each device's gradient in the sums (a biased aggregate); None: all 1. C and sigma_SGD^2 hold with
    equality, A3 at this point with the given lambda.
    """
    shape, space = problem.shape, lib.space
    rng = torch.Generator().manual_seed(shape.seed + 1)
    tasks, count = len(shape.devices), len(problem.task_of)
    weights = space.weights_of(problem.samples, problem.task_of, tasks)
    true = space_weights(problem)
    g_s, g_p = (part[0] for part in problem.gradients(*problem.start))
    own = torch.zeros(count, 0, dtype=torch.float64)
    rows = space.Stack(g_s, g_p, own)
    middle = space.weighted_average(weights, rows)
    gradient, printed = space.squared_norm(weights, middle), space.printed_squared_norm(weights, middle)
    power = space.mean_power_of(weights, rows)
    gains = torch.ones(count, dtype=torch.float64) if gains is None else gains
    bias = bias_of(problem, true, (g_s, g_p), gains)
    lam = shape.lam
    fixed = dict(
        c=shape.c, sigma_sgd2=shape.sgd, lam=lam, sigma_dif2=max(0.0, power - lam * gradient), lam_printed=lam,
        sigma_dif2_printed=max(0.0, power - lam * printed), largest=float((true[1]).max()), **bias,
    )  # fmt: skip
    noisy = noisy_gradients(shape, torch.cat([g_s, g_p], 1), rng)
    d_s = problem.lengths[0]
    mse = channel_errors(problem)
    names = {f"task{n}": float(true[2][n]) for n in range(tasks)}
    noise_s, noise_p = channel_noise(problem, mse, rng)
    sent = noisy * gains[None, :, None]
    hat_s = torch.einsum("k,mki->mi", true[0], sent[:, :, :d_s]) + noise_s
    members = (problem.task_of[None, :] == torch.arange(tasks)[:, None]).double()
    hat_p = torch.einsum("nk,mki->mni", members * true[1], sent[:, :, d_s:]) + noise_p
    reach = 0.0
    eta = beta = 0.0
    for _ in range(30):  # a larger region has a larger beta and so a smaller step: two or three times suffice
        beta = problem.beta(reach)
        eta = step / (lam * (shape.c + 1) * beta)
        ends = problem.start[0] - eta * hat_s, problem.start[1] - eta * hat_p
        found = max(float(radius(*where)) for where in (problem.start, ends))
        if found <= reach:
            break
        reach = 1.1 * found
    before = problem.losses(*problem.start)
    after = problem.losses(*ends)
    moved_s, moved_p = ends[0] - problem.start[0], ends[1] - problem.start[1]
    first = moved_s @ middle.shared + torch.einsum("n,mni,ni->m", weights.task, moved_p, middle.personal)
    length = moved_s.square().sum(1) + torch.einsum("n,mni->m", weights.task, moved_p.square())
    return Round(
        eta, Constants(beta=beta, **fixed), gradient, printed, (after - before) @ true[0], first, length, mse, names
    )


def radius(shared: Tensor, personal: Tensor) -> Tensor:
    """The largest ||(W_s, W_p,n)|| of any draw and task."""
    return (shared.square().sum(1)[:, None] + personal.square().sum(2)).max().sqrt()


def space_weights(problem: Toy) -> tuple[Tensor, Tensor, Tensor]:
    """D_k/D, D_k/D_n and D_n/D, written down once more."""
    tasks = len(problem.shape.devices)
    total = torch.stack([problem.samples[problem.task_of == n].sum() for n in range(tasks)])
    return problem.samples / total.sum(), problem.samples / total[problem.task_of], total / total.sum()


def noisy_gradients(shape: Shape, g: Tensor, rng: torch.Generator) -> Tensor:
    """(DRAWS, K, d) with E||g_k - grad F_k||^2 = C ||grad F_k||^2 + sigma_SGD^2."""
    size = (shape.c * g.square().sum(1) + shape.sgd) / max(1, g.shape[1])
    return g + size.sqrt()[:, None] * torch.randn(DRAWS, *g.shape, generator=rng, dtype=torch.float64)


def channel_errors(problem: Toy) -> MeanSquaredErrors:
    """Errors of the slots: sigma^2 d and MSE of each, all different, s ten times a p-slot of task 0."""
    (d_s, d_p), level = problem.lengths, problem.shape.channel

    def error(scale: float, mse: float) -> SlotError:
        return SlotError(claimed=mse, measured=mse, bias=0, variance=mse, silence=1, scale=scale)

    s = error(0.7 * d_s, 10 * level) if d_s else None
    tasks = range(len(problem.shape.devices)) if d_p else ()
    return MeanSquaredErrors(s=s, p={f"task{n}": error((0.3 + n) * d_p, level * (n + 1)) for n in tasks})


def channel_noise(problem: Toy, mse: MeanSquaredErrors, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise of the sums with exactly those errors."""
    (d_s, d_p), tasks = problem.lengths, len(problem.shape.devices)
    s = torch.randn(DRAWS, d_s, generator=rng, dtype=torch.float64)
    p = torch.randn(DRAWS, tasks, d_p, generator=rng, dtype=torch.float64)
    size = [error.scale * error.claimed / d_p for error in mse.p.values()] or [0.0] * tasks
    return s * ((mse.s.scale * mse.s.claimed / d_s) ** 0.5 if mse.s else 0.0), p * torch.tensor(size).sqrt()[:, None]


def bias_of(
    problem: Toy, true: tuple[Tensor, Tensor, Tensor], g: tuple[Tensor, Tensor], gains: Tensor
) -> dict[str, float]:
    """gain and deviation of Ghat = sum w_k gain_k g_k + n, exactly; c is the weighted mean of the gains."""
    if (gains == 1).all():
        return {"gain": 1.0, "deviation": 0.0}
    c = float(true[0] @ gains)
    off, whole = (sum_power(problem, true, g, factor) for factor in (gains - c, torch.ones_like(gains)))
    return {"gain": c, "deviation": (off / whole) ** 0.5}


def sum_power(problem: Toy, true: tuple[Tensor, Tensor, Tensor], g: tuple[Tensor, Tensor], factor: Tensor) -> float:
    """E||sum w_k factor_k g_k||^2 in the weights of F, mini-batches of devices independent."""
    shape, (d_s, d_p) = problem.shape, problem.lengths
    device, within, task = true
    noise = (shape.c * sum(part.square().sum(1) for part in g) + shape.sgd) / (d_s + d_p)  # of an entry
    members = (problem.task_of[None, :] == torch.arange(len(task))[:, None]).double() * within * factor
    shared = ((device * factor) @ g[0]).square().sum() + d_s * ((device * factor).square() * noise).sum()
    personal = task @ ((members @ g[1]).square().sum(1) + d_p * members.square() @ noise)
    return float(shared + personal)
