# %% [markdown]
# # Fine-tune three tasks over the air
#
# Twelve devices in a cell have data of three tasks. They train LoRA adapters on one small language model, and their
# gradients add up in the air. This tutorial runs such an experiment, looks inside a round, replaces the receiver, and
# uses the adapters. It trains for a few rounds only, about a minute on two cores; the first run also downloads the
# model and the data (100 MB).

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import airpfed as ap

runs = Path(tempfile.mkdtemp(prefix="airpfed-"))  # any folder; another run is never overwritten

# %% [markdown]
# ## The experiment
#
# Settings are a tree, as in a settings file: `Experiment.from_toml("mine.toml")` reads the same keys from a file. Each
# key, its unit and its default are in `docs/reference.md`.
#
# Each task has a p-adapter of its own, and an s-adapter is shared by all. Four ranks for each.

# %%
settings = {
    "model": {"base": "minilm", "max_tokens": 24},
    "adapters": {"rank_shared": 4, "rank_personal": 4, "target_modules": ["query", "value"], "layers": "last-2"},
    "tasks": [
        {"name": name, "devices": 4, "samples_per_device": 20, "dev_samples": 20, "test_samples": 30}
        for name in ("trec", "sms", "bbc")
    ],
    "devices": {"batch_size": 5},
    "server": {"optimizer": "adam", "lr": 1e-2, "rounds": 16},
    "radio": {"design": "uniform_forcing", "antennas": 16, "snr_db": 10.0},
    "run": {"eval_every": 10},
}
exp = ap.Experiment.from_dict(settings)
print(exp)

# %% [markdown]
# ## Round by round
#
# `rounds()` is a generator: it computes a round when you ask for the next. Nothing is written to disk. A state holds
# all parameters, a record the round's numbers: losses, and Pi, the squared error of the sums over the air relative to
# the power of the gradients.
#
# **Look at** Pi: with 16 antennas at 10 dB it is about 2.5e-3, so the sums are off by five per cent.

# %%
for state, record in exp.rounds():
    print(state.round, {task: round(loss, 2) for task, loss in record.loss.items()}, f"Pi {record.pi:.1e}")
    if record.round == 3:
        break
print("dev scores after 3 rounds:", exp.scores(state, "dev"))

# %% [markdown]
# ## A whole run
#
# `run` writes a folder, the same as `airpfed run`: records, summary, checkpoint, adapters, and a report to open in a
# browser. `records` is a table with a row for each round.

# %%
run = exp.run(runs / "uniform_forcing")
print(run.report)
run.records.set_index("round").filter(like="loss/").plot(ylabel="training loss, nats")
plt.title("Three tasks, one channel")
plt.show()

# %%
for name, task in run.summary.tasks.items():
    print(f"{name:5} {task.metric} before {task.base:.2f}, after {task.final:.2f}")
print(f"time on air {run.summary.ledger.air_seconds * 1e3:.1f} ms in all")

# %% [markdown]
# ## Another receiver
#
# A design is a function of a problem. This one inverts the channel and leaves out devices in a deep fade. Its option
# is set like any other key. The run keeps the function's name and a hash of its source: going on with
# `run(..., resume=True)` needs the same function again, reading the run does not.
#
# **Look at** the figure: the squared error is twenty to forty times larger, and the losses still fall, a little later.


# %%
def inversion(problem, *, truncation: float = 0.2):
    """Channel inversion, without the devices whose channel is weaker than a share of the mean."""
    return ap.designs.channel_inversion(problem, truncation=truncation)


other = ap.Experiment.from_dict(settings, {"radio.design.truncation": 0.3}, design=inversion).run(runs / "inversion")
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
for label, result in (("uniform forcing", run), ("inversion", other)):
    left.semilogy(result.records["round"], result.records["pi"], label=label)
    losses = result.records.filter(like="loss/").mean(axis=1)
    right.plot(result.records["round"], losses, label=label)
left.set(xlabel="round", ylabel="Pi")
right.set(xlabel="round", ylabel="mean training loss, nats")
left.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Use the adapters
#
# Each task has a plain PEFT adapter in the folder of the run. `model` loads base and adapter, `predict` also fills the
# task's prompt. `load_run` opens a folder again, on any day and from anybody: no code in it runs.

# %%
again = ap.load_run(runs / "uniform_forcing")
print(again.adapters["trec"])
print(type(again.model("trec")).__name__)
questions = ["Who wrote Hamlet ?", "How many moons does Mars have ?", "Where is Kyoto ?"]
for question, answer in zip(questions, again.predict(questions, "trec"), strict=True):
    print(f"{answer:5} {question}")

# %% [markdown]
# ## A small sweep
#
# `sweep` runs all points of a grid, and returns a table with a row for each trial and task. Trials that are finished
# in its folder are not run again.

# %%
short = {"server.rounds": 6, "run.eval_every": 0}
table = ap.sweep(exp.settings, {"radio.snr_db": [-10, 10]}, overrides=short, out=runs / "sweep")
print(table.pivot(index="radio.snr_db", columns="task", values="final").round(2))
print(table.groupby("radio.snr_db")["pi_mean"].mean())
