"""Settings files of two tiny tasks, and their data."""

import csv
import random
from pathlib import Path

from support.models import SMALL, WORDS, save_llama


def write_rows(path: Path, rows: int, classes: tuple[str, ...], seed: int) -> Path:
    """A CSV whose class shows in its words."""
    rng = random.Random(seed)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "label"])
        for number in range(rows):
            index = number % len(classes)
            words = [rng.choice(WORDS[14 + 8 * index : 14 + 8 * index + 8]) for _ in range(rng.randint(3, 9))]
            out.writerow([" ".join([*words, rng.choice(WORDS[60:])]), classes[index]])
    return path


SETTINGS = """
[model]
base = "{base}"
max_tokens = 24

[adapters]
rank_shared = 2
rank_personal = 2
target_modules = {modules}

[[tasks]]
name = "colours"
source = "{folder}/colours.csv"
prompt = "{{text}} Label :"
labels = {{ red = " red", blue = " blue" }}
devices = 2
samples_per_device = 10
dev_samples = 6
test_samples = 12

[[tasks]]
name = "moods"
source = "{folder}/moods.csv"
prompt = "{{text}} Label :"
labels = {{ good = " good", bad = " bad", it = " it" }}
devices = 3
samples_per_device = 8
dev_samples = 6
test_samples = 12

[devices]
batch_size = 3

[server]
lr = 0.02
rounds = 4

[radio]
antennas = 8
coherence_symbols = 100
pilots = "perfect"
snr_db = 10.0

[run]
eval_every = 2
threads = 1
"""


def make_settings(folder: Path, base: Path, causal: bool = True) -> Path:
    """A settings file of two tiny tasks over five devices."""
    write_rows(folder / "colours.csv", 80, ("red", "blue"), 1)
    write_rows(folder / "moods.csv", 90, ("good", "bad", "it"), 2)
    modules = '["q_proj", "v_proj", "down_proj"]' if causal else '["query", "value"]'
    file = folder / "tiny.toml"
    file.write_text(SETTINGS.format(base=base, folder=folder, modules=modules))
    return file


QUICK = (
    ("rank_shared = 2\nrank_personal = 2", "rank_shared = 1\nrank_personal = 1"),
    ("devices = 3", "devices = 2"),
    ("test_samples = 12", "test_samples = 4"),
    ("dev_samples = 6", "dev_samples = 4"),
    ("samples_per_device = 10", "samples_per_device = 4"),
    ("samples_per_device = 8", "samples_per_device = 4"),
    ("rounds = 4", "rounds = 3"),
    ("[radio]", '[radio]\ndesign = "channel_inversion"'),
    ("coherence_symbols = 100", "coherence_symbols = 5000"),
)
METERED = (
    ("lr = 0.02", 'lr = 0.02\noptimizer = "sgd"'),
    ("[run]", "[theory]\nmeter_every = 2\npilot_rounds = 1\nlanczos_steps = 2\n\n[run]"),
)


def save_settings(folder: Path, check_round: bool) -> Path:
    """A settings file of a run that takes a second."""
    file = make_settings(folder, save_llama(folder / "llama", **SMALL))
    text = file.read_text()
    for old, new in (*QUICK, *(METERED if check_round else ())):
        assert old in text, old
        text = text.replace(old, new)
    file.write_text(text)
    return file


def link_of(name: str) -> tuple[str, ...]:
    """The overrides for a link by its design, or by its scheme."""
    if name in ("error_free", "digital"):
        return (f"radio.scheme={name}",)
    return "radio.scheme=linear", f"radio.design={name}"
