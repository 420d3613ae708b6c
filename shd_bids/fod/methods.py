"""Names, descriptions and sources of the methods by which fODFs are made, for sidecars and reports."""

from dataclasses import dataclass

CONDITIONED = "conditioned"
"""The network of this package, whose inputs serve any protocol."""

SHELLS = "shells"
"""A network of the same layers that is fed with the shells of one protocol."""

SHD = ("Elaldi, Gerig and Dey 2024, NeurIPS", "https://arxiv.org/abs/2411.11819")
RT_ESD = ("Elaldi, Gerig and Dey 2023, MIDL", "https://arxiv.org/abs/2304.06103")
ESD = ("Elaldi, Dey, Kim and Gerig 2021, IPMI", "https://arxiv.org/abs/2102.09462")


@dataclass(frozen=True, slots=True)
class Method:
    """A method of spherical deconvolution.

    Attributes
    ----------
    description : str
        A noun phrase.
    source : (str, str)
        Authors, year and venue; address. Both empty where the method is a user's own.
    is_published : bool
        Whether the source describes the whole method, not its layers alone.
    """

    description: str
    source: tuple[str, str]
    is_published: bool = True


METHODS = {
    CONDITIONED: Method(
        "spherical deconvolution by an equivariant network over space and the hemisphere whose inputs, deconvolutions with "
        "the responses of the series, serve any protocol",
        SHD,
        is_published=False,
    ),
    SHELLS: Method(
        "spherical deconvolution by an equivariant network over space and the hemisphere that is fed with the shells of its "
        "protocol",
        SHD,
        is_published=False,
    ),
    "SHD-TV": Method(
        "SHD-TV as published, spherical deconvolution by an equivariant network over space and the hemisphere with a prior "
        "on total variation",
        SHD,
    ),
    "SHD": Method(
        "SHD as published, spherical deconvolution by an equivariant network over space and the hemisphere", SHD
    ),
    "SHD-TV super-resolved": Method(
        "SHD-TV as published for few volumes, spherical deconvolution by an equivariant network that sees some of the "
        "volumes and predicts all",
        SHD,
    ),
    "RT-ESD": Method(
        "RT-ESD, spherical deconvolution by an equivariant network over space and the whole sphere", RT_ESD
    ),
    "ESD": Method("ESD, spherical deconvolution by an equivariant network over the sphere, voxel by voxel", ESD),
}
"""Method by the name that weights and recipes give it."""


def method_named(name: str) -> Method:
    """Return what is known of a method; one that a user's recipe names is described by that name."""
    return METHODS.get(name, Method(f"spherical deconvolution by the network of the recipe {name}", ("", ""), False))


def describe_training(*, is_supervised: bool, fit: str) -> str:
    """Return how the network was trained, as a participle.

    Parameters
    ----------
    is_supervised : bool
        Whether the truth of simulated volumes was used; scans have none.
    fit : {"amortised", "subject", "cohort"}
        How the weights came to the series.
    """
    scans = {"subject": "the series", "cohort": "the cohort"}.get(fit)
    if is_supervised:
        return "supervised on simulated volumes" + (f", then adapted to {scans} by its signal" if scans else "")
    return f"trained on {scans} by its signal alone" if scans else "trained beforehand"
