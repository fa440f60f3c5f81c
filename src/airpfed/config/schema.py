"""The settings of an experiment: a frozen tree, read from TOML, with units in the names.

Each key has its meaning, unit and default here, and the reference page is generated from this file. Only the folders
from `experiment` upwards use these classes; the mathematics receives plain values.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from airpfed.config.choice import Choice, ChoiceOf
from airpfed.core.files import MAX_NAME_LENGTH, RESERVED_NAME, collision_key, file_name_of
from airpfed.core.rows import label_of

Words = Annotated[tuple[str, ...], Field(strict=False)]
Indices = Annotated[tuple[int, ...], Field(strict=False)]
Numbers = Annotated[tuple[float, ...], Field(strict=False)]

FLAT_USES = 20_000
"""Channel uses of a coherence block that is flat over the band, unless another number is given: 1 ms at 20 MHz."""
DELAY_SPREAD_S = 50e-9
"""The rms delay spread of channels by default, and that of derived blocks where a channel has no such option."""
MAX_GENERATED = 1_000_000
"""Samples of a task that is generated. All of them are held in memory."""
Payload = Literal["float32", "bfloat16", "int8", "int4"]


class Section(BaseModel):
    """The base class of all sections: frozen and strictly typed, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelSettings(Section):
    """The frozen base model."""

    base: str = Field(
        "smollm2-135m",
        description="catalogue name (`airpfed tasks`), hub name (OWNER/NAME or OWNER/NAME@REVISION), directory or "
        ".gguf file",
    )
    kind: Literal["auto", "causal", "classifier"] = Field(
        "auto", description="causal LM or sequence classifier; auto reads the base model's config"
    )
    max_tokens: int = Field(
        48, ge=4, le=1_000_000, description="largest number of tokens of a sample; a longer prompt loses its middle"
    )
    trust_remote_code: bool = Field(
        False, description="whether Python code in a model's folder or hub repository may run on this machine"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="type of the base's weights and activations; bfloat16 halves their memory and rounds each value by "
        "up to 2^-9; adapters, losses and sums stay float32",
    )
    quantization: Literal["none", "nf4", "fp4", "int8", "torchao_int8"] = Field(
        "none",
        description="quantisation of the base's linear layers when it is loaded: 4 bits (nf4, fp4) or LLM.int8() "
        "(int8) of bitsandbytes, 8-bit weights of torchao; a base whose files are quantised stays as it is stored",
    )
    checkpointing: bool = Field(
        False,
        description="whether layers with adapters keep only their inputs for the backward pass, which computes them "
        "again: less memory, the same numbers, about a third more time",
    )


class AdapterSettings(Section):
    """The adapters: the method, the ranks, and the layers that get them."""

    method: Annotated[Choice, ChoiceOf("methods")] = Field(
        "airpfed", validate_default=True, description="fine-tuning method: the scopes of the adapter blocks"
    )
    rank_shared: int = Field(4, ge=0, le=100_000, description="R_s, rank of the shared s-adapter")
    rank_personal: int = Field(4, ge=0, le=100_000, description="R_p, rank of the personal p-adapter")
    head: Literal["task", "global", "device", "frozen"] = Field(
        "task",
        description="scope of a classifier's new head: one per task, one for all, one per device, or frozen "
        "as initialised",
    )
    alpha: float = Field(16.0, gt=0, le=1e6, description="LoRA alpha; both blocks are scaled by alpha / (R_s + R_p)")
    rslora: bool = Field(
        False, description="scale by alpha over the square root of R_s + R_p instead (rsLoRA; Kalajdzievski, 2023)"
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="LoRA dropout: share of a layer's inputs that its adapters do not see in training; samples are "
        "then computed one at a time, each with a random stream of its own",
    )
    target_modules: Annotated[str, Field(min_length=1)] | Annotated[Words, Field(min_length=1)] = Field(
        ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
        description='names of the linear layers with adapters; or a text: "all-linear", or a regular expression that '
        "whole names match, as PEFT takes it",
    )
    layers: Annotated[str, Field(pattern=r"^(all|last-[1-9][0-9]*)$")] | Indices = Field(
        "all", description='"all", "last-10" (the ten nearest the output), or a list of layer indices'
    )

    @model_validator(mode="after")
    def _check_ranks(self) -> "AdapterSettings":
        if self.rank_shared + self.rank_personal == 0:
            raise ValueError("rank_shared + rank_personal = 0: the total rank should be at least 1")
        return self

    @property
    def scale(self) -> float:
        """The factor c of B A."""
        rank = self.rank_shared + self.rank_personal
        return self.alpha / (float(rank) ** 0.5 if self.rslora else rank)


def _row_label(source: Any) -> Any:
    """Write a source with options, `{ name = "mine", year = 2024 }`, as `mine(year=2024)`."""
    return label_of(source) if isinstance(source, dict) and isinstance(source.get("name"), str) else source


