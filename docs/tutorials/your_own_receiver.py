# %% [markdown]
# # Your own receiver
#
# A design is a function: it takes a problem and returns a receiver and transmit factors. This tutorial writes one of
# ten lines, puts it beside ours and beside a bound, makes it better, and gives it a name that settings files know. Run
# it cell by cell, or as a script; it needs no data and no model.

# %%
from dataclasses import replace
from typing import Annotated

import matplotlib.pyplot as plt
import torch
from pydantic import Field

import airpfed as ap

net = ap.single_cell(devices=[4, 4, 4, 4], antennas=16, snr_db=20, seed=0)
problem = net.problem(blocks=30)

# %% [markdown]
# ## What comes in, what goes out
#
# The problem has B coherence blocks at once, M antennas, K devices and T sums (here T = 1, the sum over all devices).
#
# - in: `h` (B, M, K), `weights` (T, K), `power_limit` (K) in watts, `noise` in watts
# - out: `receiver` (B, M, T) and `transmit_factors` (B, K), both complex128, with $|b_k|^2 \le P_k$
#
# The estimate of the sum is $m^H y$ with $y = \sum_k h_k b_k x_k + z$.

# %%
for name in ("h", "weights", "power_limit"):
    print(f"{name:12} {tuple(getattr(problem, name).shape)}")
print(f"{'noise':12} {problem.noise:.2e} W")

# %% [markdown]
# ## Ten lines
#
# For given transmit factors the best receiver is a linear system. For a given receiver each device does best to arrive
# with exactly its weight, or with all its power if it cannot. So take turns. What stands after the `*` is an option:
# its type and range are checked, and its meaning is printed when somebody sets a wrong value.

# %%
Steps = Annotated[int, Field(ge=1, le=10_000, description="turns of receiver and devices")]


def best_receiver(problem: ap.TransceiverProblem, b: torch.Tensor) -> torch.Tensor:
    """Solve (A A^H + noise I) m = A w, where A = H diag(b) holds the channels as they arrive."""
    a = problem.h * b[:, None, :]
    noise = problem.noise * torch.eye(a.shape[1])
    return torch.linalg.solve(a @ a.mH + noise, a @ problem.weights.mT.to(a.dtype))


def best_factors(problem: ap.TransceiverProblem, m: torch.Tensor) -> torch.Tensor:
    """Arrive with the weight and without a phase, as far as the power goes."""
    g = (m.mH @ problem.h)[:, 0]
    size = torch.minimum(problem.power_limit.sqrt(), problem.weights[0] / g.abs())
    return size * g.conj() / g.abs()


def mine(problem: ap.TransceiverProblem, *, steps: Steps = 10) -> ap.Transceiver:
    """Take turns from full power on."""
    b = problem.power_limit.sqrt().expand(len(problem.h), -1).to(problem.h.dtype)
    for _ in range(steps):
        b = best_factors(problem, best_receiver(problem, b))
    return ap.Transceiver(best_receiver(problem, b), b)


# %% [markdown]
# ## Beside the bound
#
# The dashed line is an error that no design can beat. **Look at** the distance to it: ours touches it, and taking turns
# stops several dB above, although no turn ever makes the error larger.

# %%
silence = problem.weights.square().sum()  # the error of sending nothing


def plot_beside_the_bound(designs: dict[str, object]) -> None:
    """Plot the NMSE of designs in every block."""
    plt.figure()
    bound = ap.lower_bound(problem)
    for name, design in designs.items():
        error = ap.mse(problem, design(problem))[:, 0]
        assert bool((error >= bound).all())
        plt.plot(10 * (error / silence).log10(), marker="o", label=name)
    plt.plot(10 * (bound / silence).log10(), "k--", label="no design is below")
    plt.gca().set(xlabel="coherence block", ylabel="NMSE, dB", title="30 channels at 20 dB")
    plt.legend()
    plt.show()


plot_beside_the_bound({"mine": mine, "mmse": ap.designs.mmse})

# %% [markdown]
# ## A better idea in one more line
#
# With little noise the turns become tiny: the receiver nulls what does not fit and hardly moves. So begin with much
# more noise than there is, and let it fall to its value. **Look at** the new line: most of the gap is gone.

# %%
Start = Annotated[float, Field(ge=1, le=1e9, description="noise of the first turn over the true noise")]


