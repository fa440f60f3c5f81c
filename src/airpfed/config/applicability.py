"""Which settings apply: a key that the user wrote and that the rest of the settings leaves without effect is refused.

One table says for each such key beside which other key it does nothing. Defaults never contradict: only keys that stand
in the file or came by `--set` count, and values that ask for nothing (0 of what is no decibel, false, "") do not.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from airpfed.config.schema import Settings, TaskSettings, TheorySettings
from airpfed.core.errors import UserError, printable

MERGED = ("fedex", "flora")
"""Methods whose rule takes the place of the server's optimizer and moves by `devices.local_lr` in any case."""

OWN_PATH_LOSS = ("umi", "uma", "rma")
"""Channels that bring path loss, shadowing and heights of their own."""

Holds = Callable[[Settings, TaskSettings], bool]


@dataclass(frozen=True)
class Rule:
    """`key` has an effect where `holds`; where not, `beside` is the key that decides, and `right` what would be right.

    key, beside: `section.key`, a task's `tasks.key`. training: only a run's matter, a plan or a study may read it.
    """

    key: str
    beside: str
    holds: Holds
    right: str
    training: bool = False


def kind_of(task: TaskSettings) -> str:
    """classify or generate, as the task will be loaded: of what there is by name only reasoning-gym's is generated."""
    if task.kind != "auto":
        return task.kind
    return "generate" if (task.source or task.name).startswith("gym:") else "classify"


def _is_metered(settings: Settings, _: TaskSettings) -> bool:
    """Whether the theory is asked for, or `theory.meter_every = 0` says that it is not."""
    return settings.server.lr == "theory" or "meter_every" in settings.theory.model_fields_set


def _has_dev(settings: Settings, _: TaskSettings) -> bool:
    return any(task.dev_samples for task in settings.tasks)


def _is_classified(_: Settings, task: TaskSettings) -> bool:
    return kind_of(task) == "classify"


def _is_cell_free(settings: Settings, _: TaskSettings) -> bool:
    return settings.radio.layout == "cell_free"


def _is_in_discs(settings: Settings, _: TaskSettings) -> bool:
    return settings.radio.layout == "discs"


def _has_our_path_loss(settings: Settings, _: TaskSettings) -> bool:
    return settings.radio.channel not in OWN_PATH_LOSS


