# %% [markdown]
# # Does the bound hold?
#
# The convergence theory bounds how much the loss F falls in a round, given the gradients, the step, and the error of
# the sums over the air. A bound on paper may be wrong, or true and useless. Here the theory runs beside the training:
# in chosen rounds the program measures the change of F on all training data and evaluates the bounds with constants
# that were fixed before round 1. About a minute on two cores.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import airpfed as ap
from airpfed.core.run_files import load_probe, load_records
from airpfed.theory.verification import verify_run

runs = Path(tempfile.mkdtemp(prefix="airpfed-"))

# %% [markdown]
# ## A run with the theory beside it
#
# The theory is about plain SGD. `lr = "theory"` takes the step of its own rule, $\eta = 1 / (\lambda (C + 1) \beta)$.
# The constants come from a probe before round 1: gradients of single devices, and the largest eigenvalue of the
# Hessian by Lanczos. `meter_every = 3` checks every third round.

# %%
settings = {
    "model": {"base": "minilm", "max_tokens": 24},
    "adapters": {"rank_shared": 4, "rank_personal": 4, "target_modules": ["query", "value"], "layers": "last-1"},
    "tasks": [
        {"name": name, "devices": 3, "samples_per_device": 12, "dev_samples": 0, "test_samples": 20}
        for name in ("trec", "sms")
    ],
    "server": {"optimizer": "sgd", "lr": "theory", "rounds": 9},
    "radio": {
        "design": "uniform_forcing",
        "antennas": 16,
        "power_dbm": 10.0,
        "coherence_symbols": 20_000,  # a flat band for a millisecond, and known channels: sums without bias
        "pilots": "perfect",
    },
    "theory": {"meter_every": 3, "hessian_samples": 4, "lanczos_steps": 6, "pilot_rounds": 4, "draws": 20},
}
run = ap.Experiment.from_dict(settings).run(runs / "unbiased")
probe = load_probe(run.folder / "theory.json")
print(f"step size of the rule {probe.eta:.3g}")
print({name: f"{value:.3g}" for name, value in probe.constants.model_dump().items()})

# %% [markdown]
# ## Two bounds
#
# The descent lemma, (38), bounds the change of F for the very step that was taken; it needs only beta. The one-round
# bound, (41), is about the mean over the channel and the noise; it needs all constants, and it is the one that the
# convergence theorem adds up.
#
# **Look at** the order of the curves: the measured change is the lowest, (38) lies just above it, (41) above both.
# Below zero a bound proves that the loss falls. (38) proves it in every round that was checked; (41) proves it as long
# as the gradients are larger than what mini-batches and different tasks add to them.

# %%
checked = run.records.dropna(subset=["theory/change"])
plt.figure(layout="constrained")
for column, label in (
    ("theory/change", "measured change of F"),
    ("theory/bounds/descent", "(38), for this step"),
    ("theory/bounds/one_round", "(41), for the mean"),
):
    plt.plot(checked["round"], checked[column], marker="o", label=label)
plt.axhline(0, color="gray", linewidth=0.5)
plt.gca().set(xlabel="round", ylabel="nats", title="Change of the loss in a round, and its bounds")
plt.legend()
plt.show()
above = {
    "(38)": checked["theory/change"] > checked["theory/bounds/descent"],
    "(41)": checked["theory/change_mean"] > checked["theory/bounds/one_round"],
}
print({name: f"violated in {rounds.sum()} of {len(rounds)} rounds" for name, rounds in above.items()})

# %% [markdown]
# ## What the bound is lost to
#
# Adding (41) up over the rounds bounds the mean squared gradient, $\Psi_T$. Its terms say what keeps it from zero: the
# gap of the loss at the start, mini-batches, tasks that differ, and the channel.
#
# **Look at** the channel's share: at this power the air costs less than the mini-batches do. The largest part, the
# gap between the loss at the start and its infimum, becomes smaller with every round that is added.

# %%
result = verify_run(load_records(run.folder / "records.jsonl"), probe)
print(f"Psi_T {result.psi.total:.3g}, measured mean squared gradient {result.gradient:.3g}")
plt.figure(layout="constrained")
plt.bar(list(result.psi.shares), [100 * share for share in result.psi.shares.values()])
plt.gca().set(ylabel="share of $\\Psi_T$, %", title="What the bound consists of")
plt.show()

# %% [markdown]
# ## A biased receiver
#
# (41) assumes sums that are right on average. The receiver of least mean-squared error, `mmse`, shrinks them, the more
# the weaker the devices are, so the paper's bound says nothing about it. The program then checks our bound, which has
# two more constants: the gain c and the deviation rho of the sums.
#
# **Look at** the distance between the curves: our bound holds, with more room than (41), and after a few rounds it no
# longer proves that the loss falls.

# %%
biased = ap.Experiment.from_dict(settings, {"radio.design": "mmse", "radio.power_dbm": 0}).run(runs / "biased")
probe = load_probe(biased.folder / "theory.json")
print(f"unbiased: {probe.unbiased}; gain {probe.constants.gain:.3f}, deviation {probe.constants.deviation:.3f}")
rows = biased.records.dropna(subset=["theory/change"])
plt.figure(layout="constrained")
plt.plot(rows["round"], rows["theory/change_mean"], marker="o", label="measured mean change of F")
plt.plot(rows["round"], rows["theory/bounds/one_round_ours"], marker="o", label="our bound")
plt.axhline(0, color="gray", linewidth=0.5)
plt.gca().set(xlabel="round", ylabel="nats", title="A receiver that shrinks the sums")
plt.legend()
plt.show()
print("rounds above our bound:", int((rows["theory/change_mean"] > rows["theory/bounds/one_round_ours"]).sum()))
