"""Settings that do nothing beside others: refused where the user wrote them, left out where they are defaults."""

import random
import tomllib
from pathlib import Path

import pytest
import tomlkit

from airpfed.config.applicability import RULES, Rule, effective_tree, ineffective_keys, settings_notes, task_kind
from airpfed.config.experiment_files import FOLDER
from airpfed.config.settings_file import read_new_settings, read_settings, write_settings
from airpfed.core.errors import UserError
from airpfed.core.paths import CHAT_TASKS
from airpfed.tasks.catalog import CATALOG

BASE = """
[[tasks]]
name = "sst2"

[[tasks]]
name = "gym:basic_arithmetic"
"""

METERED = [f"theory.{key}" for key in ("draws", "pilot_rounds", "hessian_samples", "lanczos_steps", "safety")]
METERED += [f"theory.{key}" for key in ("beta", "c", "sigma_sgd2", "lam", "sigma_dif2")]
VALUES = {"theory.draws": "30", "theory.pilot_rounds": "3", "theory.hessian_samples": "4", "theory.lanczos_steps": "4"}
RADIO = {
    "design": "mmse",
    "energy": "per_slot",
    "correlation": "0.5",
    "phase_error_deg": "3.0",
    "carrier_offset_hz": "10.0",
    "timing_drift_s": "1e-9",
    "adc_bits": "4",
    "noise_alpha": "1.5",
    "receive_clipping": "4.0",
    "mixing": "full",
    "power_over": "symbol",
    "fade_truncation_db": "20.0",
    "packing": "real",
    "csi_error": "0.1",
    "clipping_db": "3.0",
    "outage": "0.1",
    "coherence_symbols": "100",
    "subcarrier_groups": "2",
    "pilots": "3",
    "feedback_delay_s": "1e-3",
    "csi_age_correlation": "0.9",
    "within_block": "constant",
    "feedback_bits": "8",
    "interferers": "[{x_m=300.0}]",
}
EXAMPLES: dict[tuple[str, str], tuple[list[str], list[str]]] = {
    **{
        (f"radio.{key}", "radio.scheme"): ([f"radio.{key}={value}", "radio.scheme=error_free"], ["radio.scheme=linear"])
        for key, value in RADIO.items()
    },
    ("radio.personal_slots", "radio.scheme"): (
        ["radio.personal_slots=2", "radio.access=auto", "radio.scheme=digital"],
        ["radio.scheme=linear"],
    ),
    ("radio.interference", "radio.interferers"): (
        ["radio.interference=mean"],
        ["radio.interferers=[{x_m=300.0}]"],
    ),
    ("radio.amplifier_smoothness", "radio.clipping_db"): (
        ["radio.amplifier_smoothness=2.0"],
        ["radio.clipping_db=3.0"],
    ),
    ("radio.power_over", "radio.energy"): (
        ["radio.power_over=symbol", "radio.energy=per_round", "radio.design=mmse"],
        ["radio.energy=per_slot"],
    ),
    ("radio.energy", "radio.design"): (["radio.energy=per_round"], ["radio.design=mmse"]),
    ("server.optimizer", "adapters.method"): (
        ["server.optimizer=sgd", "adapters.method=fedex", "radio.scheme=error_free"],
        ["adapters.method=fedit"],
    ),
    ("server.lr", "adapters.method"): (
        ["server.lr=0.1", "adapters.method=flora", "radio.scheme=error_free"],
        ["adapters.method=fedit"],
    ),
    **{
        (key, "adapters.method"): (
            [f"{key}={value}", "adapters.method=centralised", "radio.scheme=error_free"],
            ["adapters.method=fedit"],
        )
        for key, value in {
            "devices.hertz": "1e9",
            "devices.cycles_per_flop": "1.0",
            "devices.kappa": "1e-27",
            "devices.amplifier_efficiency": "0.5",
            "devices.circuit_watts": "0.2",
            "server.deadline_seconds": "3.0",
            "server.seconds": "3.0",
        }.items()
    },
    ("server.downlink_bits", "adapters.method"): (
        ["server.downlink_bits=4", "adapters.method=fedex", "radio.scheme=error_free"],
        ["adapters.method=fedit"],
    ),
    ("server.air_seconds_of", "server.air_seconds"): (["server.air_seconds_of=both"], ["server.air_seconds=1.0"]),
    ("tasks.sizes_sigma", "tasks.sizes"): (["tasks.sst2.sizes_sigma=0.5"], ["tasks.sst2.sizes=lognormal"]),
    ("tasks.text", "tasks.prompt"): (["tasks.sst2.text=body", "tasks.sst2.prompt={body}"], ["tasks.sst2.prompt="]),
    ("tasks.delimiter", "tasks.source"): (["tasks.sst2.delimiter=;"], ["tasks.sst2.source=a.csv"]),
    ("tasks.encoding", "tasks.source"): (
        ["tasks.sst2.encoding=windows-1252", "tasks.sst2.source=a.parquet"],
        ["tasks.sst2.source=a.JSONL"],
    ),
    ("tasks.streaming", "tasks.source"): (
        ["tasks.sst2.streaming=true", "tasks.sst2.source=a.csv"],
        ["tasks.sst2.source=hf:owner/name"],
    ),
    ("tasks.stratify", "tasks.kind"): (
        ["tasks.sst2.stratify=true", "tasks.sst2.kind=generate"],
        ["tasks.sst2.kind=classify"],
    ),
    ("tasks.labels", "tasks.kind"): (
        ["tasks.sst2.labels={a='b'}", "tasks.sst2.kind=generate"],
        ["tasks.sst2.kind=classify"],
    ),
    ("tasks.classes", "tasks.kind"): (
        ["tasks.sst2.classes=['a']", "tasks.sst2.kind=generate"],
        ["tasks.sst2.kind=auto"],
    ),
    ("tasks.label_score", "tasks.kind"): (
        ["tasks.sst2.label_score=words", "tasks.sst2.kind=generate"],
        ["tasks.sst2.kind=classify"],
    ),
    ("tasks.label_normalised", "tasks.kind"): (
        ["tasks.sst2.label_normalised=true", "tasks.sst2.kind=chat"],
        ["tasks.sst2.kind=auto"],
    ),
    ("tasks.label_score", "model.kind"): (
        ["tasks.sst2.label_score=words", "model.kind=classifier"],
        ["model.kind=causal"],
    ),
    ("tasks.label_normalised", "model.kind"): (
        ["tasks.sst2.label_normalised=true", "model.kind=classifier"],
        ["model.kind=auto"],
    ),
    **{
        (f"tasks.{key}", "tasks.kind"): (
            [f"tasks.sst2.{key}={value}", "tasks.sst2.kind=generate"],
            ["tasks.sst2.kind=chat"],
        )
        for key, value in {"messages": "log", "system": "be kind", "template": "chatml", "replies": "last"}.items()
    },
    **{
        (f"tasks.{key}", "tasks.messages"): (
            [f"tasks.sst2.{key}={value}", "tasks.sst2.messages=log", "tasks.sst2.kind=chat"],
            ["tasks.sst2.messages="],
        )
        for key, value in {"text": "body", "label": "reply", "prompt": "{body}"}.items()
    },
    ("tasks.max_new_tokens", "tasks.kind"): (["tasks.sst2.max_new_tokens=4"], ["tasks.sst2.kind=generate"]),
    ("tasks.power_dbm", "adapters.method"): (
        ["tasks.sst2.power_dbm=3.0", "adapters.method=centralised", "radio.scheme=error_free"],
        ["adapters.method=fedex"],
    ),
    ("adapters.head", "model.kind"): (["adapters.head=global", "model.kind=causal"], ["model.kind=auto"]),
    ("devices.local_lr", "devices.local_steps"): (["devices.local_lr=1e-3"], ["devices.local_steps=2"]),
    ("server.schedule", "adapters.method"): (
        ["server.schedule=cosine", "adapters.method=fedex", "radio.scheme=error_free"],
        ["adapters.method=fedit"],
    ),
    ("devices.proximal_mu", "devices.local_steps"): (["devices.proximal_mu=0.1"], ["devices.local_steps=2"]),
    ("devices.memory", "radio.scheme"): (
        ["devices.memory=true", "radio.scheme=error_free"],
        ["radio.scheme=digital(quantizer=top_k)"],
    ),
    ("devices.memory_gb", "devices.chunk"): (["devices.memory_gb=4.0", "devices.chunk=1"], ["devices.chunk=0"]),
    ("radio.noise_dbm", "radio.snr_db"): (["radio.noise_dbm=0.0", "radio.snr_db=10"], ["radio.snr_db="]),
    ("radio.noise_figure_db", "radio.snr_db"): (["radio.noise_figure_db=0.0", "radio.snr_db=10"], ["radio.snr_db="]),
    ("radio.noise_figure_db", "radio.noise_dbm"): (
        ["radio.noise_figure_db=7.0", "radio.noise_dbm=-90.0"],
        ["radio.noise_dbm=thermal"],
    ),
    ("radio.power_dbm", "tasks.power_dbm"): (
        ["radio.power_dbm=20.0", "tasks.*.power_dbm=1.0"],
        ["tasks.sst2.power_dbm="],
    ),
    ("radio.pilot_contamination_db", "radio.pilots"): (
        ["radio.pilot_contamination_db=0.0", "radio.pilots=perfect"],
        ["radio.pilots=2"],
    ),
    ("radio.feedback_delay_s", "radio.csi_age_correlation"): (
        ["radio.feedback_delay_s=1e-3", "radio.csi_age_correlation=0.9"],
        ["radio.csi_age_correlation="],
    ),
    ("radio.speed_kmh", "radio.coherence_symbols"): (
        ["radio.speed_kmh=3.0", "radio.coherence_symbols=100"],
        ["radio.coherence_symbols=derived"],
    ),
    ("radio.speed_kmh", "radio.channel"): (
        ["radio.speed_kmh=3.0", "radio.feedback_delay_s=1e-3", "radio.channel=tdl_a(delay_spread_s=1e-7)"],
        ["radio.channel=rayleigh"],
    ),
    ("radio.coherence_error", "radio.coherence_symbols"): (
        ["radio.coherence_error=0.01", "radio.coherence_symbols=100"],
        ["radio.subcarrier_groups=derived"],
    ),
    ("radio.access_points", "radio.layout"): (["radio.access_points=400"], ["radio.layout=cell_free"]),
    ("radio.square_m", "radio.layout"): (["radio.square_m=50.0"], ["radio.layout=cell_free"]),
    ("radio.cell_radius_m", "radio.layout"): (
        ["radio.cell_radius_m=50.0", "radio.layout=cell_free"],
        ["radio.layout=discs"],
    ),
    ("radio.min_distance_m", "radio.layout"): (
        ["radio.min_distance_m=5.0", "radio.layout=cell_free"],
        ["radio.layout=discs"],
    ),
    ("radio.edge_distance_m", "radio.topology"): (["radio.edge_distance_m=400.0"], ["radio.topology=joint"]),
    ("radio.shadowing_decorrelation_m", "radio.shadowing_db"): (
        ["radio.shadowing_decorrelation_m=9.0"],
        ["radio.shadowing_db=4.0"],
    ),
    ("radio.path_loss_exponent", "radio.channel"): (
        ["radio.path_loss_exponent=3.0", "radio.channel=umi"],
        ["radio.channel=rician"],
    ),
    ("radio.path_loss_1m_db", "radio.channel"): (
        ["radio.path_loss_1m_db=0.0", "radio.channel=uma"],
        ["radio.channel=rayleigh"],
    ),
    ("radio.height_m", "radio.channel"): (
        ["radio.height_m=5.0", "radio.channel=rma"],
        ["radio.channel=tdl_a(delay_spread_s=1e-7)"],
    ),
    **{
        (key, "radio.channel"): (
            [f"{key}=50.0", *more, "radio.channel=file(path=h.npz)"],
            ["radio.channel=rayleigh"],
        )
        for key, more in {
            "radio.cell_radius_m": (),
            "radio.min_distance_m": (),
            "radio.edge_distance_m": ("radio.topology=joint",),
            "radio.square_m": ("radio.layout=cell_free",),
        }.items()
    },
    ("run.eval_every", "tasks.dev_samples"): (
        ["run.eval_every=2", "tasks.*.dev_samples=0"],
        ["tasks.sst2.dev_samples=1"],
    ),
    ("run.score", "tasks.dev_samples"): (["run.score=dev", "tasks.*.dev_samples=0"], ["run.score=test"]),
    ("run.cross_eval", "run.score"): (["run.cross_eval=true", "run.score=dev"], ["run.score=both"]),
    ("run.cross_eval", "tasks"): (["run.cross_eval=true"], ["run.cross_eval=false"]),
    **{(key, "theory.meter_every"): ([f"{key}={VALUES.get(key, '2.0')}"], ["theory.meter_every=0"]) for key in METERED},
}
"""Of every rule: what it refuses, and what makes it right."""