RULES = (
    Rule("tasks.dirichlet_alpha", "tasks.split", lambda _, t: t.split == "dirichlet", 'it is for split = "dirichlet"'),
    Rule("tasks.device_column", "tasks.split", lambda _, t: t.split == "column", 'it is for split = "column"'),
    Rule("tasks.sizes_sigma", "tasks.sizes", lambda _, t: t.sizes == "lognormal", 'it is for sizes = "lognormal"'),
    Rule("tasks.text", "tasks.prompt", lambda _, t: not t.prompt, "it is for the default prompt, give one of the two"),
    Rule("tasks.labels", "tasks.kind", _is_classified, 'it is for kind = "classify"'),
    Rule("tasks.classes", "tasks.kind", _is_classified, 'it is for kind = "classify"'),
    Rule("tasks.max_new_tokens", "tasks.kind", lambda _, t: kind_of(t) == "generate", 'it is for kind = "generate"'),
    Rule(
        "tasks.power_dbm",
        "adapters.method",
        lambda s, _: s.adapters.method != "centralised",
        "it is for methods that send, leave it out",
    ),
    Rule("adapters.head", "model.kind", lambda s, _: s.model.kind != "causal", 'it is for kind = "classifier"'),
    Rule(
        "devices.local_lr",
        "devices.local_steps",
        lambda s, _: s.devices.local_steps > 1 or s.adapters.method in MERGED,
        "it is for local_steps above 1, and server.lr sets the step",
    ),
    Rule("devices.memory_gb", "devices.chunk", lambda s, _: s.devices.chunk == 0, "it is for chunk = 0, give one"),
    Rule("radio.noise_dbm", "radio.snr_db", lambda s, _: s.radio.snr_db is None, "give one, either sets the noise"),
    Rule("radio.noise_figure_db", "radio.snr_db", lambda s, _: s.radio.snr_db is None, "it is for thermal noise"),
    Rule(
        "radio.noise_figure_db",
        "radio.noise_dbm",
        lambda s, _: s.radio.noise_dbm == "thermal" or s.radio.snr_db is not None,
        'it is for noise_dbm = "thermal"',
    ),
    Rule(
        "radio.power_dbm",
        "tasks.power_dbm",
        lambda s, _: any(task.power_dbm is None for task in s.tasks),
        "every task has its own, leave one of them out",
    ),
    Rule("radio.access_points", "radio.layout", _is_cell_free, 'it is for layout = "cell_free"'),
    Rule("radio.square_m", "radio.layout", _is_cell_free, 'it is for layout = "cell_free"'),
    Rule("radio.cell_radius_m", "radio.layout", _is_in_discs, 'it is for layout = "discs"'),
    Rule("radio.min_distance_m", "radio.layout", _is_in_discs, 'it is for layout = "discs"'),
    Rule(
        "radio.edge_distance_m",
        "radio.topology",
        lambda s, _: s.radio.topology != "single_cell",
        'it is for topology = "joint" or "two_hop"',
    ),
    Rule(
        "radio.shadowing_decorrelation_m",
        "radio.shadowing_db",
        lambda s, _: s.radio.shadowing_db > 0,
        "it is for shadowing_db above 0",
    ),
    Rule("radio.path_loss_exponent", "radio.channel", _has_our_path_loss, "the channel has its own, leave it out"),
    Rule("radio.path_loss_1m_db", "radio.channel", _has_our_path_loss, "the channel has its own, leave it out"),
    Rule("radio.height_m", "radio.channel", _has_our_path_loss, "the channel has its own, leave it out"),
    Rule("run.eval_every", "tasks.dev_samples", _has_dev, "a task should have a dev split to evaluate"),
    Rule(
        "run.score",
        "tasks.dev_samples",
        lambda s, t: s.run.score == "test" or _has_dev(s, t),
        "a task should have a dev split to score",
    ),
    Rule("run.cross_eval", "run.score", lambda s, _: s.run.score != "dev", 'it is for score = "test" or "both"'),
    Rule("run.cross_eval", "tasks", lambda s, _: len(s.tasks) > 1, "it is for two tasks at least"),
    *(
        Rule(
            f"theory.{key}",
            "theory.meter_every",
            _is_metered,
            'it is for a metered run, set meter_every or server.lr = "theory"',
            training=True,
        )
        for key in TheorySettings.model_fields
        if key != "meter_every"
    ),
)
"""What applies where; options of designs and of channels are not in it."""


@dataclass(frozen=True)
class Idle:
    """A key without effect: as it stands in the tree (a task by its number), and the line that says so."""

    place: tuple[str, ...]
    line: str


def idle(settings: Settings, written: bool = True, training: bool = True) -> Iterator[Idle]:
    """Keys that do nothing beside the others: those that the user wrote, or (not `written`) all.

    training: whether a run is to be made of the settings.
    """
    for rule in RULES:
        section, key = rule.key.split(".")
        for place, name, task in _places(settings, section):
            own = task if section == "tasks" else getattr(settings, section)
            if (rule.training and not training) or rule.holds(settings, task):
                continue
            value = getattr(own, key)
            if written and (key not in own.model_fields_set or _is_nothing(key, value)):
                continue
            beside = _beside(settings, rule.beside, task, name)
            yield Idle((*place, key), f"{name}.{key} = {show(value)}: does nothing with {beside}; {rule.right}")
    yield from _too_few(settings)


def _is_nothing(key: str, value: Any) -> bool:
    """Whether a value asks for nothing; 0 dB and 0 dBm ask for something."""
    return value in (None, "", (), {}) or (value == 0 and not key.endswith(("_db", "_dbm")))


def _places(settings: Settings, section: str) -> list[tuple[tuple[str, ...], str, TaskSettings]]:
    """(place in the tree, name in messages, the task) for every table of a section; any task where it is no task's."""
    if section != "tasks":
        return [((section,), section, settings.tasks[0])]
    return [(("tasks", str(n)), f"tasks.{task.name}", task) for n, task in enumerate(settings.tasks)]


