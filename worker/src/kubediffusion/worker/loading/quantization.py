"""Holds weights in fewer bits, by the quantization configurations of diffusers and transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.quantizers.auto import DiffusersAutoQuantizer
from transformers.quantizers.auto import AutoHfQuantizer

from kubediffusion.resources.diffusion_model import DiffusionModelSpec
from kubediffusion.resources.model_source import Quantization
from kubediffusion.worker.engine import BadModelError
from kubediffusion.worker.loading.files import DENOISERS
from kubediffusion.worker.optional_libraries import OPTIONAL, PACKAGES, stored_quantization

_MODULES = {"quanto": "optimum.quanto", "sdnq": "sdnq", "modelopt": "modelopt", "auto-round": "auto_round"}
"""Libraries of other methods in which repositories are stored, by ``quant_method``."""

_NAMES = {"Float8WeightOnlyConfig": Quantization.FLOAT8, "Int8WeightOnlyConfig": Quantization.INT8}
"""What torchao's configurations are here."""

GGUF = ".gguf"
"""The suffix of files whose weights are in blocks of few bits."""

_ONLY_CUDA = frozenset({"bitsandbytes"})


class Quantizer:
    """Says in how few bits each component is held.

    Args:
        spec: What the model asks for.
        index: Its ``model_index.json``.
        dtype: Numbers that are computed with.
        device: Where to.

    Raises:
        BadModelError: The pipeline has no denoiser to quantize.
    """

    def __init__(
        self, spec: DiffusionModelSpec, index: dict[str, Any], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._dtype = dtype
        self._device = device
        self._wanted: dict[str, tuple[Quantization, str]] = {}
        if spec.quantization is not Quantization.NONE:
            denoiser = next((name for name in DENOISERS if name in index), None)
            if denoiser is None:
                raise BadModelError(
                    f"spec.quantization: {index['_class_name']} has no denoiser of a name that is known; name the "
                    "component in spec.components"
                )
            self._wanted[denoiser] = spec.quantization, "spec.quantization"
        for part in spec.components:
            if part.quantization is not None:
                self._wanted[part.name] = part.quantization, f"spec.components[{part.name}].quantization"

    @property
    def components(self) -> list[str]:
        """The components that the model wants held otherwise."""
        return [name for name, (kind, _) in self._wanted.items() if kind is not Quantization.NONE]

    def kind_of(self, name: str) -> Quantization:
        """Return in how few bits the model wants a component held."""
        return self._wanted.get(name, (Quantization.NONE, ""))[0]

    def config_of(self, name: str, kind: type, folder: Path) -> Any:
        """Return the configuration to load a component with; None to load it as it is stored.

        Args:
            name: The component.
            kind: Its class.
            folder: Its files.

        Raises:
            BadModelError: A library or a device is missing.
        """
        wanted, field = self._wanted.get(name, (Quantization.NONE, ""))
        if wanted is Quantization.NONE or stored_quantization(folder) is not None:
            return None
        self._check_library(f"{field}: {wanted}", PACKAGES[wanted], hint="")
        if not issubclass(kind, torch.nn.Module):
            raise BadModelError(f"{field}: {name} has no weights")
        library: Any = diffusers if issubclass(kind, diffusers.ModelMixin) else transformers
        if wanted is Quantization.NF4:
            return library.BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=self._dtype
            )
        # Late: few models need it.
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

        kind = Float8WeightOnlyConfig if wanted is Quantization.FLOAT8 else Int8WeightOnlyConfig
        # Its settings of PyTorch's compiler are the process's: each kernel would be tuned, for minutes.
        config = kind(set_inductor_config=False)
        return library.TorchAoConfig(config)

    def check_file(self, name: str, file: Path) -> None:
        """Check that what comes in one file can be held as the model asks.

        Raises:
            BadModelError: It is quantized already, or by a library that takes folders alone.
        """
        wanted, field = self._wanted.get(name, (Quantization.NONE, ""))
        if wanted is Quantization.NONE:
            return
        remedy = f"leave the field out, or give a folder as spec.components[{name}].source"
        if file.suffix == GGUF:
            raise BadModelError(f"{field}: {name} comes from {file.name}, which is quantized already; {remedy}")
        if PACKAGES[wanted] != "torchao":
            raise BadModelError(
                f"{field}: {name} comes from {file.name}, and what comes in one file can be held in float8 and int8, "
                f"not in {wanted}; {remedy}"
            )

    def quantize(self, name: str, module: Any, folder: Path, device: torch.device) -> None:
        """Quantize a component that has been read as it is stored, as :meth:`config_of` has others read.

        diffusers takes what it reads from one file for quantized, and would leave it as it is.

        Args:
            name: The component.
            module: It, in main memory.
            folder: Its configuration.
            device: Where its quantized layers go, one by one, to be quantized there.

        Raises:
            BadModelError: A library is missing, or it has no weights.
        """
        if (config := self.config_of(name, type(module), folder)) is None:
            return
        ours = issubclass(type(module), diffusers.ModelMixin)
        quantizer: Any = (DiffusersAutoQuantizer if ours else AutoHfQuantizer).from_config(config, pre_quantized=False)
        kept = getattr(module, "_keep_in_fp32_modules", None) or []
        from torchao.quantization import quantize_

        def is_wanted(part: torch.nn.Module, path: str) -> bool:
            return isinstance(part, torch.nn.Linear) and not set(kept).intersection(path.split("."))

        quantize_(module, config.quant_type, filter_fn=is_wanted, device=device)
        module.hf_quantizer = quantizer

    def check_stored(self, name: str, folder: Path) -> None:
        """Check that a component can be loaded as it is stored.

        Raises:
            BadModelError: It is quantized by a library that is missing, or otherwise than the model asks.
        """
        if (stored := stored_quantization(folder)) is None:
            return
        wanted, field = self._wanted.get(name, (Quantization.NONE, ""))
        package = stored if stored in OPTIONAL else _MODULES.get(stored)
        if wanted is not Quantization.NONE and PACKAGES[wanted] != stored:
            raise BadModelError(
                f"{field}: {wanted} is not how {name} is stored, which is quantized by {stored} already; leave the "
                "field out, or take a repository that is not quantized"
            )
        if package is not None:
            same = " or ".join(kind for kind, library in PACKAGES.items() if library == stored)
            hint = f"set spec.quantization to {same}, so that the worker imports it, or " if same else ""
            self._check_library(f"{name} is stored quantized by {stored}: it", package, hint)

    def _check_library(self, what: str, package: str, hint: str) -> None:
        try:
            found = importlib.util.find_spec(package) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            raise BadModelError(
                f"{what} needs the package {package}, which the worker lacks; {hint}set spec.workers.image to an image "
                "that has it"
            )
        if package in _ONLY_CUDA and self._device.type != "cuda":
            raise BadModelError(f"{what} needs a CUDA device; on a CPU, float8 and int8 of spec.quantization run")


def quantized_components(pipeline: Any) -> dict[str, str]:
    """Return how the components are held whose weights are in fewer bits, by name."""
    found = {}
    for name, part in pipeline.components.items():
        quantizer = getattr(part, "hf_quantizer", None)
        if quantizer is not None:
            found[name] = _name_of(quantizer.quantization_config)
    return found


def _name_of(config: Any) -> str:
    if getattr(config, "load_in_4bit", False):
        return str(config.bnb_4bit_quant_type)
    if getattr(config, "load_in_8bit", False):
        return "llm.int8"
    kind = type(getattr(config, "quant_type", None)).__name__
    method = getattr(config.quant_method, "value", config.quant_method)
    return str(_NAMES.get(kind, method))
