"""Keys without effect: a key that the user wrote and that the other settings disable is refused.

For each such key, a table of rules gives the key that disables it. Only keys set in the file or by `--set` are checked;
values meaning "off" (0 unless in dB or dBm, false, "") are not.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from airpfed.config.choice import Choice
from airpfed.config.schema import Settings, TaskSettings, TheorySettings
from airpfed.core.errors import UserError, printable
from airpfed.core.paths import CHAT_TASKS, HUB

Condition = Callable[[Settings, TaskSettings], bool]


@dataclass(frozen=True)
class Rule:
    """A key has an effect only if `applies`.

    condition: the key that disables it. remedy: the end of the message, which says how to mend the settings. Keys are
    written `section.key`, those of tasks `tasks.key`. training: the rule matters only for a run; a plan or a study may
    use the key. additional: further keys that can disable it.
    """

    key: str
    condition: str
    applies: Condition
    remedy: str
    training: bool = False
    additional: tuple[str, ...] = ()


def task_kind(task: TaskSettings) -> str:
    """Return classify, generate or chat, without loading the task, by the names of the catalogue's sources."""
    if task.kind != "auto":
        return task.kind
    source = task.source or task.name
    return "generate" if source.startswith("gym:") else "chat" if source in CHAT_TASKS else "classify"


def _is_monitored(settings: Settings, _: TaskSettings) -> bool:
    """Check whether the theory is in use, or switched off by an explicit `theory.meter_every = 0`."""
    return settings.server.lr == "theory" or "meter_every" in settings.theory.model_fields_set


def _has_dev(settings: Settings, _: TaskSettings) -> bool:
    return any(task.dev_samples for task in settings.tasks)


def _is_classified(_: Settings, task: TaskSettings) -> bool:
    return task_kind(task) == "classify"


def _ends_with(task: TaskSettings, *endings: str) -> bool:
    """Check whether a task's source is a file with one of the endings, or a data set, whose files may have any."""
    source = task.source or task.name
    return source.startswith(HUB) or source.lower().endswith(endings)


def _is_chat(_: Settings, task: TaskSettings) -> bool:
    return task_kind(task) == "chat"


def _is_cell_free(settings: Settings, _: TaskSettings) -> bool:
    return settings.radio.layout == "cell_free"


def _is_in_discs(settings: Settings, _: TaskSettings) -> bool:
    return settings.radio.layout == "discs"


def _uses_log_distance(settings: Settings, _: TaskSettings) -> bool:
    return not settings.radio.has_path_loss or bool(settings.radio.interferers)


def _uses_positions(settings: Settings, _: TaskSettings) -> bool:
    return not settings.radio.has_recorded_channel


def _is_in_motion(settings: Settings, _: TaskSettings) -> bool:
    radio = settings.radio
    return radio.has_derived_blocks or radio.within_block == "changing" or radio.feedback_delay_s > 0


LINEAR_ONLY = (
    "design",
    "energy",
    "correlation",
    "phase_error_deg",
    "carrier_offset_hz",
    "timing_drift_s",
    "adc_bits",
    "noise_alpha",
    "receive_clipping",
    "fade_truncation_db",
    "mixing",
    "power_over",
    "packing",
    "personal_slots",
    "feedback_bits",
)
"""Keys of the radio that matter only where gradients are superposed in the channel."""
OVER_THE_AIR = (
    *("csi_error", "clipping_db", "outage", "coherence_symbols", "subcarrier_groups"),
    *("pilots", "feedback_delay_s", "csi_age_correlation", "within_block", "interferers"),
)
"""Keys of the radio that matter for every scheme but the error-free one."""

SIGNAL_KEYS = ("power_dbm", "snr_db", "noise_dbm", "noise_figure_db", "antennas", "channel")
"""Keys of the radio's signal. An error-free link takes them in silence from grids that compare it with another link;
the start of a run tells them."""

POOLED_WITHOUT = (
    "devices.hertz",
    "devices.cycles_per_flop",
    "devices.kappa",
    "devices.amplifier_efficiency",
    "devices.circuit_watts",
    "server.deadline_seconds",
    "server.seconds",
)
"""Keys of the devices' costs, which matter only where devices compute and send by themselves."""