MORE = {
    **{(f"radio.{key}={RADIO[key]}", "radio.scheme=digital"): key for key in ("design", "correlation", "packing")},
    **{(f"radio.{key}={RADIO[key]}", "radio.scheme=digital"): key for key in ("phase_error_deg", "fade_truncation_db")},
    ("radio.energy=per_round", "radio.design=naive_ao"): "energy",
    ("radio.path_loss_exponent=3.0", "radio.channel=rma"): "path_loss_exponent",
    ("radio.edge_distance_m=400.0", "radio.topology=single_cell"): "edge_distance_m",
    **{("radio.speed_kmh=30.0", f"radio.{key}"): "speed_kmh" for key in ("scheme=error_free", "coherence_symbols=500")},
    ("radio.speed_kmh=30.0", "radio.channel=file(path=h.npz)"): "speed_kmh",
    ("radio.coherence_error=0.02", "radio.scheme=error_free"): "coherence_error",
    ("radio.pilot_contamination_db=-20.0", "radio.scheme=error_free"): "pilot_contamination_db",
    ("radio.pilot_contamination_db=-20.0", "radio.csi_error=0.1"): "pilot_contamination_db",
    ("tasks.sst2.sizes_sigma=0.5", "tasks.sst2.sizes=equal"): "sizes_sigma",
    ("tasks.sst2.max_new_tokens=4", "tasks.sst2.kind=classify"): "max_new_tokens",
}
"""Further values of the deciding key: (setting, the deciding one) -> what the line names."""
CONTRADICTIONS = {
    ("radio.personal_slots=2", "radio.access=tdma"): "personal_slots",
    ("radio.backhaul_bits=4", "radio.topology=joint"): "backhaul_bits",
    ("radio.shadowing_db=4.0", "radio.channel=umi"): "shadowing_db",
    ("radio.topology=joint", "radio.layout=cell_free"): "topology",
    ("radio.channel=umi", "radio.layout=cell_free"): "channel",
    ("server.lr=theory", "server.optimizer=adam"): "lr",
    ("server.lr=theory", "server.optimizer=sgd(momentum=0.5)"): "lr",
    ("server.aggregator=median", "radio.scheme=digital"): "aggregator",
    ("adapters.method=fedex", "radio.scheme=linear"): "method",
}
"""Settings that exclude one another, whatever else stands there."""
OPTIONS = {
    "radio.design": {
        "truncation=0.1": ["uniform_forcing", "mmse", "debiased_mmse", "naive_ao", "continued_ao"],
        "starts=2": ["channel_inversion", "naive_ao", "continued_ao"],
        "debias=true": ["uniform_forcing", "mmse"],
    },
    "radio.scheme": {"bits=4": ["linear", "error_free"], "access=spatial": ["linear", "error_free"]},
    "radio.channel": {
        "k_db=3.0": ["rayleigh", "umi", "cdl_a", "tdl_a"],
        "delay_spread_s=1e-7": ["umi", "uma", "rma"],
        "time_correlation=0.5": ["umi", "cdl_a", "tdl_a"],
        "round_correlation=0.5": ["uma", "cdl_a", "tdl_a"],
        "speed_mps=3.0": ["rayleigh", "rician"],
    },
    "tasks.sst2.split": {"alpha=0.5": ["iid", "column"], "column=user": ["iid", "dirichlet"]},
    "server.optimizer": {"momentum=0.9": ["adam"], "beta1=0.9": ["sgd"], "beta2=0.9": ["sgd"], "epsilon=1e-8": ["sgd"]},
    "server.aggregator": {"trim=0.1": ["uplink", "median"]},
}
"""Choice -> option -> rows that do not have it."""
PAIRS = [(key, option, row) for key, options in OPTIONS.items() for option, rows in options.items() for row in rows]


