"""Settings to objects: tasks, base model, uplink, and the experiment that holds them. Only this folder sees both."""

from airpfed.experiment.build.data import (
    CHANGEABLE_ON_RESUME,
    all_shares,
    base_hash,
    changeable_on_resume,
    current_fingerprints,
    fixed_functions,
    load_tasks,
    option_files,
    shares_of,
    source_of,
)
from airpfed.experiment.build.experiment import (
    build_experiment,
    client_uplink,
    device_pass_bytes,
    experiment_layout,
    is_unbiased,
    sending_uplink,
)
from airpfed.experiment.build.model import (
    Preparation,
    build_preparation,
    check_head_scope,
    load_backbone,
    precision_of,
    preparation_key,
    torch_device,
)

__all__ = [
    "CHANGEABLE_ON_RESUME",
    "Preparation",
    "all_shares",
    "base_hash",
    "build_experiment",
    "build_preparation",
    "changeable_on_resume",
    "check_head_scope",
    "client_uplink",
    "current_fingerprints",
    "device_pass_bytes",
    "experiment_layout",
    "fixed_functions",
    "is_unbiased",
    "load_backbone",
    "load_tasks",
    "option_files",
    "precision_of",
    "preparation_key",
    "sending_uplink",
    "shares_of",
    "source_of",
    "torch_device",
]