RULES = (
    *(
        Rule(
            f"radio.{key}",
            "radio.scheme",
            lambda s, _: s.radio.scheme.row.superposes,
            'it is for scheme = "linear"',
            training=True,
        )
        for key in LINEAR_ONLY
    ),
    *(
        Rule(
            f"radio.{key}",
            "radio.scheme",
            lambda s, _: s.radio.scheme.name != "error_free",
            "nothing disturbs this link, leave it out",
            training=True,
        )
        for key in OVER_THE_AIR
    ),
    Rule(
        "radio.interference",
        "radio.interferers",
        lambda s, _: bool(s.radio.interferers),
        "there is no interferer, give interferers",
    ),
    Rule(
        "radio.power_over",
        "radio.energy",
        lambda s, _: s.radio.power_over == "slot" or s.radio.energy == "per_slot",
        'energy = "per_round" limits means over a round',
        training=True,
    ),
    Rule(
        "radio.amplifier_smoothness",
        "radio.clipping_db",
        lambda s, _: s.radio.clipping_db != "off",
        "an ideal amplifier has none, give clipping_db",
    ),
    Rule(
        "radio.energy",
        "radio.design",
        lambda s, _: (
            s.radio.energy == "per_slot"
            or not s.radio.scheme.row.superposes
            or s.radio.design.row.share_energy is not None
        ),
        'it is for designs that share energy, such as "mmse"',
        training=True,
    ),
    *(
        Rule(
            f"server.{key}",
            "adapters.method",
            lambda s, _: not s.adapters.method.row.averages,
            "the method has its own rule, whose step size is devices.local_lr",
            training=True,
        )
        for key in ("optimizer", "lr", "schedule")
    ),
    Rule("tasks.sizes_sigma", "tasks.sizes", lambda _, t: t.sizes == "lognormal", 'it is for sizes = "lognormal"'),
    Rule(
        "tasks.text",
        "tasks.prompt",
        lambda _, t: not t.prompt,
        "it is for the default prompt, give only one of the two",
    ),
    Rule(
        "tasks.delimiter",
        "tasks.source",
        lambda _, t: _ends_with(t, ".csv", ".tsv"),
        "it is for .csv and .tsv files",
    ),
    Rule(
        "tasks.encoding",
        "tasks.source",
        lambda _, t: _ends_with(t, ".csv", ".tsv", ".json", ".jsonl"),
        "it is for text files",
    ),
    Rule(
        "tasks.streaming",
        "tasks.source",
        lambda _, t: (t.source or t.name).startswith(HUB),
        "it is for data sets, hf:OWNER/NAME",
    ),
    Rule("tasks.stratify", "tasks.kind", _is_classified, 'it is for kind = "classify"'),
    Rule("tasks.labels", "tasks.kind", _is_classified, 'it is for kind = "classify"'),
    Rule("tasks.classes", "tasks.kind", _is_classified, 'it is for kind = "classify"'),
    Rule("tasks.label_score", "tasks.kind", _is_classified, 'it is for kind = "classify"'),
    Rule("tasks.label_normalised", "tasks.kind", _is_classified, 'it is for kind = "classify"'),
    Rule(
        "tasks.label_score",
        "model.kind",
        lambda s, _: s.model.kind != "classifier",
        "a classifier has a row of its head for each class, leave it out",
    ),
    Rule(
        "tasks.label_normalised",
        "model.kind",
        lambda s, _: s.model.kind != "classifier",
        "a classifier has a row of its head for each class, leave it out",
    ),
    *(
        Rule(f"tasks.{key}", "tasks.kind", _is_chat, 'it is for kind = "chat"')
        for key in ("messages", "system", "template", "replies")
    ),
    *(
        Rule(
            f"tasks.{key}",
            "tasks.messages",
            lambda _, t: not t.messages or task_kind(t) != "chat",
            "it is for pairs of a message and a reply, give only one of the two",
        )
        for key in ("text", "label", "prompt")
    ),
    Rule(
        "tasks.max_new_tokens",
        "tasks.kind",
        lambda _, t: task_kind(t) != "classify",
        'it is for kind = "generate" or "chat"',
    ),
    Rule(
        "tasks.power_dbm",
        "adapters.method",
        lambda s, _: not s.adapters.method.row.pooled,
        "it is for methods that transmit, leave it out",
    ),
    *(
        Rule(
            key,
            "adapters.method",
            lambda s, _: not s.adapters.method.row.pooled,
            "its workers stand for no devices of their own and nothing is charged, leave it out",
            training=True,
        )
        for key in POOLED_WITHOUT
    ),
    Rule(
        "server.downlink_bits",
        "adapters.method",
        lambda s, _: not (s.adapters.method.row.pooled or s.adapters.method.row.averages),
        "it is for methods whose server broadcasts its steps, leave it out",
        training=True,
    ),
    Rule(
        "server.air_seconds_of",
        "server.air_seconds",
        lambda s, _: s.server.air_seconds is not None,
        "it is for a budget on air, set air_seconds",
        training=True,
    ),
    Rule("adapters.head", "model.kind", lambda s, _: s.model.kind != "causal", 'it is for kind = "classifier"'),
    Rule(
        "devices.local_lr",
        "devices.local_steps",
        lambda s, _: s.devices.local_steps > 1 or s.adapters.method.row.averages,
        "it is for local_steps above 1, and server.lr sets the step",
    ),
    Rule(
        "devices.proximal_mu",
        "devices.local_steps",
        lambda s, _: s.devices.local_steps > 1,
        "it is for local_steps above 1, because the first step starts where the term is 0",
    ),
    Rule(
        "devices.memory",
        "radio.scheme",
        lambda s, _: s.radio.scheme.row.leaves_unsent(s.radio.scheme.options),
        'it is for schemes whose devices know what they leave out, such as "linear" and digital(quantizer=top_k)',
        training=True,
    ),
    Rule(
        "devices.memory_gb",
        "devices.chunk",
        lambda s, _: s.devices.chunk == 0,
        "it is for chunk = 0, give only one of the two",
    ),
    Rule(
        "radio.noise_dbm",
        "radio.snr_db",
        lambda s, _: s.radio.snr_db is None,
        "each sets the noise, give only one of the two",
    ),
    Rule(
        "radio.pilot_contamination_db",
        "radio.pilots",
        lambda s, _: s.radio.pilots != "perfect",
        "it is for pilots, give their number",
        additional=("radio.csi_error", "radio.scheme"),
    ),
    Rule(
        "radio.feedback_delay_s",
        "radio.csi_age_correlation",
        lambda s, _: s.radio.csi_age_correlation is None,
        "each sets the age of the estimates, give only one of the two",
    ),
    Rule(
        "radio.speed_kmh",
        "radio.coherence_symbols",
        _is_in_motion,
        "it is for a delay above 0, for derived blocks and for channels that change within a block",
        additional=(
            *("radio.feedback_delay_s", "radio.subcarrier_groups", "radio.within_block", "radio.channel"),
            "radio.scheme",
        ),
    ),
    Rule(
        "radio.speed_kmh",
        "radio.channel",
        lambda s, _: s.radio.channel.options.get("speed_mps") is None,
        "the channel has its own, leave it out",
    ),
    Rule(
        "radio.coherence_error",
        "radio.coherence_symbols",
        lambda s, _: s.radio.has_derived_blocks,
        'it is for coherence_symbols or subcarrier_groups = "derived"',
        additional=("radio.subcarrier_groups", "radio.channel", "radio.scheme"),
    ),
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
        "every task has its own, leave it out",
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
    Rule("radio.path_loss_exponent", "radio.channel", _uses_log_distance, "the channel has its own, leave it out"),
    Rule("radio.path_loss_1m_db", "radio.channel", _uses_log_distance, "the channel has its own, leave it out"),
    Rule("radio.height_m", "radio.channel", _uses_log_distance, "the channel has its own, leave it out"),
    *(
        Rule(f"radio.{key}", "radio.channel", _uses_positions, "the file has its own channels, leave it out")
        for key in ("cell_radius_m", "min_distance_m", "edge_distance_m", "square_m")
    ),
    Rule("run.eval_every", "tasks.dev_samples", _has_dev, "a task should have a dev split to evaluate"),
    Rule(
        "run.score",
        "tasks.dev_samples",
        lambda s, t: s.run.score == "test" or _has_dev(s, t),
        "a task should have a dev split to score",
    ),
    Rule("run.cross_eval", "run.score", lambda s, _: s.run.score != "dev", 'it is for score = "test" or "both"'),
    Rule("run.cross_eval", "tasks", lambda s, _: len(s.tasks) > 1, "it is for at least two tasks"),
    *(
        Rule(
            f"theory.{key}",
            "theory.meter_every",
            _is_monitored,
            'it is for a monitored run, set meter_every or server.lr = "theory"',
            training=True,
            additional=("server.lr",),
        )
        for key in TheorySettings.model_fields
        if key != "meter_every"
    ),
)
"""The rules. Options of choices have none: a choice takes only its own."""


