"""The methods text of a report: sentences assembled from what was really done, with numbered references."""

from collections.abc import Callable, Iterable, Sequence
from html import escape

from shd_bids import __version__
from shd_bids.fod.methods import describe_training, method_named
from shd_bids.report.facts import STAGES, TISSUE_NAMES, RunReport, dig, fit_mode, html_value, listed, shells, voxel_size

Cite = Callable[..., str]
"""Called with keys of `REFERENCES`; returns their numbers in brackets."""

REFERENCES = {
    "shd": (
        "Elaldi A, Gerig G, Dey N. Equivariant spatio-hemispherical networks for diffusion MRI deconvolution. "
        "NeurIPS 2024.",
        "https://arxiv.org/abs/2411.11819",
    ),
    "rt_esd": (
        "Elaldi A, Gerig G, Dey N. E(3) x SO(3)-equivariant networks for spherical deconvolution in diffusion MRI. "
        "MIDL 2023.",
        "https://arxiv.org/abs/2304.06103",
    ),
    "esd": (
        "Elaldi A, Dey N, Kim H, Gerig G. Equivariant spherical deconvolution: learning sparse orientation distribution "
        "functions from spherical data. IPMI 2021.",
        "https://arxiv.org/abs/2102.09462",
    ),
    "isra": (
        "Daube-Witherspoon ME, Muehllehner G. An iterative image space reconstruction algorithm suitable for volume ECT. "
        "IEEE Trans Med Imaging 1986;5:61-66.",
        "https://doi.org/10.1109/TMI.1986.4307748",
    ),
    "coherence": (
        "Schilling KG, et al. A fiber coherence index for quality control of B-table orientation in diffusion MRI "
        "scans. Magn Reson Imaging 2019;58:82-89.",
        "https://doi.org/10.1016/j.mri.2019.01.018",
    ),
    "dhollander2016": (
        "Dhollander T, Raffelt D, Connelly A. Unsupervised 3-tissue response function estimation from single-shell or "
        "multi-shell diffusion MR data without a co-registered T1 image. ISMRM Workshop on Breaking the Barriers of "
        "Diffusion MRI 2016;5.",
        "",
    ),
    "dhollander2019": (
        "Dhollander T, Mito R, Raffelt D, Connelly A. Improved white matter response function estimation for 3-tissue "
        "constrained spherical deconvolution. Proc ISMRM 2019;555.",
        "",
    ),
    "msmt": (
        "Jeurissen B, et al. Multi-tissue constrained spherical deconvolution for improved analysis of multi-shell "
        "diffusion MRI data. NeuroImage 2014;103:411-426.",
        "https://doi.org/10.1016/j.neuroimage.2014.07.061",
    ),
    "mrtrix": (
        "Tournier J-D, et al. MRtrix3: A fast, flexible and open software framework for medical image processing and "
        "visualisation. NeuroImage 2019;202:116137.",
        "https://doi.org/10.1016/j.neuroimage.2019.116137",
    ),
    "normalise2017": (
        "Raffelt D, et al. Bias field correction and intensity normalisation for quantitative analysis of Apparent Fibre "
        "Density. Proc ISMRM 2017;25:3541.",
        "",
    ),
    "normalise2021": (
        "Dhollander T, et al. Multi-tissue log-domain intensity and inhomogeneity normalisation for quantitative apparent "
        "fibre density. Proc ISMRM 2021;29:2472.",
        "",
    ),
    "afd": (
        "Raffelt D, et al. Apparent Fibre Density: a novel measure for the analysis of diffusion-weighted magnetic "
        "resonance images. NeuroImage 2012;59:3976-3994.",
        "https://doi.org/10.1016/j.neuroimage.2011.10.045",
    ),
    "dipy": (
        "Garyfallidis E, et al. Dipy, a library for the analysis of diffusion MRI data. Front Neuroinform 2014;8:8.",
        "https://doi.org/10.3389/fninf.2014.00008",
    ),
    "sdstream": (
        "Tournier JD, Calamante F, Connelly A. MRtrix: diffusion tractography in crossing fiber regions. Int J Imaging Syst "
        "Technol 2012;22:53-66.",
        "https://doi.org/10.1002/ima.22005",
    ),
    "ifod2": (
        "Tournier JD, Calamante F, Connelly A. Improved probabilistic streamlines tractography by 2nd order integration over "
        "fibre orientation distributions. Proc ISMRM 2010;18:1670.",
        "",
    ),
    "act": (
        "Smith RE, Tournier JD, Calamante F, Connelly A. Anatomically-constrained tractography: improved diffusion MRI "
        "streamlines tractography through effective use of anatomical information. NeuroImage 2012;62:1924-1938.",
        "https://doi.org/10.1016/j.neuroimage.2012.06.005",
    ),
    "sift2": (
        "Smith RE, Tournier JD, Calamante F, Connelly A. SIFT2: Enabling dense quantitative assessment of brain white matter "
        "connectivity using streamlines tractography. NeuroImage 2015;119:338-351.",
        "https://doi.org/10.1016/j.neuroimage.2015.06.092",
    ),
    "fbc": (
        "Smith RE, Raffelt D, Tournier JD, Connelly A. Quantitative streamlines tractography: methods and inter-subject "
        "normalisation. Aperture Neuro 2022;2:1-25.",
        "https://doi.org/10.52294/ApertureNeuro.2022.2.NEOD9565",
    ),
    "bidsapps": (
        "Gorgolewski KJ, et al. BIDS apps: Improving ease of use, accessibility, and reproducibility of neuroimaging "
        "data analysis methods. PLoS Comput Biol 2017;13:e1005209.",
        "https://doi.org/10.1371/journal.pcbi.1005209",
    ),
    "nipype": (
        "Gorgolewski K, et al. Nipype: a flexible, lightweight and extensible neuroimaging data processing framework "
        "in Python. Front Neuroinform 2011;5:13.",
        "https://doi.org/10.3389/fninf.2011.00013",
    ),
}