def one_line(file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read_new_settings(file, overrides)
    assert "\n" not in str(caught.value), caught.value
    return str(caught.value)


def in_file(file: Path, *settings: str) -> None:
    """The settings as a file has them: a table of each section, and the tasks."""
    tree = tomlkit.parse(BASE)
    for setting in settings:
        path, _, value = setting.partition("=")
        section, *task, key = path.split(".")
        table = tree["tasks"][0] if task else tree.setdefault(section, tomlkit.table())
        try:
            table[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            table[key] = value
    file.write_text(tomlkit.dumps(tree))


def test_the_pairs_are_as_many_as_were_counted():
    assert len(PAIRS) + len(MORE) + len(CONTRADICTIONS) + len(EXAMPLES) >= 76


@pytest.mark.parametrize(("key", "option", "row"), PAIRS)
def test_an_option_of_another_row_is_refused_or_dropped_with_a_line(key, option, row, file):
    name = option.partition("=")[0]
    aggregates = ["radio.scheme=error_free"] if key == "server.aggregator" else []
    for overrides in (
        [f"{key}={row}", f"{key}.{option}"],
        [f"{key}.{option}", f"{key}={row}"],
        [f"{key}={row}({option})"],
    ):
        line = one_line(file, *aggregates, *overrides)
        assert name in line and f"no option of {row}" in line
    in_file(file, *aggregates, f"{key}={row}({option})")
    assert f"no option of {row}" in one_line(file)
    owner = {"radio.scheme": "digital", "server.optimizer": "sgd" if name == "momentum" else "adam"}.get(key) or {
        "truncation": "channel_inversion", "starts": "mmse", "k_db": "rician", "delay_spread_s": "rayleigh",
        "time_correlation": "rician", "round_correlation": "rayleigh", "speed_mps": "umi", "alpha": "dirichlet",
        "column": "column", "trim": "trimmed_mean",
    }.get(name)  # fmt: skip
    if owner is None:  # `debias` is gone
        return
    in_file(file, *aggregates, f"{key}={owner}({option})")
    notes: list[str] = []
    needs = [f"{key}.column=user"] if row == "column" else []
    needs += [f"{key}.delay_spread_s=1e-7"] if row in ("cdl_a", "tdl_a") else []
    read_new_settings(file, [f"{key}={row}", *needs], notes=notes)
    assert notes == [f"--set {key}={row}: drops {name} of {owner}"]


@pytest.mark.parametrize(("setting", "beside"), [*MORE, *CONTRADICTIONS])
def test_what_does_nothing_beside_another_value_is_refused_too(setting, beside, file):
    name, other = (MORE | CONTRADICTIONS)[setting, beside], beside.partition("=")[0].split(".")[-1]
    for overrides in ([setting, beside], [beside, setting]):
        line = one_line(file, *overrides)
        assert name in line and other in line
    in_file(file, setting, beside)
    line = one_line(file)
    assert name in line and other in line


@pytest.mark.parametrize(("setting", "beside"), MORE)
def test_what_the_command_line_disables_is_told_and_no_fault(setting, beside, file):
    in_file(file, setting)
    notes: list[str] = []
    read_new_settings(file, [beside], notes=notes)
    assert len(notes) == 1 and MORE[setting, beside] in notes[0] and beside.partition("=")[0].split(".")[-1] in notes[0]


def deciding(rule: Rule) -> list[str]:
    """The overrides of a rule's example that disable its key; none if a default does."""
    last = rule.condition.split(".")[-1]
    return [text for text in EXAMPLES[rule.key, rule.condition][0][1:] if text.split("=")[0].split(".")[-1] == last]


@pytest.mark.parametrize("rule", filter(deciding, RULES), ids=lambda rule: f"{rule.key} beside {rule.condition}")
def test_every_rule_tells_what_the_command_line_disables(rule, file):
    """The key stands in the file, what disables it on the line: no fault, but said."""
    setting, *beside = EXAMPLES[rule.key, rule.condition][0]
    decides = deciding(rule)
    in_file(file, setting, *(override for override in beside if override not in decides and "*" not in override))
    notes: list[str] = []
    read_new_settings(file, decides, notes=notes)
    assert any(rule.key.split(".")[-1] in note and rule.condition.split(".")[-1] in note for note in notes), notes


@pytest.mark.parametrize("key", ["power_dbm=10.0", "snr_db=3.0", "antennas=4", "channel=rician"])
def test_the_signals_keys_are_told_on_an_error_free_link(key, file):
    (line,) = settings_notes(read_new_settings(file, ["radio.scheme=error_free", f"radio.{key}"]))
    assert line.startswith(f"radio.{key.partition('=')[0]}: does nothing with radio.scheme")
    assert settings_notes(read_new_settings(file, [f"radio.{key}"])) == []


def test_a_memory_that_silences_its_device_is_told(file):
    """A threshold on strength over weight, where the weight grows with what a device remembers."""
    truncated = ["devices.memory=true", "radio.design=channel_inversion(truncation=0.5)"]
    (line,) = settings_notes(read_new_settings(file, truncated))
    assert line.startswith("devices.memory, radio.design") and "per_device" in line
    assert settings_notes(read_new_settings(file, [*truncated, "radio.normalizer=common"])) == []
    assert settings_notes(read_new_settings(file, [*truncated[:1], "radio.design=channel_inversion"])) == []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(BASE)
    return path


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.key} beside {rule.condition}")
def test_what_does_nothing_is_refused_with_both_keys_and_what_would_be_right(rule, file):
    wrong, right = EXAMPLES[rule.key, rule.condition]
    if rule.condition == "tasks":
        file.write_text('[[tasks]]\nname = "sst2"\n')
    read_settings(file, wrong)  # a run that is there is read as it is
    with pytest.raises(UserError) as caught:
        read_new_settings(file, wrong)
    line = str(caught.value)
    key, beside = rule.key.split(".")[-1], rule.condition.split(".")[-1]
    assert "\n" not in line and line.startswith(f"{file}: ")
    assert key in line and beside.removesuffix("s") in line and line.endswith(rule.remedy)
    read_new_settings(file, [*wrong, *right])


def test_every_rule_has_its_example():
    assert {(rule.key, rule.condition) for rule in RULES} == set(EXAMPLES)


def test_defaults_never_contradict(file):
    """A key counts where the user wrote it, also at its default; a value that asks for nothing does not."""
    for overrides in ([], ["radio.snr_db=3.0"], ["radio.layout=cell_free"], ["tasks.*.dev_samples=0"]):
        read_new_settings(file, overrides)
    read_new_settings(file, ["tasks.sst2.sizes_sigma=0", "run.cross_eval=false"])
    with pytest.raises(UserError, match=r"split.alpha: no option of iid; it has no options"):
        read_new_settings(file, ["tasks.sst2.split.alpha=0.5"])


def test_a_key_is_taken_back_by_an_empty_value(file):
    file.write_text(BASE + "[radio]\nsnr_db = 10.0\n")
    assert read_new_settings(file, ["radio.snr_db=", "radio.noise_dbm=-90"]).radio.snr_db is None


def test_the_theory_matters_to_a_plan_without_a_meter(file):
    read_new_settings(file, ["theory.draws=30"], training=False)


def test_more_devices_than_there_are_cannot_be_waited_for(file):
    with pytest.raises(UserError, match=r"federation.min_devices = 99: the tasks have 8 devices; should be at most"):
        read_new_settings(file, ["federation.min_devices=99"])
    read_new_settings(file, ["federation.min_devices=8"])
    by_column = ["tasks.sst2.devices=0", "tasks.sst2.split=column", "tasks.sst2.split.column=user"]
    read_new_settings(file, ["federation.min_devices=9", *by_column])


@pytest.mark.parametrize("overrides", [example[0] + example[1] for example in EXAMPLES.values()])
def test_written_settings_read_back_and_are_accepted(overrides, file, tmp_path):
    """A run's experiment.toml holds all keys but for those without effect, so that it can be run as it is."""
    settings = read_settings(file, overrides)
    write_settings(settings, tmp_path / "experiment.toml")
    assert read_settings(tmp_path / "experiment.toml") == settings
    if not list(ineffective_keys(settings)):
        assert read_new_settings(tmp_path / "experiment.toml") == settings


def test_written_settings_keep_what_has_no_effect_but_was_set(file, tmp_path):
    settings = read_settings(file, ["tasks.sst2.sizes_sigma=0.1", "radio.snr_db=3", "radio.noise_dbm=-80"])
    write_settings(settings, tmp_path / "experiment.toml")
    assert read_settings(tmp_path / "experiment.toml") == settings


def test_the_experiments_contradict_nowhere():
    paths = list(FOLDER.glob("*.toml"))
    assert paths
    for path in paths:
        read_new_settings(path)


def test_settings_that_differ_in_what_has_no_effect_are_the_same_run(file):
    one, other = (read_settings(file, [f"tasks.sst2.sizes_sigma={sigma}"]) for sigma in (0.1, 0.2))
    assert one != other and effective_tree(one) == effective_tree(other)
    assert effective_tree(one) != effective_tree(read_settings(file, ["tasks.sst2.split=dirichlet"]))


def test_what_is_generated_is_told_by_the_name():
    """`kind_of` needs no catalogue as long as this holds."""
    names = {name for name, entry in CATALOG.items() if entry.kind != "classify"}
    assert names == set(CHAT_TASKS) and all(CATALOG[name].kind == "chat" for name in names)


def test_the_kind_is_that_of_the_task(file):
    assert [task_kind(task) for task in read_settings(file).tasks] == ["classify", "generate"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["radio.carrier_hz=4e8"], ["radio.carrier_hz", "5e+08 to 1e+11 Hz"]),
        (["radio.carrier_hz=4e10", "radio.channel=rma"], ["5e+08 to 3e+10 Hz"]),
        (["radio.bandwidth_hz=4e8"], ["radio.bandwidth_hz", "0 to 3.5e+08 Hz"]),
        (["radio.min_distance_m=1.0"], ["radio.min_distance_m", "10 to 5000 m"]),
        (["radio.cell_radius_m=6000.0"], ["radio.cell_radius_m", "10 to 5000 m"]),
        (["radio.cell_radius_m=4900.0", "radio.topology=joint"], ["5700 m"]),
    ],
)
def test_a_3gpp_model_beyond_its_ranges_is_told(overrides, words, file):
    (line,) = settings_notes(read_new_settings(file, ["radio.channel=umi", *overrides]))
    assert all(word in line for word in [*words, "TR 38.901"])