class TaskSettings(Section):
    """A task: the source of its samples, their prompts, and their split over the devices."""

    name: str = Field(
        min_length=1,
        max_length=MAX_NAME_LENGTH,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9_:-])?$",
        description="name of the task in all outputs",
    )
    source: Annotated[str, BeforeValidator(_row_label)] = Field(
        "",
        description="catalogue name, row of `airpfed list sources`, .csv/.tsv/.jsonl/.json/.parquet file, "
        "hf:OWNER/NAME or "
        "hf:./folder; default: the name",
    )
    kind: Literal["auto", "classify", "generate", "chat"] = Field(
        "auto", description="classify, generate or chat; auto: the catalogue's kind, classify for the user's own data"
    )
    prompt: str = Field(
        "", description='template such as "{text}\\nLabel:"; default: the catalogue\'s, or the text and "Label:"'
    )
    text: str = Field("text", description="column with the text, for the default prompt")
    label: str = Field(
        "label", description="column with the class (classify), the completion (generate) or the reply (chat)"
    )
    labels: dict[str, str] = Field(
        {},
        description='class -> label word for a causal LM; default: " " + the class name. A classifier numbers the '
        "classes in this order",
    )
    label_score: Literal["auto", "words"] = Field(
        "auto",
        description="score of a label word by a causal LM; auto: the logit of its first token if the words of all "
        "classes differ there, else as words; words: the log-probability of all its tokens after the prompt, and of "
        "the end token if another word begins with it",
    )
    label_normalised: bool = Field(
        False, description="divide the score of a whole label word by the number of its tokens"
    )
    classes: Words = Field((), description="only samples of these classes (classify); default: all")
    messages: str = Field(
        "",
        description="column with a list of messages as JSON: role and content, from and value, or texts by turns "
        "(chat); default: a message of the user from prompt, and the reply in label",
    )
    system: str = Field("", description="system message before conversations that have none (chat)")
    template: Literal["", "chatml", "zephyr", "alpaca", "plain"] = Field(
        "", description="form in which conversations are written for the base (chat); default: its tokenizer's own"
    )
    replies: Literal["all", "last"] = Field(
        "all", description="replies of a conversation that the loss reads: all of them, or the last (chat)"
    )
    devices: int = Field(
        4,
        ge=0,
        le=1_000_000,
        description="number of devices with this task's training data; 0: one per value of the column of split",
    )
    samples_per_device: int = Field(
        40, ge=1, le=10_000_000, description="training samples of a device (the mean if sizes are log-normal)"
    )
    dev_samples: int = Field(50, ge=0, le=10_000_000, description="samples of the dev split, evaluated during the run")
    test_samples: int = Field(
        250, ge=1, le=10_000_000, description="samples of the test split, evaluated before and after the run"
    )
    split: Annotated[Choice, ChoiceOf("splits")] = Field(
        "iid", validate_default=True, description="how samples are split over the devices"
    )
    metric: Annotated[Choice, ChoiceOf("metrics")] = Field(
        "auto", validate_default=True, description="score of the predictions; auto: accuracy, or exact match (generate)"
    )
    further_metrics: Annotated[tuple[Annotated[Choice, ChoiceOf("metrics")], ...], Field(strict=False)] = Field(
        (), description='further metrics of the test split, reported beside that of `metric`, such as ["macro_f1"]'
    )
    split_as: str = Field(
        "",
        description="name of a task of the same source: both share one shuffle into test, dev and train, so that "
        "neither trains on the other's test texts; default: a separate shuffle",
    )
    group: str = Field(
        "",
        description="column of what may not be in two of train, dev and test, such as a person or a document; default: "
        "every row by itself",
    )
    stratify: bool = Field(False, description="whether each class has the same share of train, dev and test (classify)")
    delimiter: Annotated[str, Field(pattern=r"^[^\"\r\n]?$")] = Field(
        "",
        description="character between the fields of a .csv or .tsv file; default: found, comma, semicolon, tab or |",
    )
    encoding: str = Field(
        "",
        description="encoding of a text file, such as windows-1252; default: UTF-8, or UTF-16 or UTF-32 if its bytes "
        "say so",
    )
    streaming: bool = Field(
        False,
        description="whether a data set of hf:... is read in its order only until devices, dev and test are full",
    )
    sizes: Literal["equal", "lognormal"] = Field(
        "equal", description="distribution of the number of samples over the devices"
    )
    sizes_sigma: float = Field(0.5, ge=0, le=10, description="sigma of the log-normal sizes")
    max_chars: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="largest number of characters of a column's text, or of a message that is not a reply, before "
        "messages of one role are joined; 0: the "
        "catalogue's limit, or none",
    )
    max_empty_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="largest share of rows without text or label; they are skipped, and more of them are an error",
    )
    power_dbm: float | Numbers | None = Field(
        None,
        description="transmit power limit of the task's devices, one for all or one each, dBm; default: "
        "radio.power_dbm",
    )
    max_new_tokens: int = Field(
        32, ge=1, le=100_000, description="largest number of tokens that greedy decoding generates (generate, chat)"
    )

    @model_validator(mode="after")
    def _check_reading(self) -> "TaskSettings":
        try:
            if self.encoding:
                "".encode(self.encoding)
        except LookupError:
            raise ValueError(
                f"encoding = {self.encoding!r}: no such encoding of text; one is, for example, windows-1252"
            ) from None
        if self.stratify and self.group:
            raise ValueError(
                f'stratify = true: should be false with group = "{self.group}", because whole groups are assigned'
            )
        if self.streaming and self.devices == 0:
            raise ValueError(
                "devices = 0: should be a number with streaming = true, which reads until devices are full"
            )
        return self

    @model_validator(mode="after")
    def _check_devices(self) -> "TaskSettings":
        if self.devices == 0 and self.split.name != "column":
            raise ValueError('devices = 0: should be at least 1 (0 is for split = { name = "column", column = "..." })')
        samples = self.devices * self.samples_per_device + self.dev_samples + self.test_samples
        if (self.source or self.name).startswith("gym:") and samples > MAX_GENERATED:
            raise ValueError(
                f"devices = {self.devices}, samples_per_device = {self.samples_per_device}: {samples} samples would be "
                f"generated; should be at most {MAX_GENERATED} in all"
            )
        limits = self.power_dbm if isinstance(self.power_dbm, tuple) else (self.power_dbm or 0.0,)
        if wrong := [limit for limit in limits if abs(limit) > 200]:
            raise ValueError(f"power_dbm = {wrong[0]:g}: should be from -200 to 200")
        labels = [choice.label for choice in self.further_metrics]
        if repeated := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f'further_metrics: "{repeated[0]}" stands twice; once would be right')
        if isinstance(self.power_dbm, tuple) and len(self.power_dbm) != self.devices > 0:
            raise ValueError(
                f"power_dbm has {len(self.power_dbm)} values: should be one, or {self.devices}, one a device"
            )
        return self