def _beside(settings: Settings, key: str, task: TaskSettings, name: str) -> str:
    """The deciding key with its value."""
    if key == "tasks":
        return f"one task, {task.name}"
    section, last = key.split(".")
    if key == "tasks.kind":
        return f'{name}.kind = "{kind_of(task)}"'
    if section == "tasks" and name.startswith("tasks."):
        return f"{name}.{last} = {show(getattr(task, last))}"
    if section == "tasks":
        return f"tasks.*.{last} = {show(getattr(task, last))}"
    return f"{key} = {show(getattr(getattr(settings, section), last))}"


def _too_few(settings: Settings) -> Iterator[Idle]:
    """More devices waited for than there are; where a column says how many there are, nothing is known yet."""
    devices, least = sum(task.devices for task in settings.tasks), settings.federation.min_devices
    if least > devices and all(task.devices for task in settings.tasks):
        line = f"federation.min_devices = {least}: the tasks have {devices} devices; should be at most that (0: all)"
        yield Idle(("federation", "min_devices"), line)


def refuse(where: str, every: Sequence[Settings], training: bool = True) -> None:
    """UserError with a line a key that applies in none of `every`, the settings of a run or of a grid's points."""
    found = [{one.place: one.line for one in idle(settings, True, training)} for settings in every]
    lines = [line for place, line in found[0].items() if all(place in other for other in found)] if found else []
    if lines:
        raise UserError("\n".join(f"{where}: {line}" for line in lines))


def notes(settings: Settings) -> list[str]:
    """A line each on settings that are taken and that the user may not have meant so: to be said at the start."""
    radio, method = settings.radio, settings.adapters.method
    ruled = {"lr", "optimizer"} & settings.server.model_fields_set if method in MERGED else set()
    found = [
        f'server.{key} does nothing with adapters.method = "{method}", which moves by devices.local_lr'
        for key in sorted(ruled)
    ]
    if radio.channel in ("rayleigh", "rician"):
        return found
    scenario, highest = radio.channel in OWN_PATH_LOSS, 30e9 if radio.channel == "rma" else 100e9
    farthest = radio.cell_radius_m + (0.0 if radio.topology == "single_cell" else 2 * radio.edge_distance_m)
    most_m = 10_000.0 if radio.channel == "rma" else 5_000.0
    limits = (
        ("carrier_hz", radio.carrier_hz, 0.5e9, highest, "Hz", True),
        ("bandwidth_hz", radio.bandwidth_hz, 0.0, min(2e9, 0.1 * radio.carrier_hz), "Hz", True),
        ("min_distance_m", radio.min_distance_m, 10.0, most_m, "m", scenario),
        ("cell_radius_m (and edge_distance_m)", farthest, 10.0, most_m, "m", scenario),
    )
    for key, value, least, most, unit, asked in limits:
        if asked and not least <= value <= most:
            found.append(
                f'radio.{key}: {value:g} {unit} is outside of what TR 38.901 says of "{radio.channel}", '
                f"{least:g} to {most:g} {unit}; it is taken all the same"
            )
    return found


def effective(settings: Settings, training: bool = True) -> dict[str, Any]:
    """The tree of the settings, without the keys that do nothing: equal trees make equal runs."""
    tree = settings.model_dump(mode="json", exclude_none=True)
    without(tree, (one.place for one in idle(settings, False, training)))
    return tree


def unneeded(settings: Settings) -> list[tuple[str, ...]]:
    """Places of keys that do nothing and are at their defaults: what a file with all keys does without."""
    found = []
    for one in idle(settings, False):
        section, *inner, key = one.place
        own: Any = getattr(settings, section)
        own = own[int(inner[0])] if inner else own
        if getattr(own, key) == type(own).model_fields[key].default:
            found.append(one.place)
    return found


def without(tree: dict[str, Any], places: Iterable[tuple[str, ...]]) -> None:
    """Take keys out of a tree of settings."""
    for *way, key in places:
        own: Any = tree
        for part in way:
            own = own[int(part)] if isinstance(own, list) else own.get(part, {})
        own.pop(key, None)


def show(value: Any) -> str:
    """A value as a settings file writes it, printable and cut to a line."""
    try:
        text = f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a number of thousands of digits"
    text = printable(text[:61]).replace("\n", "\\n")
    return text if len(text) <= 60 else text[:57] + "..."
