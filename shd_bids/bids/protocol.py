"""What makes two diffusion series comparable: shells, directions, voxels, and where they were acquired."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shd_bids.bids.run import DWIRun

__all__ = ["SITE_KEYS", "Protocol", "by_protocol"]

SITE_KEYS = ("Manufacturer", "ManufacturersModelName", "MagneticFieldStrength", "InstitutionName", "StationName")
"""Metadata of BIDS that tell site and scanner."""

B_GAP, B_SHARE = 30.0, 0.03  # s/mm2 and share of b: the signal of free water changes by 9 % per 30 s/mm2
VOLUMES_SHARE = 0.1  # of a shell may be missing, as in a scan that was cut short
SIZE_GAP = 0.05  # mm


@dataclass(frozen=True)
class Protocol:
    """How series were acquired.

    Attributes
    ----------
    shells : tuple of (float, int)
        b-value in s/mm2 and number of volumes of each weighted shell; b=0 volumes do not count.
    voxel_size : tuple of float
        Along x, y, z, mm.
    site : tuple of (str, str)
        Those of `SITE_KEYS` that the sidecar has, with their values.
    """

    shells: tuple[tuple[float, int], ...]
    voxel_size: tuple[float, ...]
    site: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, run: DWIRun) -> "Protocol":
        """Return the protocol of a series."""
        site = tuple((key, str(run.sidecar[key]).strip()) for key in SITE_KEYS if run.sidecar.get(key) is not None)
        return cls(tuple(shell for shell in run.shells if shell[0] > 0), run.voxel_size, site)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Protocol":
        """Return the protocol that `to_dict` wrote; KeyError, TypeError and ValueError tell that it did not."""
        shells = tuple((float(shell["BValue"]), int(shell["Volumes"])) for shell in content["Shells"])
        site = tuple((key, str(content[key])) for key in SITE_KEYS if key in content)
        return cls(shells, tuple(map(float, content["VoxelSize"])), site)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that JSON can hold."""
        shells = [{"BValue": bvalue, "Volumes": count} for bvalue, count in self.shells]
        return {"Shells": shells, "VoxelSize": list(self.voxel_size), **dict(self.site)}

    def agrees_with(self, other: "Protocol") -> bool:
        """Whether responses of one serve series of the other.

        b-values may differ by 30 s/mm2 or 3 %, the larger, numbers of volumes by a tenth, and voxels by 0.05 mm; site
        and scanner are the same, or unknown of both.
        """
        return (
            self.site == other.site
            and len(self.shells) == len(other.shells)
            and all(_is_close(*pair) for pair in zip(self.shells, other.shells, strict=True))
            and all(abs(a - b) <= SIZE_GAP for a, b in zip(self.voxel_size, other.voxel_size, strict=True))
        )

    def __str__(self) -> str:
        shells = ", ".join(f"b={bvalue:.0f}: {count}" for bvalue, count in self.shells)
        size = " x ".join(f"{length:.3g}" for length in self.voxel_size)
        site = " ".join(f"{value} T" if key == "MagneticFieldStrength" else value for key, value in self.site)
        return f"{shells}; {size} mm; {site or 'site and scanner unknown'}"


def by_protocol(runs: Iterable[DWIRun], known: Iterable[Protocol] = ()) -> dict[Protocol, list[DWIRun]]:
    """Return the series of each protocol: the first of those known that agrees, else that of the first such series."""
    found: dict[Protocol, list[DWIRun]] = {protocol: [] for protocol in known}
    for run in runs:
        own = Protocol.of(run)
        agreeing = next((protocol for protocol in found if protocol.agrees_with(own)), own)
        found.setdefault(agreeing, []).append(run)
    return {protocol: members for protocol, members in found.items() if members}


def _is_close(one: tuple[float, int], other: tuple[float, int]) -> bool:
    (b_one, n_one), (b_other, n_other) = one, other
    same_b = abs(b_one - b_other) <= max(B_GAP, B_SHARE * max(b_one, b_other))
    return same_b and abs(n_one - n_other) <= VOLUMES_SHARE * max(n_one, n_other)