class DeviceSettings(Section):
    """The work of a device in a round."""

    batch_size: int = Field(4, ge=1, le=1_000_000, description="samples of a mini-batch")
    local_steps: int = Field(
        1, ge=1, le=1_000_000, description="E, local steps of a round; with E > 1 the pseudo-gradient is sent"
    )
    local_lr: float = Field(1e-3, gt=0, le=1e38, description="learning rate of local steps (E > 1 only)")
    proximal_mu: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="mu of FedProx (Li et al., MLSys 2020): local steps also follow the gradient of mu/2 ||W - "
        "W_start||^2 (E > 1 only)",
    )
    max_grad_norm: float = Field(
        0.0,
        ge=0,
        le=1e30,
        description="largest L2 norm of what a device trains in a round: a larger gradient, or pseudo-gradient, is "
        "scaled down to it before it is sent; 0: no clipping",
    )
    memory_gb: float = Field(
        4.0, gt=0, le=1e6, description="memory for the activations of devices computed at once, GB"
    )
    chunk: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="devices computed in one pass; 0: as many as memory_gb allows; 1: each device alone, with the same "
        "bits as on a device of a federation",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="precision of matrix products in training; bfloat16 (autocast) changes gradients by about a "
        "percent; "
        "evaluation and theory always use float32",
    )
    gradients_gb: float = Field(
        2.0,
        ge=0,
        le=1e6,
        description="memory for a round's gradients, GB; larger gradients lie in a temporary file, and so do those "
        "that an error memory holds",
    )
    memory: bool = Field(
        False,
        description="error memory: what a device knows that it did not send stays on it and is added to its next "
        "gradient: blocks in which it was silent, entries that top_k or sign left out, all that an absent device has; "
        "not what noise or an outage took",
    )
    cache_gb: float = Field(
        2.0,
        ge=0,
        le=1e6,
        description="memory for the outputs of the layers below the lowest adapter, GB; the remainder lies in a "
        "temporary file",
    )
    cache_precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="precision of these cached outputs; bfloat16 halves their size and rounds each value by up to 2^-8",
    )
    hertz: float | Numbers = Field(
        2e9,
        description="clock frequency of the devices' processors in the ledger, one for all or one each in their order, "
        "Hz",
    )
    cycles_per_flop: float = Field(
        0.125,
        gt=0,
        le=1e6,
        description="clock cycles of a floating-point operation of a step, forward and backward (devices/flops.py)",
    )
    kappa: float = Field(
        1e-28,
        ge=0,
        le=1.0,
        description="effective switched capacitance of the processors: a cycle at f Hz takes kappa f^2 joules",
    )
    amplifier_efficiency: float = Field(
        0.35, gt=0, le=1, description="share of the energy that a device's amplifier takes that it radiates"
    )
    circuit_watts: float = Field(
        0.1,
        ge=0,
        le=1e6,
        description="power of a device's radio circuits, beside the amplifier, while it sends or receives, W",
    )

    @model_validator(mode="after")
    def _check_hertz(self) -> "DeviceSettings":
        frequencies = self.hertz if isinstance(self.hertz, tuple) else (self.hertz,)
        if not frequencies:
            raise ValueError("hertz is empty: should be one number, or one a device")
        if wrong := [value for value in frequencies if not 1 <= value <= 1e15]:
            raise ValueError(f"hertz = {wrong[0]:g}: should be from 1 to 1e15")
        return self


class ServerSettings(Section):
    """How the server updates parameters with the received gradients."""

    optimizer: Annotated[Choice, ChoiceOf("optimizers")] = Field(
        "adam", validate_default=True, description="rule of an update; sgd without momentum is that of the theory"
    )
    aggregator: Annotated[Choice, ChoiceOf("aggregators")] = Field(
        "uplink",
        validate_default=True,
        description="what makes sums of the devices' gradients: the uplink of [radio], or a rule in its place",
    )
    lr: Annotated[float, Field(gt=0, le=1e38)] | Literal["theory"] = Field(
        2e-3,
        description="learning rate eta; theory: the rule 1 / (lambda (C + 1) beta) with constants that a probe "
        "measures "
        'before round 1 (optimizer = "sgd")',
    )
    schedule: Annotated[Choice, ChoiceOf("schedules")] = Field(
        "constant",
        validate_default=True,
        description="learning rate of each round, from lr and the number of rounds; every row has a warm-up",
    )
    rounds: int = Field(35, ge=1, le=10_000_000, description="T, number of rounds")
    air_seconds: float | None = Field(
        None,
        gt=0,
        le=1e12,
        description="budget of seconds on air: the run ends before a round that would exceed it; the first round is "
        "always run",
    )
    air_seconds_of: Literal["uplink", "both"] = Field(
        "uplink", description="the links whose seconds count in air_seconds: the uplink, or both with the downlink"
    )
    seconds: float | None = Field(
        None,
        gt=0,
        le=1e12,
        description="budget of seconds of uplink, downlink and computing, as the ledger counts them: ends a run as "
        "air_seconds does",
    )
    deadline_seconds: float | None = Field(
        None,
        gt=0,
        le=1e12,
        description="seconds of computing, as the ledger counts them, after which the server no longer waits: a "
        "slower device is absent from the round; default: it waits for all",
    )
    downlink_bits: int | None = Field(
        None,
        ge=2,
        le=16,
        description="bits per entry of the broadcast of the adapters' change, rounded to the nearest level; the "
        "servers add the rounding error to the next broadcast; default: 32 bits, exact",
    )

    @model_validator(mode="after")
    def _check_theory_rule(self) -> "ServerSettings":
        if self.lr == "theory" and self.optimizer.label != "sgd":
            raise ValueError(
                f'lr = "theory": needs optimizer = "sgd", not "{self.optimizer.label}"; give a number, or choose sgd'
            )
        if self.lr == "theory" and self.schedule.label != "constant":
            raise ValueError(
                f'lr = "theory": is one rate for all rounds and needs schedule = "constant", not '
                f'"{self.schedule.label}"; give a number, or leave the schedule out'
            )
        return self