@dataclass(frozen=True)
class IneffectiveKey:
    """A key without effect.

    path: its position in the tree; a task is given by its index. line: the message. conditions: the keys that can
    disable it.
    """

    path: tuple[str, ...]
    line: str
    conditions: tuple[str, ...] = ()


def ineffective_keys(settings: Settings, written: bool = True, training: bool = True) -> Iterator[IneffectiveKey]:
    """Find keys that have no effect with the other settings.

    written: only keys that the user wrote. training: whether the settings are those of a run.
    """
    for rule in RULES:
        section, key = rule.key.split(".")
        for path, name, task in _tables(settings, section):
            table = task if section == "tasks" else getattr(settings, section)
            if (rule.training and not training) or rule.applies(settings, task):
                continue
            value = getattr(table, key)
            if written and (key not in table.model_fields_set or _is_nothing(key, value)):
                continue
            reason = _condition(settings, _deciding_key(settings, rule), task, name)
            line = f"{name}.{key} = {format_value(value)}: does nothing with {reason}; {rule.remedy}"
            yield IneffectiveKey((*path, key), line, (rule.condition, *rule.additional))
    # If a column decides how many devices a task has, the number is not known yet.
    devices, min_devices = sum(task.devices for task in settings.tasks), settings.federation.min_devices
    if min_devices > devices and all(task.devices for task in settings.tasks):
        yield IneffectiveKey(
            ("federation", "min_devices"),
            f"federation.min_devices = {min_devices}: the tasks have {devices} devices; should be at most that (0: "
            f"all)",
        )


