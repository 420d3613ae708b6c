"""Save and load network weights: safetensors with what is needed to refuse a wrong file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shd_bids.data import shipped_weights
from shd_bids.errors import WeightsError
from shd_bids.files import atomic_path
from shd_bids.fod.config import CHANNELS, InputConfig, PrecisionConfig, RefinementConfig, Stored, TrainedDomain
from shd_bids.fod.inputs.shells import is_shell_channel
from shd_bids.fod.inputs.volumes import InputVolumes
from shd_bids.fod.methods import CONDITIONED, SHELLS
from shd_bids.nn.unet import UNet, UNetConfig

FORMAT = "shd_bids-3"
"""Meaning of input channels, output channels and parameter names; a change of any of them is a new format."""

LARGEST = {"nside": 64, "in_channels": 1024, "out_channels": 64, "convs_per_block": 16, "order": 32, "patch_size": 63}
"""Largest values of a network's configuration that are built; others would fill memory or time before they fail."""

MOST_FEATURES = 4096
LARGEST_NUMBER = 100_000
"""Of the numbers that are tuned with the weights."""

_INPUTS, _REFINEMENT, _PRECISION, _DOMAIN = InputConfig(), RefinementConfig(), PrecisionConfig(), TrainedDomain()


@dataclass(frozen=True, eq=False)
class Weights:
    """A trained network.

    Attributes
    ----------
    config : UNetConfig
    state : dict
        Parameters by name.
    l_max : int
        Degree of its fODF.
    sha256 : str or None
        Of the file; adapted weights keep that of the file they started from, None where there is none.
    name : str
        Of that file, without its ending; ``none`` where there is none.
    training : dict
        Configuration of the training.
    inputs, refinement, precision, domain : InputConfig, RefinementConfig, PrecisionConfig and TrainedDomain
    """

    config: UNetConfig
    state: dict[str, Tensor]
    l_max: int
    sha256: str | None
    name: str
    training: dict[str, Any]
    inputs: InputConfig = _INPUTS
    refinement: RefinementConfig = _REFINEMENT
    precision: PrecisionConfig = _PRECISION
    domain: TrainedDomain = _DOMAIN

    @property
    def channels(self) -> tuple[str, ...]:
        """Input channels."""
        return self.inputs.channels

    @classmethod
    def of(cls, net: UNet, *, l_max: int, training: dict[str, Any], inputs: InputConfig = _INPUTS) -> Weights:
        """Return the weights of a network that comes from no file."""
        state = {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}
        return cls(net.config, state, l_max, sha256=None, name="none", training=training, inputs=inputs)

    @property
    def method(self) -> str:
        """Name of the method in records, see :data:`shd_bids.fod.methods.METHODS`."""
        return self.training.get("method", CONDITIONED if self.channels == CHANNELS else SHELLS)

    @property
    def is_supervised(self) -> bool:
        """Whether the truth of simulated volumes was used in the training."""
        return any(self.training.get("loss", {}).get(term) for term in ("hellinger", "fibre_density", "fractions"))

    @property
    def is_general(self) -> bool:
        """Whether trained on simulated scans of many protocols, whose range bounds its use, and not on scans of one."""
        return "method" not in self.training

    @property
    def is_refined(self) -> bool:
        """Whether results are refined by the data, unless the user decides."""
        return self.training.get("refinement", True)

    @property
    def isotropic(self) -> str:
        """How fractions of isotropic tissues are read from the output, see :func:`~shd_bids.fod.network.read_output`."""
        return self.training.get("isotropic", "mean")

    @property
    def input_volumes(self) -> InputVolumes | None:
        """Volumes that the network is shown; None for all."""
        values = self.training.get("input_volumes")
        return InputVolumes(**values) if values else None

    def network(self) -> UNet:
        """Build the network with these parameters, in evaluation mode."""
        net = UNet(self.config)
        net.load_state_dict(self.state)
        return net.eval()


def save_weights(path: Path, weights: Weights) -> Path:
    """Write weights, but for their name and hash, which are of the file; it appears under its name only when complete."""
    metadata = {
        "format": FORMAT,
        "channels": json.dumps(weights.channels),
        "config": json.dumps(weights.config.to_dict()),
        "l_max": str(weights.l_max),
        "training": json.dumps(weights.training),
        "inputs": json.dumps(weights.inputs.to_dict()),
        "refinement": json.dumps(weights.refinement.to_dict()),
        "precision": json.dumps(weights.precision.to_dict()),
        "domain": json.dumps(weights.domain.to_dict()),
    }
    state = {name: value.detach().cpu().contiguous() for name, value in weights.state.items()}
    with atomic_path(path) as scratch:
        save_file(state, scratch, metadata=metadata)
        scratch.chmod(0o644)  # safetensors makes it readable to its owner alone; a container runs as any user
    return path


def load_weights(path: Path | None = None) -> Weights:
    """Read weights from ``path``, or those of the package.

    Raises
    ------
    WeightsError
        When the file is missing, damaged, of another format, or does not fit its own configuration.
    """
    file = path if path is not None else shipped_weights()
    if not file.is_file():
        raise WeightsError(f"no weights file at {file}; give a .safetensors file to --weights, or leave the option out")
    try:
        with safe_open(file, framework="pt") as handle:
            metadata = handle.metadata() or {}
            state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} cannot be read as safetensors ({error}); copy or download it again") from error
    if metadata.get("format") != FORMAT or not _are_known(_stored(file, metadata, "channels")):
        raise WeightsError(
            f"{file} is of format {metadata.get('format', 'unknown')!r}, expected {FORMAT!r} with inputs {CHANNELS} or shells; "
            "use weights trained with this version"
        )
    return _checked(file, metadata, state)