class InterfererSettings(Section):
    """A sender outside the cell that uses the same band: a device of another cell, or a jammer."""

    x_m: float = Field(ge=-1e7, le=1e7, description="place, m; the station is at (0, 0)")
    y_m: float = Field(0.0, ge=-1e7, le=1e7, description="place, m")
    power_dbm: float = Field(20.0, ge=-200, le=200, description="transmit power, dBm")
    load: float = Field(1.0, ge=0, le=1, description="probability that it sends in a coherence block")


class RadioSettings(Section):
    """The uplink between devices and servers."""

    scheme: Annotated[Choice, ChoiceOf("schemes")] = Field(
        "linear", validate_default=True, description="how a slot's gradients become sums at the servers"
    )
    design: Annotated[Choice, ChoiceOf("designs")] = Field(
        "uniform_forcing", validate_default=True, description="scheme = linear: transceiver design"
    )
    topology: Literal["single_cell", "joint", "two_hop"] = Field(
        "single_cell",
        description="single_cell: one station serves all tasks; joint: every task has an edge station, the antennas of "
        "all stations receive s together, each edge receives its task's p; two_hop: each edge receives the s-sum of "
        "its "
        "devices and forwards it over the backhaul",
    )
    backhaul_bits: int | None = Field(
        None,
        ge=1,
        le=16,
        description="two_hop: bits per entry of the edges' s-sums; default: error-free, counted as 32 bits",
    )
    access: Literal["concurrent", "tdma", "auto", "superposed"] = Field(
        "tdma",
        description="p-slots: concurrent: all tasks in one; tdma: one per task; auto: the grouping of tasks with the "
        "least error; superposed: s and all p in one slot",
    )
    personal_slots: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="access = auto: largest number of p-slots of a round; default: one per task",
    )
    channel: Annotated[Choice, ChoiceOf("channels")] = Field(
        "rayleigh",
        validate_default=True,
        description="small-scale fading; umi, uma, rma have their own path loss and shadowing. Those, cdl_* and tdl_* "
        "are models of 3GPP TR 38.901 through Sionna (the extra airpfed[sionna]); file: channels from a file",
    )
    subcarrier_groups: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["derived", "recorded"] | None = Field(
        None,
        description="groups of subcarriers with different channels; a coherence block is one group for one coherence "
        "time. derived: as many as coherence_error asks for; recorded: as the file of the channel says. Default: "
        "recorded for channels from a file; for others 1 if coherence_symbols is a number, else derived; 1 for an "
        "error-free link",
    )
    antennas: int = Field(16, ge=1, le=1_000_000, description="M, receive antennas of a station")
    carrier_hz: float = Field(3.5e9, ge=1e6, le=1e13, description="carrier frequency, Hz")
    bandwidth_hz: float = Field(20e6, ge=1, le=1e12, description="bandwidth, Hz")
    subcarriers: int = Field(1024, ge=1, le=10_000_000, description="OFDM subcarriers over the bandwidth")
    power_dbm: float = Field(
        20.0, ge=-200, le=200, description="transmit power limit of a device, dBm, over what `power_over` says"
    )
    power_over: Literal["symbol", "slot"] = Field(
        "symbol",
        description="the power limit holds for the mean of every OFDM symbol, or for the mean over a slot, which "
        "single symbols of gradients may exceed by more than 10 dB",
    )
    mixing: Literal["full", "permutation", "none"] = Field(
        "full",
        description="mixing of the entries before they are sent: full: permutation, signs, Hadamard blocks, "
        "permutation; permutation; none. Only full mixing makes all OFDM symbols nearly alike and signals Gaussian",
    )
    station_power_dbm: float | None = Field(
        None,
        ge=-200,
        le=200,
        description="power of a station's broadcast of the adapters, dBm, without array gain; default: the downlink is "
        "as fast as the weakest listener's own digital link, at its power and with all antennas",
    )
    noise_dbm: float | Literal["thermal", "off"] = Field(
        "thermal",
        description='noise power over bandwidth_hz, dBm; "thermal": -174 dBm/Hz + noise_figure_db; "off": none',
    )
    noise_figure_db: float = Field(
        7.0, ge=0, le=200, description='noise figure of the receiver, dB, for noise_dbm = "thermal"'
    )
    snr_db: float | None = Field(
        None,
        ge=-200,
        le=200,
        description="median receive SNR per antenna, dB; if given, it sets the noise power instead of noise_dbm",
    )
    coherence_symbols: Annotated[int, Field(ge=1, le=10**12)] | Literal["derived", "recorded"] | None = Field(
        None,
        description="complex channel uses of a coherence block, those of pilots included (known channels are charged "
        "one use a device on top). derived: as many as coherence_error allows, from the speed of the devices and the "
        "channel's delay_spread_s (50 ns for a channel without that option); recorded: as the file of the channel "
        "says. Default: recorded for channels from a file; for others derived, or 20,000 if subcarrier_groups is a "
        "number; 20,000 for an error-free link",
    )
    coherence_error: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="largest change of a channel from the centre of a derived block to its uses, in the mean over "
        "these, as a share of its power",
    )
    within_block: Literal["auto", "constant", "changing"] = Field(
        "auto",
        description="whether channels change within a coherence block, with the channel's delay_spread_s and the "
        "speed; auto: changing if blocks are derived and the channel has an option delay_spread_s, else constant",
    )
    normalizer: Literal["common", "per_device"] = Field(
        "per_device",
        description="common: one sigma_t for all devices; per_device: mean and variance per device and tensor group",
    )
    packing: Literal["iq", "real"] = Field("iq", description="iq: two real entries per channel use; real: one")
    energy: Literal["per_slot", "per_round"] = Field(
        "per_slot",
        description="the power limit holds in every slot, or for the mean over a round's slots in which the device "
        "transmits (only mmse uses this)",
    )
    csi_error: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of a channel's variance that the channel estimate lacks, in place of the error of pilots",
    )
    pilots: Annotated[int, Field(ge=1, le=1_000_000_000)] | Literal["perfect", "derived"] | None = Field(
        None,
        description="uses of a coherence block on which each device sends pilots; its channel estimate then has the "
        "error of these. derived: what takes a tenth of a block for all devices together, from 1 (for many devices "
        "more than a tenth) to 1000; for schemes of bits what makes a round the shortest. perfect: known channels (but "
        "for csi_error), charged as one. Default: derived; perfect if csi_error is given (0, too), and for an "
        "error-free link",
    )
    pilot_contamination_db: float | Literal["off"] = Field(
        "off",
        description="power of foreign pilots on the same uses, as of a cell that reuses the sequences, relative to the "
        "device's own, dB",
    )
    feedback_delay_s: float = Field(
        0.0, ge=0, le=1e3, description="time from a block's pilots to the use of the transmit factors, s"
    )
    speed_kmh: float = Field(3.0, ge=0, le=10_000, description="speed of the devices, km/h")
    csi_age_correlation: float | None = Field(
        None,
        gt=0,
        le=1,
        description="correlation of the channel that the pilots saw with the one that is used; default: J0(2 pi f_D "
        "delay) of feedback_delay_s, speed_kmh and carrier_hz",
    )
    feedback_bits: Annotated[int, Field(ge=8, le=64)] | Literal["exact"] = Field(
        "exact",
        description="bits of a transmit factor in the feedback, half of them for its magnitude, which is rounded down; "
        "exact: not rounded, charged as 32",
    )
    phase_error_deg: float = Field(
        0.0, ge=0, le=180, description="standard deviation of each device's carrier phase in a coherence block, degrees"
    )
    carrier_offset_hz: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="standard deviation of a device's residual carrier offset, Hz; it turns the phase within a "
        "coherence block",
    )
    timing_drift_s: float = Field(
        0.0,
        ge=0,
        le=1e-3,
        description="standard deviation of a device's timing since the pilots, s; it turns the phase over subcarriers",
    )
    clipping_db: float | Literal["off"] = Field(
        "off",
        description="power at which a device's amplifier saturates, dB above the power limit",
    )
    amplifier_smoothness: float | Literal["clip"] = Field(
        "clip", description="p of an amplifier of Rapp's model, which saturates gradually; clip: it clips"
    )
    adc_bits: int | None = Field(
        None, ge=1, le=8, description="bits of the receivers' analog-to-digital converters; default: ideal"
    )
    interferers: Annotated[tuple[InterfererSettings, ...], Field(strict=False)] = Field(
        (),
        description="senders outside the cell, with Rayleigh fading: a list of tables with x_m, y_m, power_dbm, load",
    )
    interference: Literal["known", "mean"] = Field(
        "known", description="whether receivers know the covariance of the interference in a block, or its mean power"
    )
    noise_alpha: float = Field(
        2.0,
        gt=1,
        le=2,
        description="stability index of the noise: 2: Gaussian; below 2: alpha-stable, impulsive, of infinite variance "
        "and the same scale",
    )
    receive_clipping: float | Literal["off"] = Field(
        "off",
        description="the server clips received entries at so many times the deviation that it expects of them",
    )
    outage: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="probability that a device is not received in a coherence block, unknown to designs",
    )
    fade_truncation_db: float | Literal["off"] = Field(
        "off",
        description="a device is silent in a block if its channel is so many dB below its mean power; known to designs",
    )
    correlation: float | Literal["estimated", "none"] = Field(
        "estimated",
        description="correlation of the devices' symbols that receivers assume: estimated from earlier rounds, a "
        "number "
        "for all pairs, or none (i.i.d. symbols; mmse without the gain for correlated symbols)",
    )
    layout: Literal["discs", "cell_free"] = Field(
        "discs",
        description="discs: devices in a disc around their station; cell_free: access points and devices uniform on a "
        "square with wrap-around, all access points form one station",
    )
    drop: int = Field(0, ge=0, le=2**63 - 1, description="number of the drop: positions, shadowing and fading differ")
    cell_radius_m: float = Field(200.0, gt=0, le=1e6, description="radius of the disc of the devices, m")
    min_distance_m: float = Field(
        10.0, gt=0, le=1e6, description="smallest distance of a device from the centre of its disc, m"
    )
    edge_distance_m: float = Field(
        400.0, ge=0, le=1e6, description="joint, two_hop: radius of the circle of edge stations, m"
    )
    access_points: int = Field(
        400, ge=1, le=1_000_000, description="cell_free: access points on the square, each with `antennas` antennas"
    )
    square_m: float = Field(1000.0, gt=0, le=1e6, description="cell_free: side of the square, m")
    height_m: float = Field(0.0, ge=0, le=1e6, description="height of stations above devices, m")
    path_loss_exponent: float = Field(3.0, gt=0, le=10, description="log-distance exponent beyond 1 m")
    path_loss_1m_db: float | Literal["free_space"] = Field(
        "free_space", description="path loss at 1 m, dB; free_space: Friis at the carrier"
    )
    shadowing_db: float = Field(0.0, ge=0, le=50, description="standard deviation of log-normal shadowing, dB")
    shadowing_decorrelation_m: float = Field(
        9.0,
        ge=0,
        le=1e9,
        description="distance at which the shadowing of two devices has correlation 1/2, m; 0: independent",
    )

    @property
    def has_path_loss(self) -> bool:
        """Whether the channel has its own path loss, shadowing and heights."""
        return bool(getattr(self.channel.find_row(), "has_path_loss", False))

    @property
    def has_recorded_channel(self) -> bool:
        """Whether channels come from a file, to which the positions of the settings mean nothing."""
        return bool(getattr(self.channel.find_row(), "recorded", False))

    @property
    def has_symbol_limit(self) -> bool:
        """Whether the power limit holds for every OFDM symbol; energy that slots share has a limit over the round."""
        return self.power_over == "symbol" and self.energy == "per_slot"

    @property
    def has_derived_blocks(self) -> bool:
        """Whether the size of coherence blocks follows from delay spread and speed."""
        return "derived" in (self.subcarrier_groups, self.coherence_symbols)

    @property
    def delay_spread_s(self) -> Any:
        """The channel's delay spread, seconds: its option, or the default where blocks are not flat over the band.

        None for a channel without that option.
        """
        value = self.channel.options.get("delay_spread_s", self.channel.defaults.get("delay_spread_s", ...))
        if value is ...:
            return None
        flat = self.subcarrier_groups == 1 and not self.has_derived_blocks and self.within_block != "changing"
        return (0.0 if flat else DELAY_SPREAD_S) if value is None else value

    @property
    def resolved_channel(self) -> Choice:
        """The channel with its delay spread."""
        spread = self.delay_spread_s
        return self.channel if spread is None else self.channel.with_option("delay_spread_s", spread)

    @model_validator(mode="after")
    def _resolve_defaults(self) -> "RadioSettings":
        """Set the sizes of blocks, pilots and `csi_error` where they are not given, because they depend on other keys.

        None of them is None afterwards.
        """
        ideal = self.scheme.name == "error_free"
        unknown: Any = "recorded" if self.has_recorded_channel else "derived"
        groups, length = self.subcarrier_groups, self.coherence_symbols
        if groups is None:
            groups = 1 if ideal or (isinstance(length, int) and unknown == "derived") else unknown
        if length is None:
            length = FLAT_USES if ideal or (isinstance(groups, int) and unknown == "derived") else unknown
        resolved: dict[str, Any] = {"subcarrier_groups": groups, "coherence_symbols": length}
        resolved["csi_error"] = self.csi_error or 0.0
        if self.pilots is None:
            resolved["pilots"] = "perfect" if ideal or self.csi_error is not None else "derived"
        for key, value in resolved.items():
            object.__setattr__(self, key, value)
        return self

    @model_validator(mode="after")
    def _check_numbers(self) -> "RadioSettings":
        if self.min_distance_m >= self.cell_radius_m:
            raise ValueError(
                f"min_distance_m = {self.min_distance_m:g}: should be less than cell_radius_m = {self.cell_radius_m:g}"
            )
        if self.personal_slots is not None and self.access != "auto":
            raise ValueError(f'personal_slots = {self.personal_slots}: is for access = "auto", not "{self.access}"')
        if isinstance(self.noise_dbm, float) and abs(self.noise_dbm) > 300:
            raise ValueError(f"noise_dbm = {self.noise_dbm:g}: should be from -300 to 300")
        if isinstance(self.correlation, float) and not 0 <= self.correlation < 1:
            raise ValueError(f'correlation = {self.correlation:g}: should be "estimated", "none", or from 0 to below 1')
        for key, low, high in (
            ("clipping_db", -20, 60),
            ("fade_truncation_db", 0, 100),
            ("path_loss_1m_db", 0, 300),
            ("pilot_contamination_db", -200, 100),
            ("amplifier_smoothness", 0.5, 100),
            ("receive_clipping", 0.1, 1000),
        ):
            value = getattr(self, key)
            if isinstance(value, float) and not low <= value <= high:
                raise ValueError(f"{key} = {value:g}: should be from {low} to {high}")
        return self

    @model_validator(mode="after")
    def _check_combinations(self) -> "RadioSettings":
        """Refuse combinations of settings that contradict each other."""
        channel = self.channel.name
        options = self.scheme.options if self.scheme.name == "digital" else {}
        wrong = {
            f'topology = "{self.topology}": needs layout = "discs", because cell_free access points are one station': (
                self.layout == "cell_free" and self.topology != "single_cell"
            ),
            f'channel = "{channel}": needs layout = "discs"': (
                self.has_path_loss and not self.has_recorded_channel and self.layout == "cell_free"
            ),
            f'channel = "{channel}": has its own path loss and shadowing; shadowing_db should be 0': (
                self.has_path_loss and self.shadowing_db > 0
            ),
            f'backhaul_bits = {self.backhaul_bits}: is for topology = "two_hop", not "{self.topology}"': (
                self.backhaul_bits is not None and self.topology != "two_hop"
            ),
            f"csi_error = {self.csi_error:g}: is for known channels; pilots = {self.pilots} determine the error, leave "
            "one of the two out": bool(self.csi_error) and self.pilots != "perfect",
            'subcarrier_groups, coherence_symbols: "recorded" is for a channel from a file, not '
            f'"{channel}"': "recorded" in (self.subcarrier_groups, self.coherence_symbols)
            and not self.has_recorded_channel
            and self.channel.find_row() is not None,
            'interferers: need topology = "single_cell" and layout = "discs"': bool(self.interferers)
            and (self.topology != "single_cell" or self.layout != "discs"),
            'interferers: need noise, so noise_dbm other than "off"': bool(self.interferers)
            and self.noise_dbm == "off"
            and self.snr_db is None,
            "interferers: beside adc_bits they have no model; leave one of the two out": bool(self.interferers)
            and self.adc_bits is not None,
            f"subcarrier_groups = {self.subcarrier_groups}: should divide subcarriers = {self.subcarriers}": (
                isinstance(self.subcarrier_groups, int) and self.subcarriers % self.subcarrier_groups != 0
            ),
            f"scheme.bits = {options.get('bits')}: sign sends one bit an entry; should be 1": (
                options.get("quantizer") == "sign" and options.get("bits") != 1
            ),
            f'scheme.share = {options.get("share")}: is for quantizer = "top_k", not "{options.get("quantizer")}"': (
                options.get("share") is not None and options.get("quantizer") != "top_k"
            ),
        }
        for message, holds in wrong.items():
            if holds:
                raise ValueError(message)
        return self


