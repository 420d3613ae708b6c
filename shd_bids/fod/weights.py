"""Save and load network weights: safetensors with what is needed to refuse a wrong file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shd_bids.errors import WeightsError
from shd_bids.files import atomic_path
from shd_bids.fod.config import CHANNELS, InputConfig, PrecisionConfig, RefinementConfig, TrainedDomain
from shd_bids.fod.inputs.shells import is_shell_channel
from shd_bids.fod.inputs.volumes import InputVolumes
from shd_bids.fod.methods import CONDITIONED, SHELLS
from shd_bids.nn.unet import UNet, UNetConfig

FORMAT = "shd_bids-3"
"""Meaning of input channels, output channels and parameter names; a change of any of them is a new format."""

SHIPPED = "shd_bids.safetensors"

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
    file = path if path is not None else Path(str(resources.files("shd_bids.data") / SHIPPED))
    if not file.is_file():
        raise WeightsError(f"no weights file at {file}; give a .safetensors file to --weights, or leave the option out")
    try:
        with safe_open(file, framework="pt") as handle:
            metadata = handle.metadata() or {}
            state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} cannot be read as safetensors ({error}); copy or download it again") from error
    channels = tuple(json.loads(metadata.get("channels", "[]")))
    if metadata.get("format") != FORMAT or not (
        channels == CHANNELS or (channels and all(map(is_shell_channel, channels)))
    ):
        raise WeightsError(
            f"{file} is of format {metadata.get('format', 'unknown')!r}, expected {FORMAT!r} with inputs {CHANNELS} or shells; "
            "use weights trained with this version"
        )
    return _checked(file, metadata, state)


def _checked(file: Path, metadata: dict[str, str], state: dict[str, Tensor]) -> Weights:
    """Build the weights, refusing parameters that do not fit the configuration or are not finite."""
    try:
        config = UNetConfig.from_dict(json.loads(metadata["config"]))
        expected = UNet(config).state_dict()
        inputs = InputConfig.from_dict(_stored(metadata, "inputs") | {"channels": _stored(metadata, "channels")})
        refinement = RefinementConfig.from_dict(_stored(metadata, "refinement"))
        precision = PrecisionConfig.from_dict(_stored(metadata, "precision"))
        domain = TrainedDomain.from_dict(_stored(metadata, "domain"))
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{file} holds no usable configuration ({error})") from error
    wrong = sorted(
        set(expected) ^ set(state) | {k for k in set(expected) & set(state) if expected[k].shape != state[k].shape}
    )
    if len(inputs.channels) != config.in_channels:
        wrong.append("in_channels")
    wrong += [k for k, v in state.items() if not torch.isfinite(v.float()).all()]
    if wrong:
        raise WeightsError(f"{file} does not fit its network in {len(wrong)} parameters, first: {wrong[0]}")
    return Weights(
        config=config,
        state=state,
        l_max=int(metadata["l_max"]),
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        name=file.stem,
        training=_stored(metadata, "training"),
        inputs=inputs,
        refinement=refinement,
        precision=precision,
        domain=domain,
    )


def _stored(metadata: dict[str, str], name: str) -> Any:
    """Return what the metadata hold as JSON under a name; nothing where there is none."""
    return json.loads(metadata.get(name, "{}"))