def cooled(problem: ap.TransceiverProblem, *, steps: Steps = 30, start: Start = 1000.0) -> ap.Transceiver:
    """Take turns while the noise falls to its value."""
    b = problem.power_limit.sqrt().expand(len(problem.h), -1).to(problem.h.dtype)
    for step in range(steps):
        noise = problem.noise * start ** (1 - step / steps)
        b = best_factors(problem, best_receiver(replace(problem, noise=noise), b))
    return ap.Transceiver(best_receiver(problem, b), b)


plot_beside_the_bound({"mine": mine, "cooled": cooled, "mmse": ap.designs.mmse})

# %% [markdown]
# ## A study
#
# All designs meet the same drops, channels, symbols and noise, in all slots of a round. A design with options is a
# pair. **Look at** the right end: more turns help little, and cooling helps more for less time (`ms`, for one drop).

# %%
designs = {"mine": mine, "mine, 100 steps": (mine, {"steps": 100}), "cooled": cooled, "mmse": ap.designs.mmse}
table = ap.link_study(designs, net, snr_db=range(-20, 31, 10), draws=20, gap=False)
curves = table.pivot(index="snr_db", columns="design", values="nmse_db")
print(curves.round(2))
print(table.pivot(index="snr_db", columns="design", values="ms").round(2).loc[[20]])
curves.plot(ylabel="NMSE, dB", marker="o", title="20 drops, all slots of a round")
plt.show()

# %% [markdown]
# `claimed` is the error by the formula, and `measured` is that of signals that were sent. **Look at** their ratio: a
# design that errs in its own error would show here.

# %%
table["ratio"] = table["measured"] / table["claimed"]
print(table.pivot(index="snr_db", columns="design", values="ratio").round(3))
assert (table["ratio"] - 1).abs().max() < 0.1

# %% [markdown]
# ## When it goes wrong
#
# Every result of a design is checked. **Look at** the lines: each names the design and says what would be right.


# %%
def too_loud(problem: ap.TransceiverProblem) -> ap.Transceiver:
    """Twice the amplitude is four times the power."""
    transceiver = mine(problem)
    return replace(transceiver, transmit_factors=2 * transceiver.transmit_factors)


def wrong_shape(problem: ap.TransceiverProblem) -> ap.Transceiver:
    """A receiver without the axis of sums."""
    transceiver = mine(problem)
    return replace(transceiver, receiver=transceiver.receiver[..., 0])


for name, wrong in {
    "too_loud": too_loud,
    "wrong_shape": wrong_shape,
    "no_step": (mine, {"steps": 0}),
    "typing_error": (mine, {"step": 10}),
}.items():
    try:
        ap.link_study({name: wrong}, net, draws=1, gap=False)
    except ap.UserError as error:
        print(error)

# %% [markdown]
# ## A name, and what a design promises
#
# A design in `ap.DESIGNS` goes by its name, with its options. What a bare function does not say, a row does. Here
# `shrinks` says that the receivers make the sum smaller, as if the devices' symbols had nothing in common; then they
# are rescaled to the correlation that the symbols have. **Look at** the two errors: gradients are alike, and it pays to
# say so.

# %%
ap.DESIGNS["cooled"] = ap.Design(cooled, shrinks=True)


def not_rescaled(problem: ap.TransceiverProblem) -> ap.Transceiver:
    """The same design without a promise."""
    return cooled(problem, steps=50)


table = ap.link_study(["cooled(steps=50)", not_rescaled], net, snr_db=-10, correlation=0.7, draws=20, gap=False)
print(table[["design", "nmse_db", "claimed", "measured"]].round(4))

# %% [markdown]
# ## A channel of your own
#
# A channel is a function too. It takes its randomness from `site.rng(name, t, block)`, so that a block's channel is the
# same whichever blocks are drawn. Here a wall halves the amplitude of each link with probability `share`. **Look at**
# the rows: walls cost both designs the same.


# %%
def walls(site, t: int, blocks: range, *, share: float = 0.3) -> torch.Tensor:
    """Rayleigh fading, and a wall on some of the links."""
    draws, (_, devices) = [], site.gain.shape
    for block in blocks:
        fading = torch.randn(site.antennas, devices, dtype=torch.complex128, generator=site.rng("h", t, block))
        wall = torch.rand(devices, dtype=torch.float64, generator=site.rng("wall", t, block)) < share
        draws.append(site.gain.sqrt() * fading * torch.where(wall, 0.5, 1.0))
    return torch.stack(draws)


channels = ["rayleigh", walls, (walls, {"share": 0.9})]
table = ap.link_study(["cooled", "mmse"], net, channel=channels, draws=10, gap=False)
print(table.pivot(index="channel", columns="design", values="nmse_db").round(2))