class RunSettings(Section):
    """The seed, the evaluation, the machine."""

    seed: int = Field(0, ge=0, le=2**63 - 1, description="seed of every random stream")
    eval_every: int = Field(
        0, ge=0, le=1_000_000_000, description="rounds between evaluations on the dev split; 0: none"
    )
    score: Literal["test", "dev", "both"] = Field(
        "test",
        description="splits on which the trained models are scored after the last round; dev: only the untouched model "
        "is scored on the test split. A sweep scores on test, and on dev if it tunes",
    )
    cross_eval: bool = Field(
        False, description="also score every task's model on the other tasks' test splits, if its classes fit"
    )
    tracker: Annotated[Choice, ChoiceOf("trackers")] = Field(
        "none", validate_default=True, description="further output of the records and the summary"
    )
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0: chosen by torch")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device of the model; auto: a GPU if there is one"
    )


class TheorySettings(Section):
    """The convergence bounds of a run (docs/theory.md) and the probe that measures their constants before round 1."""

    meter_every: int = Field(0, ge=0, le=1_000_000_000, description="rounds between two monitored rounds; 0: none")
    draws: int = Field(
        20, ge=20, le=100_000, description="channel draws of a monitored round, for the same mini-batches"
    )
    pilot_rounds: int = Field(
        20,
        ge=0,
        le=1_000_000,
        description="error-free rounds of the probe, on other mini-batches; 0: only the start",
    )
    hessian_samples: int = Field(8, ge=0, le=1_000_000_000, description="samples per device for the Hessian; 0: all")
    lanczos_steps: int = Field(8, ge=2, le=10_000, description="Hessian-vector products per point of the probe")
    safety: float = Field(
        1.5, ge=1, le=1e6, description="safety factor on the measured beta, sigma_SGD^2, sigma_dif^2 and bias"
    )
    beta: float | None = Field(None, gt=0, le=1e30, description="beta of A1, given instead of probed")
    c: float | None = Field(None, ge=0, le=1e30, description="C of A2, given")
    sigma_sgd2: float | None = Field(None, ge=0, le=1e30, description="sigma_SGD^2 of A2, given")
    lam: float | None = Field(None, gt=0, le=1e30, description="lambda of A3, given")
    sigma_dif2: float | None = Field(None, ge=0, le=1e30, description="sigma_dif^2 of A3, given for both forms of A3")