def methods_text(runs: Sequence[RunReport]) -> str:
    """Return in HTML what was done to the runs, from their facts alone, with numbered references."""
    cited: list[str] = []

    def cite(*keys: str) -> str:
        cited.extend(key for key in keys if key not in cited)
        return "[" + ", ".join(str(cited.index(key) + 1) for key in keys) + "]"

    paragraphs = [
        f"Diffusion data were processed with shd_bids {escape(__version__)}, a BIDS App {cite('bidsapps')} whose steps "
        f"run in Nipype {cite('nipype')}."
    ]
    seen: dict[str, list[str]] = {}
    for run in runs:
        sentences = " ".join(_sentences(run, cite))
        if sentences:
            seen.setdefault(sentences, []).append(run.prefix)
    for sentences, prefixes in seen.items():
        head = f"<b>{escape(', '.join(prefixes))}.</b> " if len(runs) > 1 else ""
        paragraphs.append(head + sentences)
    if seen:
        paragraphs.append("This text may be copied into a manuscript; it is free of rights (CC0).")
    body = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    entries = "".join(f"<li>{_reference(key)}</li>" for key in cited)
    return f'{body}<ol class="references">{entries}</ol>'


def _sentences(run: RunReport, cite: Cite) -> Iterable[str]:
    """Yield the sentences on the stages that a run has finished; all values are escaped."""
    of_stage = {
        "gradients": _on_gradients,
        "response": _on_responses,
        "fod": _on_fod,
        "peaks": _on_peaks,
        "tractography": _on_streamlines,
        "weights": _on_weights,
        "connectome": _on_connectomes,
    }
    for stage in STAGES:
        if run.facts.get(stage) and stage in of_stage:
            yield from of_stage[stage](run, cite)


def _on_gradients(run: RunReport, cite: Cite) -> Iterable[str]:
    gradients = run.facts["gradients"]
    yield f"The series has {shells(gradients)} and voxels of {voxel_size(gradients)}."
    if gradients.get("orientation_check"):
        yield (
            "Gradient directions were turned into world axes and tested against the data by the coherence of "
            f"fibres over 24 flips and permutations {cite('coherence')}."
        )
    if dig(gradients, "sidecar", "mask_origin") == "estimated":
        yield f"The brain mask was estimated from the b = 0 images (median_otsu, {cite('dipy')})."


def _on_responses(run: RunReport, cite: Cite) -> Iterable[str]:
    tissues = [TISSUE_NAMES.get(tissue, tissue) for tissue in run.facts["response"].get("fitted_tissues", ())]
    if run.settings.get("responses"):
        yield f"Response functions of {escape(listed(tissues))} were taken from files."
    else:
        yield (
            f"Response functions of {escape(listed(tissues))} were estimated from the data without supervision "
            f"{cite('dhollander2016', 'dhollander2019')}."
        )


