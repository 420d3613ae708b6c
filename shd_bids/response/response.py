"""The signal of one unit of a tissue, and those of the tissues that are fitted together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import eval_legendre


@dataclass(frozen=True, eq=False)
class Response:
    r"""Signal of one unit of a tissue, symmetric about its fibre: :math:`S(\theta) = \sum_l r_l Y_{l0}(\theta)`.

    Attributes
    ----------
    tissue : {"wm", "gm", "csf"}
    bvalues : array, shape (S,)
        Mean b of each shell in s/mm2, ascending, 0 for b=0.
    coefficients : array, shape (S, L)
        Zonal coefficients of degrees 0, 2, 4, ... in signal units, normalised as in MRtrix3; an isotropic signal s has
        :math:`r_0 = \sqrt{4\pi} s`. One column for isotropic tissues.
    """

    tissue: str
    bvalues: np.ndarray
    coefficients: np.ndarray

    @property
    def l_max(self) -> int:
        return 2 * (self.coefficients.shape[1] - 1)

    def amplitude(self, cosine: ArrayLike) -> np.ndarray:
        """Return the signal at the cosine of the angle to the fibre, shape (..., S)."""
        return zonal_basis(np.asarray(cosine, dtype=np.float64), self.l_max) @ self.coefficients.T

    def scaled(self, factor: float) -> "Response":
        """Return the response in other units of signal."""
        return replace(self, coefficients=self.coefficients * factor)


@dataclass(frozen=True, eq=False)
class Responses:
    """The responses of the tissues to be fitted; white matter is always there."""

    wm: Response
    gm: Response | None = None
    csf: Response | None = None

    @property
    def tissues(self) -> tuple[Response, ...]:
        """White matter first, then the others that are present."""
        return tuple(response for response in (self.wm, self.gm, self.csf) if response is not None)

    def only(self, tissues: Sequence[str]) -> "Responses":
        """Return the responses of the named tissues."""
        return Responses(**{response.tissue: response for response in self.tissues if response.tissue in tissues})

    def of_shells(self, shells: Sequence[int] | np.ndarray) -> "Responses":
        """Return the rows of some shells."""
        rows = list(shells)
        return Responses(**{r.tissue: Response(r.tissue, r.bvalues[rows], r.coefficients[rows]) for r in self.tissues})


def zonal_basis(cosine: np.ndarray, l_max: int) -> np.ndarray:
    """Return Y_l0 for even l, shape (..., l_max/2 + 1)."""
    degree = np.arange(0, l_max + 1, 2)
    return np.sqrt((2 * degree + 1) / (4 * np.pi)) * eval_legendre(degree, np.clip(cosine, -1, 1)[..., None])