class FederationSettings(Section):
    """The federation of devices (`airpfed federate`)."""

    payload: Payload = Field(
        "float32",
        description="format of a device's gradient in a message; other formats than float32 round stochastically "
        "without "
        "bias, integers with a scale per tensor group; `airpfed run` rounds in the same way",
    )
    max_norm: float = Field(
        1e3,
        gt=0,
        le=1e30,
        description="largest L2 norm of a device's gradient; a device with a larger gradient is absent from the round",
    )
    min_devices: int = Field(
        0, ge=0, le=1_000_000, description="number of connected devices that a round needs to start; 0: all"
    )
    wait_seconds: float = Field(
        600.0, gt=0, le=1e9, description="seconds to wait for these devices before the run stops; it can be resumed"
    )
    deadline_seconds: float = Field(
        60.0,
        gt=0,
        le=1e9,
        description="largest duration of a round, seconds; a device without an answer by then is absent from the round",
    )
    address: Annotated[str, Field(pattern=r"^(|\S+:[0-9]+)$")] = Field(
        "", description="host:port of the server for the devices; the server's certificate names this host"
    )
    listen: str = Field("0.0.0.0", min_length=1, description="network interface on which the server listens")
    folder: str = Field(
        "",
        description="the server's folder from `airpfed federate init`, with its certificate and the devices' "
        "public keys",
    )