def _on_fod(run: RunReport, cite: Cite) -> Iterable[str]:
    """Yield which method made the fODFs, by whom, how its network was trained, and what was done to its result."""
    fod = run.facts["fod"]
    info = dig(fod, "info") or {}
    if "method" not in info:
        return
    method, many_tissues = method_named(info["method"]), cite("msmt")
    key = next((key for key, (_, url) in REFERENCES.items() if url and url == method.source[1]), None)
    source = (
        ""
        if key is None
        else f" {cite(key)}"
        if method.is_published
        else f" (shd_bids, with the layers of {cite(key)})"
    )
    training = describe_training(is_supervised=bool(info.get("is_supervised")), fit=str(fit_mode(run)))
    yield (
        f"Fibre orientation distributions (fODF) and the other tissues' amplitudes {many_tissues} were estimated by "
        f"{escape(method.description)}{source}. Its network was {escape(training)}."
    )
    if info.get("is_refined"):
        yield (
            "Its result was refined by the data: lobes on a dense set of axes followed the signal by multiplicative, "
            f"non-negative updates {cite('isra')}, as far as volumes left out were predicted better."
        )
    if normalisation := info.get("normalisation"):
        of = "a smooth field (polynomial of third order)" if normalisation["Mode"] == "bias" else "one factor"
        yield (
            f"Amplitudes were divided by {of}, so that the tissues of a voxel add up to one, estimated in the log domain with "
            f"rejection of outliers {cite('normalise2017', 'normalise2021')}."
        )
    yield (
        f"fODFs are stored as spherical harmonics of degree {html_value(dig(fod, 'sidecar', 'fod_lmax'))} in the basis of "
        f"MRtrix3 {cite('mrtrix')}."
    )


def _on_peaks(run: RunReport, cite: Cite) -> Iterable[str]:
    values = dig(run.facts["peaks"], "sidecar", "peaks") or {}
    separation = values.get("PeakMinimumSeparation", run.settings.get("peak_separation"))
    interval = values.get("PeakMaximumInterval", run.settings.get("peak_interval"))
    yield (
        f"Peaks were found on the harmonics (at least {html_value(separation)}° apart, directions within "
        f"{html_value(interval)}° with 90 % confidence, but for the largest of white matter), with number of fibres and "
        f"apparent fibre density {cite('afd')}."
    )


def _on_streamlines(run: RunReport, cite: Cite) -> Iterable[str]:
    block = dig(run.facts["tractography"], "sidecar", "tractography") or {}
    algorithm = str(dig(block, "StreamlinePropagation", "Algorithm", "Name") or "")
    kinds = {"det": ("deterministic", "sdstream"), "prob": ("probabilistic, second-order", "ifod2")}
    kind, source = kinds.get(algorithm, (algorithm, "ifod2"))
    accepted = dig(block, "StreamlineReconstructionDensity", "AcceptedStreamlines")
    propagation = dig(block, "StreamlinePropagation") or {}
    yield (
        f"{html_value(accepted)} streamlines were made by {escape(kind)} tractography {cite(source)} (step "
        f"{html_value(propagation.get('StepSize'))} mm, at most {html_value(propagation.get('AnglePerStep'))}° per step)."
    )
    anatomy = str(dig(block, "Anatomy", "Type") or "none")
    if anatomy != "none":
        yield f"They end in grey matter or at the edge of the mask and keep out of fluid, by the {escape(anatomy)} {cite('act')}."
    ends = dig(block, "StreamlineTermination", "Ends") or {}
    if ends:
        shares = [f"{escape(name)} ({100 * count / sum(ends.values()):.0f} %)" for name, count in ends.items()]
        yield f"What ended them: {', '.join(shares)}."
    refused = dig(block, "StreamlineAcceptanceCriteria", "Refused") or {}
    if refused:
        counts = [f"{escape(name)} ({html_value(count)})" for name, count in refused.items()]
        yield f"Streamlines refused for the place of an end: {', '.join(counts)}."


def _on_weights(run: RunReport, cite: Cite) -> Iterable[str]:
    weights = dig(run.facts["weights"], "sidecar", "weights", "StreamlineWeights") or {}
    yield (
        "Each has a weight, fitted so that their density is that of the fibres "
        f"{cite('sift2')}; a weight of one is {html_value(weights.get('ProportionalityCoefficient'))} mm²."
    )


def _on_connectomes(run: RunReport, cite: Cite) -> Iterable[str]:
    found = dig(run.facts["connectome"], "sidecar", "connectomes") or {}
    for label, about in found.items():
        yield (
            f"The ends of {html_value(about['StreamlinesAssigned'])} of {html_value(about['Streamlines'])} streamlines lie in or "
            f"within {html_value(about['AssignmentRadius'])} mm of the {html_value(about['Regions'])} regions of {escape(label)}."
        )
    if run.facts.get("weights"):
        yield f"Connections are told as fibre bundle capacity, the sum of the cross-sections of their streamlines {cite('fbc')}."


def _reference(key: str) -> str:
    text, url = REFERENCES[key]
    return escape(text) + (f' <a href="{escape(url)}">{escape(url.partition("//")[2])}</a>' if url else "")
