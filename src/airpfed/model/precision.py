"""The numbers of a base model's weights: their type, and their quantisation by bitsandbytes or torchao."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from airpfed.core.errors import UserError
from airpfed.core.memory import available_memory

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Setting `model.dtype` -> type of the weights that are not quantised, of activations and of products."""


def nf4(dtype: torch.dtype, skipped: list[str]) -> Any:
    """4-bit NormalFloat of bitsandbytes (Dettmers et al., QLoRA, 2023), blocks of 64, with scales in 8 bits."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )


def fp4(dtype: torch.dtype, skipped: list[str]) -> Any:
    """4-bit floating point of bitsandbytes, blocks of 64."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=skipped
    )


def int8(dtype: torch.dtype, skipped: list[str]) -> Any:
    """LLM.int8() of bitsandbytes (Dettmers et al., 2022): 8-bit weights with a scale per output; on a GPU, activations
    in 8 bits, too, and outliers in 16.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)


def torchao_int8(dtype: torch.dtype, skipped: list[str]) -> Any:
    """8-bit weights of torchao with a scale per output; activations stay as they are."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped)


@dataclass(frozen=True)
class Quantisation:
    """A way of storing the base's linear layers. package: the one that it needs. config: (type of the products, names
    of modules that stay as they are) -> transformers' `quantization_config`.
    """

    package: str
    config: Callable[[torch.dtype, list[str]], Any]


QUANTISATIONS: Mapping[str, Quantisation] = {
    "nf4": Quantisation("bitsandbytes", nf4),
    "fp4": Quantisation("bitsandbytes", fp4),
    "int8": Quantisation("bitsandbytes", int8),
    "torchao_int8": Quantisation("torchao", torchao_int8),
}
"""Setting `model.quantization` -> how. Of torchao only what has a right gradient: its layers with 8-bit activations
return a wrong one without an error, and its 4-bit layers have none on a CPU."""


@dataclass(frozen=True)
class Precision:
    """How a base model's weights are held.

    dtype: a key of `DTYPES`. quantisation: a key of `QUANTISATIONS`, or "none".
    """

    dtype: str = "float32"
    quantisation: str = "none"

    def check(self, base: str, config: Any) -> None:
        """Raise UserError where a base cannot be held so: its package is missing, or the base is quantised already.

        config: the base's own.
        """
        if self.quantisation == "none":
            return
        setting = f'model.quantization = "{self.quantisation}"'
        if stored_quantisation(config):
            raise UserError(f'{setting}: model.base = "{base}" is quantised already; leave the setting out')
        package = QUANTISATIONS[self.quantisation].package
        if find_spec(package) is None:
            raise UserError(f"{setting}: needs the package {package} (pip install 'airpfed[quantised]')")

    def options(self, config: Any, device: str, skipped: Sequence[str] = ()) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`.

        config: the base's own. device: of the weights. skipped: modules that are not quantised.
        """
        options: dict[str, Any] = {"dtype": DTYPES[self.dtype]}
        if self.quantisation != "none":
            row = QUANTISATIONS[self.quantisation]
            options["quantization_config"] = row.config(DTYPES[self.dtype], list(skipped))
        if self.quantisation != "none" or stored_quantisation(config):
            options["device_map"] = {"": device}
        return options


FLOAT32 = Precision()
"""Plain float32, or what the files hold where these are quantised."""


def stored_quantisation(config: Any) -> Any:
    """The quantisation in which the files of a base are stored; None where they hold plain numbers."""
    return getattr(config, "quantization_config", None)


def is_quantised(model: Any) -> bool:
    """Whether some of a model's weights are quantised, here or in its files."""
    return bool(getattr(model, "is_quantized", False))


def is_stored_quantised(module: nn.Module) -> bool:
    """Whether a linear layer's weight is not a plain tensor of floating-point numbers."""
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear) or weight is None:
        return False
    return type(weight) not in (torch.Tensor, nn.Parameter) or not weight.is_floating_point()


def set_for_training(model: nn.Module) -> None:
    """Have bitsandbytes' layers compute as in training, always: products in the type of the activations.

    In evaluation mode on a CPU, its 4-bit layers pack their weights anew, with coarser scales and without a gradient
    (AVX-512 BF16), and its 8-bit layers round activations to 8 bits.
    """
    for module in model.modules():
        if {"Linear4bit", "Linear8bitLt"} & {kind.__name__ for kind in type(module).__mro__}:
            module.training = True  # of this module alone: it has no other use for the flag


NARROW = (torch.bfloat16, torch.float16)
"""Types with fewer digits than float32's."""


@contextmanager
def in_float32(model: nn.Module) -> Iterator[bool]:
    """The model with all its plain numbers and products in float32, if that fits into half of the memory.

    Every narrower number is a float32 number, so the model comes back as it was, to the bit. Yields False, and changes
    nothing, where the memory is too small, where 8-bit layers multiply rounded activations, or where a narrow type
    holds something else than numbers, as that of a quantised weight may.
    """
    tensors = [item for item in (*model.parameters(), *model.buffers()) if item.dtype in NARROW]
    plain = all(type(item) in (torch.Tensor, nn.Parameter) for item in tensors)
    states = [(item, item.dtype) for item in tensors]
    modules: list[Any] = [module for module in model.modules() if computes_narrowly(module)]
    layers = [(module, module.compute_dtype) for module in modules]
    too_large = 8 * sum(item.numel() for item in tensors) > memory_of(tensors)
    if too_large or not plain or any(map(rounds_inputs, model.modules())):
        yield False
        return
    try:
        for item in tensors:
            item.data = item.data.float()
        for module, _ in layers:
            module.compute_dtype = torch.float32
        yield True
    finally:
        for item, dtype in states:
            item.data = item.data.to(dtype)
        for module, dtype in layers:
            module.compute_dtype = dtype


def memory_of(tensors: Sequence[torch.Tensor]) -> float:
    """The memory of the machine, or of the GPU where the tensors are, in bytes."""
    gpu = next((item.device for item in tensors if item.is_cuda), None)
    return available_memory() if gpu is None else float(torch.cuda.mem_get_info(gpu)[1])


def computes_narrowly(module: Any) -> bool:
    """Whether a module is a 4-bit layer of bitsandbytes whose products have few digits."""
    return getattr(module, "compute_dtype", None) in NARROW and "4bit" in type(module).__name__


def rounds_inputs(module: Any) -> bool:
    """Whether a module is an 8-bit layer of bitsandbytes on a GPU, where LLM.int8() rounds activations as well."""
    return any(kind.__name__ == "Linear8bitLt" for kind in type(module).__mro__) and module.weight.device.type != "cpu"


def is_coarse(model: nn.Module) -> bool:
    """Whether a model's products are rounded to fewer digits than float32's, so that the order of sums shows.

    Weights of 4 or 8 bits alone do not make it so: what is multiplied are float32 numbers, always the same.
    """
    return any(
        computes_narrowly(module)
        or rounds_inputs(module)
        or any(item.dtype in NARROW for item in module.parameters(recurse=False))
        for module in model.modules()
    )