def test_within_its_ranges_nothing_is_told(file):
    for channel in ("umi", "uma", "rma", "rayleigh"):
        assert settings_notes(read_new_settings(file, [f"radio.channel={channel}"])) == []
    assert settings_notes(read_new_settings(file, ["radio.channel=rma", "radio.cell_radius_m=6000.0"])) == []


def test_a_key_of_the_file_that_an_override_disables_is_told_and_no_fault(file):
    file.write_text(BASE + '[server]\nlr = 0.1\n[radio]\ndesign = "mmse"\n')
    notes: list[str] = []
    overrides = ["adapters.method=fedex", "radio.scheme=error_free"]
    read_new_settings(file, overrides, notes=notes)
    assert len(notes) == 2 and "radio.design" in notes[0] and "server.lr" in notes[1]
    with pytest.raises(UserError, match=r"server.lr = 0.2: does nothing with"):
        read_new_settings(file, [*overrides, "server.lr=0.2"])
    file.write_text(BASE + '[server]\nlr = 0.1\n[adapters]\nmethod = "fedex"\n[radio]\nscheme = "error_free"\n')
    with pytest.raises(UserError, match=r"server.lr = 0.1: does nothing with"):
        read_new_settings(file)


def written_is_accepted(settings, folder):
    """What a run writes of its settings, with and without the keys at their defaults, is accepted, and is the same."""
    for defaults in (True, False):
        write_settings(settings, folder / "experiment.toml", defaults=defaults)
        assert read_new_settings(folder / "experiment.toml") == settings