def _is_nothing(key: str, value: Any) -> bool:
    """Check whether a value means "off". 0 dB and 0 dBm do not."""
    return value in (None, "", (), {}) or (value == 0 and not key.endswith(("_db", "_dbm")))


def _tables(settings: Settings, section: str) -> list[tuple[tuple[str, ...], str, TaskSettings]]:
    """List (path in the tree, name in messages, task) of every table of a section; any task for other sections."""
    if section != "tasks":
        return [((section,), section, settings.tasks[0])]
    return [(("tasks", str(n)), f"tasks.{task.name}", task) for n, task in enumerate(settings.tasks)]


def _deciding_key(settings: Settings, rule: Rule) -> str:
    """Return the key to name in a message: of those that decide, the first that the user wrote."""
    if "radio.scheme" in rule.additional and settings.radio.scheme.name == "error_free":
        return "radio.scheme"
    for key in (rule.condition, *rule.additional):
        section, _, last = key.partition(".")
        if section == "radio" and last in settings.radio.model_fields_set:
            return key
    return rule.condition


def _condition(settings: Settings, key: str, task: TaskSettings, name: str) -> str:
    """Write the deciding key with its value."""
    if key == "tasks":
        return f"one task, {task.name}"
    section, last = key.split(".")
    if key == "tasks.kind":
        return f'{name}.kind = "{task_kind(task)}"'
    if section == "tasks" and name.startswith("tasks."):
        return f"{name}.{last} = {format_value(getattr(task, last))}"
    if section == "tasks":
        return f"tasks.*.{last} = {format_value(getattr(task, last))}"
    return f"{key} = {format_value(getattr(getattr(settings, section), last))}"


def disabled_keys(settings: Settings, overridden: Collection[str]) -> list[IneffectiveKey]:
    """List the keys of a run's file that have no effect because of a key that an override sets.

    overridden: keys that overrides set, `section.key`.
    """
    return [key for key in ineffective_keys(settings) if is_overridden(key, overridden)]


def is_overridden(key: IneffectiveKey, overridden: Collection[str]) -> bool:
    """Check whether an override disables a key that only the file sets. overridden: as in `disabled_keys`."""
    return (
        any(condition in overridden for condition in key.conditions)
        and f"{key.path[0]}.{key.path[-1]}" not in overridden
    )


def refuse_ineffective(
    source: str, points: Sequence[Settings], training: bool = True, overridden: Collection[str] = ()
) -> list[str]:
    """Raise UserError with a line per key that has no effect in any of the points.

    source: name of the file. points: the settings of a run, or those of all points of a grid. overridden: keys that
    stand in the place of the file's, `section.key`. A key of the file that has no effect because of one of them is no
    fault: lines about such keys are returned.
    """
    keys = [{key.path: key for key in ineffective_keys(settings, True, training)} for settings in points]
    ineffective = [key for path, key in keys[0].items() if all(path in point for point in keys)] if keys else []
    if lines := [key.line for key in ineffective if not is_overridden(key, overridden)]:
        raise UserError("\n".join(f"{source}: {line}" for line in lines))
    return [key.line for key in ineffective]