def _are_known(channels: Any) -> bool:
    """Whether these are input channels that this version can make."""
    if not isinstance(channels, list) or not all(isinstance(name, str) for name in channels):
        return False
    return tuple(channels) == CHANNELS or (bool(channels) and all(map(is_shell_channel, channels)))


def _checked(file: Path, metadata: dict[str, str], state: dict[str, Tensor]) -> Weights:
    """Build the weights, refusing a configuration or parameters that no network can have."""
    stored = {
        name: _stored(file, metadata, name) for name in ("inputs", "refinement", "precision", "domain", "training")
    }
    try:
        config = UNetConfig.from_dict(json.loads(metadata["config"]))
        l_max = int(metadata["l_max"])
        inputs = InputConfig.from_dict(stored["inputs"] | {"channels": _stored(file, metadata, "channels")})
        refinement = RefinementConfig.from_dict(stored["refinement"])
        precision = PrecisionConfig.from_dict(stored["precision"])
        domain = TrainedDomain.from_dict(stored["domain"])
        problems = list(_size_problems(config, l_max, state))
        problems += [text for tuned in (inputs, refinement, precision, domain) for text in _number_problems(tuned)]
        if problems:
            raise ValueError("; ".join(problems))
        expected = UNet(config).state_dict()
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WeightsError(f"{file} holds no usable configuration ({error}); use another weights file") from error
    wrong = sorted(
        set(expected) ^ set(state) | {k for k in set(expected) & set(state) if expected[k].shape != state[k].shape}
    )
    if len(inputs.channels) != config.in_channels:
        wrong.append("in_channels")
    wrong += [k for k, v in state.items() if not torch.isfinite(v.float()).all()]
    if wrong:
        raise WeightsError(f"{file} does not fit its network in {len(wrong)} parameters, first: {wrong[0]}")
    zero = [name for name, value in state.items() if value.dim() > 1 and not value.any()]
    if zero:
        raise WeightsError(f"{file}: {len(zero)} filters are zero, first: {zero[0]}; copy or train the weights again")
    return Weights(
        config=config,
        state=state,
        l_max=l_max,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        name=file.stem,
        training=stored["training"],
        inputs=inputs,
        refinement=refinement,
        precision=precision,
        domain=domain,
    )


def _size_problems(config: UNetConfig, l_max: int, state: dict[str, Tensor]) -> Iterator[str]:
    """Yield what is too large to be built, or larger than the parameters of the file, before anything is allocated."""
    for name, most in LARGEST.items():
        if (value := getattr(config, name)) > most:
            yield f"{name} is {value}, expected at most {most}"
    if (widest := max(config.channels)) > MOST_FEATURES or widest**2 > 4 * sum(v.numel() for v in state.values()):
        yield f"{widest} features, more than the parameters of the file have"
    if config.hemisphere is not True and (config.hemisphere is not False or config.form == "volume"):
        yield f"hemisphere is {str(config.hemisphere)[:40]!r}, expected true: volumes are evaluated on it"
    if l_max % 2 or not 2 <= l_max <= 4 * config.nside:
        yield f"degree l_max is {l_max}, expected an even number from 2 to {4 * config.nside}"


def _number_problems(tuned: Stored) -> Iterator[str]:
    """Yield tuned numbers of another type than their defaults, and those that no tuning gives."""
    for item in fields(tuned):
        value = getattr(tuned, item.name)
        kind = type(item.default)
        numbers = value if isinstance(value, tuple) else (value,)
        is_typed = isinstance(value, (int, float) if kind is float else kind) and len(numbers) > 0
        if not is_typed or not all(isinstance(number, (int, float, str)) for number in numbers):
            yield f"{item.name} is {str(value)[:40]}, expected {kind.__name__}"
        elif not all(isinstance(n, str) or (math.isfinite(n) and abs(n) <= LARGEST_NUMBER) for n in numbers):
            yield f"{item.name} is {str(value)[:40]}, expected numbers up to {LARGEST_NUMBER}"
        elif _are_positive(item.default) and not _are_positive(value):
            yield f"{item.name} is {str(value)[:40]}, expected more than 0"


def _are_positive(value: Any) -> bool:
    numbers = value if isinstance(value, tuple) else (value,)
    return all(isinstance(number, (int, float)) and number > 0 for number in numbers)


def _stored(file: Path, metadata: dict[str, str], name: str) -> Any:
    """Return what the metadata hold as JSON under a name: a list of channels, else an object; empty where there is none."""
    kind = list if name == "channels" else dict
    try:
        value = json.loads(metadata[name]) if name in metadata else kind()
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{file}: its {name} are not JSON ({type(error).__name__}); use another weights file"
        ) from error
    if not isinstance(value, kind):
        raise WeightsError(f"{file}: its {name} are {type(value).__name__}, expected {kind.__name__}; use another file")
    return value