class NodeSettings(Section):
    """A device of a federation; `airpfed federate init` writes this section into the device's settings file."""

    device: int = Field(
        ge=0,
        le=1_000_000,
        description="number of the device, counted over the tasks in order and the devices of each task in order",
    )
    key: str = Field("device.key", description="file of the device's private key")
    certificate: str = Field("ca.crt", description="certificate of the authority that signed the server's certificate")
    state: str = Field("state", description="folder of the device's state and logs")
    port: int = Field(9094, ge=1, le=65535, description="loopback port of Flower's SuperNode on this machine")


class Settings(Section):
    """An experiment."""

    plugins: Words = Field((), description="Python files with rows of the user's own, beside this file")
    model: ModelSettings = ModelSettings()
    adapters: AdapterSettings = Field(default_factory=AdapterSettings)
    tasks: Annotated[tuple[TaskSettings, ...], Field(strict=False, min_length=1)]
    devices: DeviceSettings = DeviceSettings()
    server: ServerSettings = Field(default_factory=ServerSettings)
    radio: RadioSettings = Field(default_factory=RadioSettings)
    run: RunSettings = Field(default_factory=RunSettings)
    theory: TheorySettings = TheorySettings()
    federation: FederationSettings = FederationSettings()
    node: NodeSettings | None = None

    @model_validator(mode="after")
    def _check_port(self) -> "Settings":
        address = self.federation.address
        if address and not 0 < int(address.rsplit(":", 1)[1]) < 1 << 16:
            raise ValueError(f'federation.address = "{address}": the port should be from 1 to 65535')
        return self

    @model_validator(mode="after")
    def _check_frequencies(self) -> "Settings":
        counts, hertz = [task.devices for task in self.tasks], self.devices.hertz
        if isinstance(hertz, tuple) and all(counts) and len(hertz) != sum(counts):
            raise ValueError(
                f"devices.hertz has {len(hertz)} values: should be one, or {sum(counts)}, one a device of the tasks"
            )
        return self

    @model_validator(mode="after")
    def _check_names(self) -> "Settings":
        names = [task.name for task in self.tasks]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f'tasks.name = "{repeated[0]}" stands twice: every task should have its own name')
        names_by_key: dict[str, str] = {}
        for name in names:
            if RESERVED_NAME.fullmatch(file_name_of(name)):
                raise ValueError(
                    f'tasks.name = "{name}": the name of a Windows device cannot be that of a file; choose another'
                )
            if (other := names_by_key.setdefault(collision_key(name), name)) != name:
                raise ValueError(
                    f'tasks.name = "{name}" would have the same folder as "{other}": names should differ in more than '
                    'capitals, or ":" and "-"'
                )
        return self

    @model_validator(mode="after")
    def _check_shared_splits(self) -> "Settings":
        tasks = {task.name: task for task in self.tasks}
        for task in self.tasks:
            other = tasks.get(task.split_as)
            if task.split_as and other is None:
                raise ValueError(f'tasks.{task.name}.split_as = "{task.split_as}": should be the name of another task')
            if other is None:
                continue
            keys: tuple[str, ...] = (
                "classes",
                "prompt",
                "max_chars",
                "test_samples",
                "dev_samples",
                "group",
                "stratify",
                "messages",
                "system",
            )
            keys += () if task.prompt else ("text", "kind")  # the default prompt consists of them
            differs = [key for key in keys if getattr(task, key) != getattr(other, key)]
            differs += ["source"] if (task.source or task.name) != (other.source or other.name) else []
            if differs:
                raise ValueError(
                    f'tasks.{task.name}.split_as = "{task.split_as}": {differs[0]} should be the same in both tasks'
                )
        return self

    @model_validator(mode="after")
    def _check_method(self) -> "Settings":
        method, row = self.adapters.method.name, self.adapters.method.find_row()
        if row is None:  # the settings of a finished run, read without its plug-ins
            return self
        if row.error_free and self.radio.scheme.name != "error_free":
            raise ValueError(f'adapters.method = "{method}": needs radio.scheme = "error_free" ({row.error_free})')
        if row.pooled and self.devices.local_steps > 1:
            raise ValueError(
                f"devices.local_steps = {self.devices.local_steps}: should be 1 with "
                f'adapters.method = "{method}", whose one worker has no local steps'
            )
        if self.server.lr == "theory" and self.devices.max_grad_norm:
            raise ValueError(
                f'devices.max_grad_norm = {self.devices.max_grad_norm:g}: should be 0 with server.lr = "theory", whose '
                "bounds are those of gradients that are not clipped"
            )
        if self.server.aggregator.name != "uplink" and self.radio.scheme.name != "error_free":
            raise ValueError(
                f'server.aggregator = "{self.server.aggregator.name}": takes the uplink\'s place and needs every '
                'device\'s gradient; radio.scheme should be "error_free"'
            )
        return self


def choices_of(settings: Settings) -> dict[str, Choice]:
    """Map `section.key`, or `tasks.NAME.key`, to every choice of the settings."""
    choices: dict[str, Choice] = {}
    for section in ("adapters", "server", "radio", "run"):
        choices |= {f"{section}.{key}": value for key, value in getattr(settings, section) if isinstance(value, Choice)}
    for task in settings.tasks:
        choices |= {f"tasks.{task.name}.{key}": value for key, value in task if isinstance(value, Choice)}
        further = {f"{choice.label}": choice for choice in task.further_metrics}
        choices |= {f"tasks.{task.name}.further_metrics.{label}": choice for label, choice in further.items()}
    return choices
