"""Files of a first experiment: a settings file with comments, and a small data set for it."""

import os
import textwrap
from pathlib import Path

from airpfed.config.experiment_files import DEFAULT
from airpfed.config.schema import Settings
from airpfed.config.settings_file import section_of
from airpfed.core.errors import UserError
from airpfed.core.files import write_atomic

DATA_FILE = "example.csv"
"""Name of the data set's file."""

MORE = "MORE "
"""Start of a line of the template that stands for the names of a section's other keys."""

TEMPLATE = """# Messages to a shop, in two tasks: what a message is about, and whether its author is calm. Four devices
# hold the messages and send gradients over a radio channel. Run it with `airpfed run`; results: runs/experiment.
#
# Own data: a .csv, .jsonl or .parquet file beside this file, with a column of texts and a column of classes.
# Any key can be changed for one run: airpfed run --set server.rounds=30 --set 'tasks.*.devices=4'

[model]
base = "minilm"                       # `airpfed tasks` lists base models; or a folder, a .gguf file, a name of the hub
max_tokens = 32                       # longer texts are cut
MORE model

[adapters]
rank_shared = 4                       # rank of the s-adapter, which all tasks share
rank_personal = 4                     # rank of the p-adapter, which every task has for itself
target_modules = ["query", "value"]   # layers with adapters; "q_proj", "v_proj", ... in most causal LMs
MORE adapters

[[tasks]]
name = "topic"                        # name in all outputs
source = "example.csv"                # relative to this file; or a name that `airpfed tasks` lists
label = "topic"                       # column of the classes
devices = 2                           # devices with data of this task
samples_per_device = 50               # training samples of a device
dev_samples = 20                      # scored during the run
test_samples = 80                     # scored before and after the run
MORE tasks

[[tasks]]
name = "tone"
source = "example.csv"
label = "tone"
split_as = "topic"                    # the same texts are held out for testing as in the other task
devices = 2
samples_per_device = 50
dev_samples = 20
test_samples = 80

[server]
rounds = 20                           # one gradient of every device in each round
lr = 5e-3                             # learning rate
MORE server

[radio]
design = "mmse"                       # how devices and receiver are adjusted; `airpfed list designs` has more
antennas = 16                         # of the receiver
snr_db = 10.0                         # median signal-to-noise ratio at an antenna
MORE radio

[run]
eval_every = 5                        # rounds between two scores on the dev samples
seed = 0                              # another seed: other samples, channels and noise
MORE run

# Further sections, all with defaults: devices (batch size, local steps), theory, federation.
"""
"""The settings file, before lines that start with MORE are replaced."""

PROBLEMS = {
    "delivery": (
        "the parcel has not arrived", "the courier left the box at a neighbour's door", "the tracking page has no news",
        "my shipment went to the old address", "the package is stuck at the depot", "the driver rang no bell",
        "the delivery date has moved again", "only one of two parcels came", "the post office has sent the box back",
        "the shipment left the warehouse a week ago",
    ),
    "payment": (
        "the invoice lists the amount twice", "my credit card was charged two times", "the refund is not on my account",
        "the voucher was not taken off the price", "the bank transfer does not show up",
        "the receipt shows a wrong price", "the payment page refuses my card", "the instalment was charged too early",
        "tax is missing on the bill", "the discount is not in the total price",
    ),
    "product": (
        "the lamp has a broken switch", "one leg of the chair is loose", "the kettle leaks at the bottom",
        "the jacket has a torn sleeve", "the screen of the radio stays dark", "the shoes are a size too small",
        "the blender makes a loud noise", "the colour of the sofa is not that of the photo", "a screw is missing",
        "the battery of the torch lasts ten minutes",
    ),
    "account": (
        "my password is not accepted", "the login page shows an error", "I cannot change my email address",
        "my user name has vanished", "the app logs me out", "the confirmation code never comes",
        "my profile shows another name", "I want to close my account", "two users share my login",
        "the security question has no answer that works",
    ),
}  # fmt: skip
"""Topic -> ends of its messages."""

OPENINGS = {
    "calm": (
        "Good morning, could you please help me:", "Many thanks for your kind service. A small thing:",
        "Hello, when you have a moment:", "Dear team, I would be grateful for advice:", "Hi, no hurry at all, but",
    ),
    "angry": (
        "This is outrageous,", "I am furious:", "Worst shop ever,", "How dare you ignore me,",
        "Enough of this nonsense,",
    ),
}  # fmt: skip
"""Tone -> beginnings of its messages."""


def write_starter(folder: Path) -> None:
    """Write `experiment.toml` and `example.csv` into a folder, both or none.

    Raises UserError if either exists, and OSError if a file cannot be written.
    """
    paths = {folder / DATA_FILE: example_data(), folder / DEFAULT: starter_settings()}
    for path in paths:
        if os.path.lexists(path):
            raise UserError(f"{path}: exists already, and airpfed init replaces no file; use an empty folder")
    done: list[Path] = []
    try:
        for path, text in paths.items():
            write_atomic(path, text)
            done.append(path)
    except BaseException:
        for path in done:
            path.unlink()
        raise


def starter_settings() -> str:
    """Write the settings file; comments name the other keys of its sections."""
    lines = TEMPLATE.splitlines()
    return (
        "\n".join(_other_keys(line.removeprefix(MORE), lines) if line.startswith(MORE) else line for line in lines)
        + "\n"
    )


def _other_keys(section: str, lines: list[str]) -> str:
    """Write a comment with the keys of a section that no line sets."""
    table = section_of(Settings.model_fields[section].annotation)
    assert table is not None, section
    start = next(number for number, line in enumerate(lines) if line.strip("[]") == section)
    keys = {line.partition(" = ")[0] for line in lines[start : lines.index(MORE + section)]}
    names = ", ".join(key for key in table.model_fields if key not in keys)
    return textwrap.fill(f"more keys: {names}", 118, initial_indent="# ", subsequent_indent="#   ")


def example_data() -> str:
    """Write 200 different messages with their topic and tone, as CSV. Nothing is random."""
    openings = [(tone, opening) for tone, texts in OPENINGS.items() for opening in texts]
    lines = ["text,topic,tone"]
    for number in range(len(openings)):
        for end in range(10):
            for topic, problems in PROBLEMS.items():
                tone, opening = openings[number]
                if (number + end) % 2 == 0:  # half of the combinations; topics and tones stay balanced
                    lines.append(f'"{opening} {problems[end]}.",{topic},{tone}')
    return "\n".join(lines) + "\n"