def key_of(setting):
    """`section.key` of a setting, whatever the task."""
    path = setting.partition("=")[0].split(".")
    return f"{path[0]}.{path[-1]}"


def disabling(example):
    """Settings of a file in which a key acts, and overrides after which it does nothing."""
    wrong, right = EXAMPLES[example]
    changed = {key_of(line) for line in right} - {example[0]}
    acting = [line for line in right if key_of(line) in changed and not line.endswith("=")]
    inside = [line for line in wrong if line is wrong[0] or (changed and key_of(line) not in changed)] + acting
    return inside, [line for line in wrong[1:] if line not in inside] or [
        f"{line.partition('=')[0]}=" for line in right
    ]


NOT_ALONE = {
    ("run.cross_eval", "tasks"): "no override takes a task away",
    **{(key, "theory.meter_every"): "an explicit 0 says that the keys are meant" for key in METERED},
}
"""Examples that no override disables: why."""


@pytest.mark.parametrize("example", [example for example in EXAMPLES if example not in NOT_ALONE])
def test_whatever_an_override_disables_is_told_and_not_written(example, file, tmp_path):
    """For every rule: the key acts in the file, an override disables it, and the run's own file can be run again."""
    inside, overrides = disabling(example)
    in_file(file, *inside)
    read_new_settings(file)
    notes: list[str] = []
    settings = read_new_settings(file, overrides, notes=notes)
    assert [line for line in notes if example[0].rpartition(".")[2] in line], notes
    assert not [key for key in ineffective_keys(settings) if key.path[-1] == example[0].rpartition(".")[2]]
    assert settings == read_settings(file, overrides), "resumed with the same words"
    written_is_accepted(settings, tmp_path)


