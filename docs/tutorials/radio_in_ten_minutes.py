# %% [markdown]
# # The radio in ten minutes
#
# Devices in a cell hold gradients, and a server wants their weighted sum. If all devices send at the same time, the
# channel adds the signals up: one transmission, however many devices there are. The price is an error, and this
# tutorial is about that error. Run it cell by cell, or as a script. Nothing is trained and nothing is downloaded.

# %%
import matplotlib.pyplot as plt
import torch

import airpfed as ap

# %% [markdown]
# ## A cell
#
# 16 devices of 4 tasks around a station with 16 antennas. `snr_db` sets the noise: the median device arrives at every
# antenna with 10 dB. Any other key of `[radio]` in `docs/reference.md` is a keyword too, and a key with a typing error
# is answered with the nearest one.
#
# **Look at** the colours: the strongest device is 25 dB above the weakest. An even sum of both is the difficulty.

# %%
net = ap.single_cell(devices=[4, 4, 4, 4], antennas=16, snr_db=10, seed=0)
print(net)

plt.figure()
gain_db = 10 * net.gain[0].log10()
points = plt.scatter(*net.devices.T, c=gain_db, label="devices")
plt.scatter(*net.stations.T, marker="^", s=100, color="black", label="station")
plt.colorbar(points, label="mean power gain, dB")
plt.gca().set(xlabel="x, m", ylabel="y, m", aspect="equal", title="A drop of 16 devices")
plt.legend()
plt.show()

# %% [markdown]
# ## Channels
#
# `channels(t, blocks)` draws the channels of the first coherence blocks of round t: a complex number for each block,
# antenna and device. The same t and block always give the same channel.
#
# **Look at** the histogram: power over mean power is exponential, which is Rayleigh fading.

# %%
h = net.channels(t=1, blocks=200)
print(h.shape, h.dtype)

plt.figure()
power = (h.abs() ** 2 / net.gain).flatten()
plt.hist(power.numpy(), bins=60, density=True, label="drawn")
x = torch.linspace(0, 6, 100)
plt.plot(x, (-x).exp(), label="exp(-x)")
plt.gca().set(xlabel="power over mean power", ylabel="density", title="Fading", xlim=(0, 6))
plt.legend()
plt.show()

# %% [markdown]
# ## A problem and its solution
#
# A design chooses the factor $b_k$ that each device sends with and the vector $m$ with which the station combines its
# antennas, so that $m^H \sum_k h_k b_k x_k$ is close to $\sum_k w_k x_k$. `problem` holds the channels $h$, the weights
# $w$, the power limits, and the noise. `mse` is the mean-squared error of a solution; the error of doing nothing at all
# is $\sum_k w_k^2$, and their ratio is called NMSE.

# %%
problem = net.problem(round=0, blocks=20)
silence = problem.weights.square().sum()


def nmse_db(error: torch.Tensor) -> torch.Tensor:
    """Return an error relative to silence, in dB."""
    return 10 * (error / silence).log10()


designs = {name: getattr(ap.designs, name) for name in ("uniform_forcing", "mmse", "channel_inversion")}
solutions = {name: design(problem) for name, design in designs.items()}
for name, transceiver in solutions.items():
    print(f"{name:18} {nmse_db(ap.mse(problem, transceiver)).mean():6.2f} dB")

# %% [markdown]
# `lower_bound` is an error that **no** transceiver can beat, whoever designs it.
#
# **Look at** the gap between `mmse` and the bound: there is next to none. Inverting the channel on a fixed beam loses
# about 10 dB.

# %%
plt.figure()
for name, transceiver in solutions.items():
    plt.plot(nmse_db(ap.mse(problem, transceiver)[:, 0]), marker="o", label=name)
plt.plot(nmse_db(ap.lower_bound(problem)), "k--", label="no design is below")
plt.gca().set(xlabel="coherence block", ylabel="NMSE, dB", title="Every block has a channel of its own")
plt.legend()
plt.show()

# %% [markdown]
# ## Is the claim true?
#
# `mse` is a formula. Here are the signals themselves: random symbols, through the channel, plus noise, combined by the
# receiver. **Look at** the two numbers of each line: they agree within a few percent.

# %%
rng = torch.Generator().manual_seed(0)
blocks, antennas, devices = problem.h.shape
symbols = torch.randn(blocks, devices, 2000, dtype=torch.complex128, generator=rng)
noise = problem.noise**0.5 * torch.randn(blocks, antennas, 2000, dtype=torch.complex128, generator=rng)
for name, transceiver in solutions.items():
    received = problem.h @ (transceiver.transmit_factors[..., None] * symbols) + noise
    estimate = transceiver.receiver.mH @ received
    measured = (estimate - problem.weights.to(symbols.dtype) @ symbols).abs().square().mean()
    claimed = ap.mse(problem, transceiver).mean()
    print(f"{name:18} claimed {claimed:.3e}, measured {measured:.3e}")
    assert abs(measured / claimed - 1) < 0.05

# %% [markdown]
# ## A study
#
# `link_study` does this for a grid of settings, over many drops, for all slots of a round: first the sum of all devices
# (s), then a sum for each task (p). The result is a pandas data frame; `nmse_db` is the error of all sums together.
#
# **Look at** the slopes: `mmse` and `uniform_forcing` gain 10 dB with every 10 dB of SNR. Inversion with a fixed
# threshold stops, because some devices are always left out; this is the column `bias`.

# %%
table = ap.link_study(
    ["mmse", "uniform_forcing", "channel_inversion(truncation=0.2)"],
    net,
    snr_db=range(-10, 31, 10),
    draws=50,
    gap=False,  # the lower bounds would take most of the time
)
print(table[["design", "snr_db", "nmse_db", "nmse_db_se", "claimed", "measured", "bias"]].round(4).to_string())
table.pivot(index="snr_db", columns="design", values="nmse_db").plot(ylabel="NMSE, dB", marker="o")
plt.title("50 drops, 5 slots each")
plt.show()

# %% [markdown]
# ## What helps, what hurts
#
# Every key of the radio can be an axis. **Look at** the first table: four times the antennas are worth 5 to 6 dB;
# channel estimates that lack one percent of the channel's variance cost about 2 dB, and those that lack a tenth cost
# 6.5 to 8 dB.

# %%
table = ap.link_study("mmse", net, antennas=[4, 16, 64], csi_error=[0.0, 0.01, 0.1], draws=10, gap=False)
print(table.pivot(index="antennas", columns="csi_error", values="nmse_db").round(2))

table = ap.link_study("mmse", net, channel=["rayleigh", ("rician", {"k_db": 10.0})], draws=10, gap=False)
print(table[["channel", "nmse_db"]].round(2))

# %% [markdown]
# One slot for each task costs channel uses; all tasks in one slot cost accuracy, because each disturbs the others.
# **Look at** both columns.

# %%
table = ap.link_study("mmse", net, access=["tdma", "concurrent"], draws=10, gap=False)
print(table[["access", "nmse_p_db", "uses"]].round(2))

# %% [markdown]
# ## Where to go on
#
# - `ap.multi_cell` has a station for each task, and `ap.cell_free` has access points all over a square.
# - `your_own_receiver.py` adds a design of your own.
# - `airpfed link FILE.toml` runs the same study from a settings file, with the same numbers.