def settings_notes(settings: Settings) -> list[str]:
    """List warnings about valid settings that the user may not intend, a line each, for the start of a run."""
    radio, lines = settings.radio, list[str]()
    directions = {getattr(task.metric.find_row(), "larger_is_better", True) for task in settings.tasks}
    if len(directions) > 1:
        smaller = [
            task.name for task in settings.tasks if not getattr(task.metric.find_row(), "larger_is_better", True)
        ]
        lines.append(
            f"tasks.{smaller[0]}.metric: smaller is better, unlike in other tasks, so the average says nothing"
        )
    if radio.scheme.name == "error_free" and (keys := [key for key in SIGNAL_KEYS if key in radio.model_fields_set]):
        verb = "does" if len(keys) == 1 else "do"
        lines.append(
            f'{", ".join(f"radio.{key}" for key in keys)}: {verb} nothing with radio.scheme = "error_free", on which '
            "no signal is sent, but count for the seconds of the downlink"
        )
    server, has_step = settings.server, not settings.adapters.method.row.averages
    if has_step and server.optimizer.name == "sgd" and "lr" not in server.model_fields_set:
        lines.append(
            f"server.lr = {server.lr}: is the default for adam, whose steps do not depend on the size of gradients; "
            "sgd usually needs a rate some hundred times as large"
        )
    threshold = radio.design.options.get("truncation") if radio.design.name == "channel_inversion" else None
    is_relative = radio.normalizer == "per_device" and isinstance(threshold, float) and threshold > 0
    if settings.devices.memory and radio.scheme.row.superposes and is_relative:
        lines.append(
            f'devices.memory, radio.design = "{radio.design.label}": with normalizer = "per_device" the threshold '
            "falls on devices with much to send, and the more one remembers, the longer it is silent; "
            'normalizer = "common" or fade_truncation_db does without'
        )
    if not radio.channel.row.standard:
        return lines
    scenario, rural = radio.has_path_loss, radio.channel.name == "rma"
    highest, max_distance = (30e9, 10_000.0) if rural else (100e9, 5_000.0)
    farthest = radio.cell_radius_m + (0.0 if radio.topology == "single_cell" else 2 * radio.edge_distance_m)
    limits = (
        ("carrier_hz", radio.carrier_hz, 0.5e9, highest, "Hz", True),
        ("bandwidth_hz", radio.bandwidth_hz, 0.0, min(2e9, 0.1 * radio.carrier_hz), "Hz", True),
        ("min_distance_m", radio.min_distance_m, 10.0, max_distance, "m", scenario),
        ("cell_radius_m (and edge_distance_m)", farthest, 10.0, max_distance, "m", scenario),
    )
    for key, value, low, high, unit, relevant in limits:
        if relevant and not low <= value <= high:
            lines.append(
                f"radio.{key}: {value:g} {unit} is outside the range of {radio.channel.row.standard} for "
                f'"{radio.channel.name}", '
                f"{low:g} to {high:g} {unit}; it is used all the same"
            )
    return lines


def effective_tree(settings: Settings, training: bool = True) -> dict[str, Any]:
    """Return the tree of the settings without keys that have no effect. Runs of equal trees are equal."""
    tree = settings.model_dump(mode="json", exclude_none=True)
    remove_keys(tree, (key.path for key in ineffective_keys(settings, False, training)))
    return tree


def default_keys_without_effect(settings: Settings) -> list[tuple[str, ...]]:
    """List the paths of keys that have no effect and are at their defaults. A full settings file leaves them out."""
    paths = []
    for ineffective in ineffective_keys(settings, False):
        section, *inner, key = ineffective.path
        table: Any = getattr(settings, section)
        table = table[int(inner[0])] if inner else table
        value = getattr(table, key)
        value = value.label if isinstance(value, Choice) else value
        if key not in table.model_fields_set or value == type(table).model_fields[key].default:
            paths.append(ineffective.path)
    return paths


def remove_keys(tree: dict[str, Any], paths: Iterable[tuple[str, ...]]) -> None:
    """Remove keys from a tree of settings."""
    for *parents, key in paths:
        table: Any = tree
        for part in parents:
            table = table[int(part)] if isinstance(table, list) else table.get(part, {})
        table.pop(key, None)


def format_value(value: Any) -> str:
    """Write a value as a settings file does, printable and cut to one line."""
    try:
        text = str(value).lower() if isinstance(value, bool) else str(value)
        text = f'"{text}"' if isinstance(value, (str, Choice)) else text
    except ValueError:  # an integer of thousands of digits
        text = "a number of thousands of digits"
    text = printable(text[:61]).replace("\n", "\\n")
    return text if len(text) <= 60 else text[:57] + "..."