def test_what_a_run_writes_is_accepted_again(file, tmp_path):
    """Random files of two rules' keys, with random overrides: an accepted run writes a file that is accepted again."""
    rng, accepted = random.Random(0), 0
    for _ in range(120):
        pairs = [disabling(example) for example in rng.sample(sorted(EXAMPLES), 2)]
        lines = [line for inside, disabled in pairs for line in (*inside, *disabled)]
        try:
            in_file(file, *(line for line in lines if not line.endswith("=") and rng.random() < 0.6))
            settings = read_new_settings(file, [line for line in lines if rng.random() < 0.4])
        except UserError:
            continue
        accepted += 1
        written_is_accepted(settings, tmp_path)
    assert accepted > 30


def test_a_key_with_two_conditions_is_told_whichever_disables_it(file, tmp_path):
    in_file(file, "theory.draws=30", "server.lr=theory", "server.optimizer=sgd")
    notes: list[str] = []
    settings = read_new_settings(file, ["server.lr=0.1"], notes=notes)
    assert settings.theory.draws == 20 and [line for line in notes if "theory.draws" in line]
    written_is_accepted(settings, tmp_path)


def test_a_study_keeps_what_a_run_would_drop(file):
    """All designs are compared under the energy of the file, whichever design an override names."""
    in_file(file, "radio.energy=per_round", "radio.design=mmse")
    overrides = ["radio.design=uniform_forcing"]
    assert read_new_settings(file, overrides).radio.energy == "per_slot"
    assert read_new_settings(file, overrides, training=False).radio.energy == "per_round"


def test_what_an_override_disables_is_not_in_the_written_file(file, tmp_path):
    """So that the experiment.toml of a run, and of a federation's server, can be run as it is."""
    file.write_text(BASE + '[radio]\ndesign = "mmse"\ncoherence_symbols = 100\nsnr_db = 3.0\n')
    settings = read_new_settings(file, ["radio.scheme=error_free"])
    assert settings == read_settings(file, ["radio.scheme=error_free"]), "resumed with the same words"
    for defaults in (True, False):
        write_settings(settings, tmp_path / "experiment.toml", defaults=defaults)
        assert read_new_settings(tmp_path / "experiment.toml") == settings
    assert "mmse" not in (tmp_path / "experiment.toml").read_text()


def test_sgd_with_adams_default_rate_is_told(file):
    (line,) = settings_notes(read_new_settings(file, ["server.optimizer=sgd"]))
    assert line.startswith("server.lr = 0.002: is the default for adam")
    for overrides in (["server.optimizer=sgd", "server.lr=0.002"], ["server.optimizer=adamw"], []):
        assert settings_notes(read_new_settings(file, overrides)) == []
