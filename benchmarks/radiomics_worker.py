#!/usr/bin/env python
"""Measure radiomic features with one package, as `compare_radiomics.py` asks for them.

It runs in that package's own environment, so it imports nothing but NumPy and the package. It reads requests from
standard input, a line of JSON each, and answers with a line of JSON.
"""

import contextlib
import functools
import io
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np

BIN_WIDTH = 5  # gray levels
CLASSES = {  # set -> classes, by PyRadiomics' names
    "29 features": ("firstorder", "shape2D"),
    "75 textures": ("glcm", "glrlm", "glszm", "gldm", "ngtdm"),
}


def as_images(
    values: np.ndarray,  # (H, W), uint8, one channel
    mask: np.ndarray,  # (H, W), bool
) -> list:  # two images of SimpleITK, of one slice
    "Return a channel and its mask as PyRadiomics takes them."
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    arrays = (values.astype(np.int32), mask.astype(np.uint8))
    return [sitk.GetImageFromArray(array[None]) for array in arrays]


def extract_original(
    extractor: object,  # shaped as PyRadiomics' RadiomicsFeatureExtractor
    values: np.ndarray,  # (H, W), uint8
    mask: np.ndarray,  # (H, W), bool
    feature_classes: tuple,  # names of classes
) -> dict[str, float]:  # `<class>_<Feature>` -> value
    "Return all features of some classes, without the prefix."
    extractor.disableAllFeatures()
    named = {name: [] for name in feature_classes}
    if "firstorder" in named:  # deprecated ones are computed only where all are named
        named["firstorder"] = FIRSTORDER
        named["shape2D"] = SHAPE2D
    extractor.enableFeaturesByName(**named)
    result = extractor.execute(*as_images(values, mask))
    found = {name: value for name, value in result.items() if name.startswith("original_")}
    return {name.removeprefix("original_"): float(value) for name, value in found.items()}


FIRSTORDER = [
    "Energy", "TotalEnergy", "Entropy", "Minimum", "10Percentile", "90Percentile", "Maximum",
    "Mean", "Median", "InterquartileRange", "Range", "MeanAbsoluteDeviation",
    "RobustMeanAbsoluteDeviation", "RootMeanSquared", "StandardDeviation", "Skewness", "Kurtosis",
    "Variance", "Uniformity",
]  # fmt: skip
SHAPE2D = [
    "MeshSurface", "PixelSurface", "Perimeter", "PerimeterSurfaceRatio", "Sphericity",
    "SphericalDisproportion", "MaximumDiameter", "MajorAxisLength", "MinorAxisLength", "Elongation",
]  # fmt: skip
EXTRACTOR_SETTINGS = dict(binWidth=BIN_WIDTH, force2D=True, additionalInfo=False)


def load_pyradiomics() -> Callable:
    "Return PyRadiomics as a function of values, mask and classes."
    from radiomics.featureextractor import RadiomicsFeatureExtractor

    extractor = RadiomicsFeatureExtractor(**EXTRACTOR_SETTINGS)
    return functools.partial(extract_original, extractor)


def load_osteonb() -> Callable:
    "Return our engine."
    from osteonb.radiomics import compute_features

    return functools.partial(compute_features, bin_width=BIN_WIDTH)


def load_flash_radiomics() -> Callable:
    "Return flash-radiomics, PyRadiomics rewritten in C++."
    import flash_radiomics

    extractor = flash_radiomics.RadiomicsFeatureExtractor(**EXTRACTOR_SETTINGS)
    return functools.partial(extract_original, extractor)


def load_pytorchradiomics() -> Callable:
    "Return PyTorchRadiomics, which puts its own classes into PyRadiomics."
    import torch
    import torchradiomics
    from radiomics.featureextractor import RadiomicsFeatureExtractor

    torch.set_num_threads(1)
    torchradiomics.inject_torch_radiomics()
    settings = EXTRACTOR_SETTINGS | dict(device="cpu", dtype=torch.float64)
    return functools.partial(extract_original, RadiomicsFeatureExtractor(**settings))


def load_fastrad() -> Callable:
    "Return fastrad, on the processor and in double precision."
    import fastrad
    import torch

    torch.set_num_threads(1)

    def measure(values, mask, feature_classes):
        names = [name.lower() for name in feature_classes]
        settings = fastrad.FeatureSettings(names, BIN_WIDTH, device="cpu", force2D=True)
        image = fastrad.MedicalImage(torch.from_numpy(values[None]).double())
        region = fastrad.Mask(torch.from_numpy(mask[None]).double())
        found = fastrad.FeatureExtractor(settings).extract(image, region)
        return {re.sub("(10|90)th", r"\1", name.replace(":", "_")): found[name] for name in found}

    return measure


def load_numpyradiomics() -> Callable:
    "Return numpyradiomics; its `texture` prints a class that fails, and leaves it out."
    import numpyradiomics

    def measure(values, mask, feature_classes):
        values, region = values.astype(float), mask.astype(int)
        if "glcm" in feature_classes:
            return numpyradiomics.texture(values, region, binWidth=BIN_WIDTH)
        firstorder = numpyradiomics.firstorder(values, region, binWidth=BIN_WIDTH)
        shape = numpyradiomics.shape(region, (1.0, 1.0))
        found = {f"firstorder_{name}": value for name, value in firstorder.items()}
        return found | {f"shape2D_{name}": value for name, value in shape.items()}

    return measure


# mirp's families -> class -> mirp's abbreviation of each feature, with its place in PyRadiomics
MIRP_FAMILIES = {
    "29 features": ["statistics", "intensity_histogram"],
    "75 textures": ["glcm", "glrlm", "glszm", "ngldm", "ngtdm"],
}
MIRP_NAMES = {
    "firstorder": (
        "stat_energy Energy stat_mean Mean stat_median Median stat_min Minimum stat_max Maximum "
        "stat_p10 10Percentile stat_p90 90Percentile stat_iqr InterquartileRange stat_range Range "
        "stat_mad MeanAbsoluteDeviation stat_rmad RobustMeanAbsoluteDeviation "
        "stat_rms RootMeanSquared stat_skew Skewness stat_kurt Kurtosis stat_var Variance "
        "ih_entropy Entropy ih_uniformity Uniformity"
    ),
    "glcm": (
        "cm_joint_max MaximumProbability cm_joint_avg JointAverage cm_joint_var SumSquares "
        "cm_joint_entr JointEntropy cm_diff_avg DifferenceAverage cm_diff_var DifferenceVariance "
        "cm_diff_entr DifferenceEntropy cm_sum_avg SumAverage cm_sum_entr SumEntropy "
        "cm_energy JointEnergy cm_contrast Contrast cm_inv_diff Id cm_inv_diff_norm Idn "
        "cm_inv_diff_mom Idm cm_inv_diff_mom_norm Idmn cm_inv_var InverseVariance "
        "cm_corr Correlation cm_auto_corr Autocorrelation cm_clust_tend ClusterTendency "
        "cm_clust_shade ClusterShade cm_clust_prom ClusterProminence cm_info_corr1 Imc1 "
        "cm_info_corr2 Imc2"
    ),
    "glrlm": (
        "rlm_sre ShortRunEmphasis rlm_lre LongRunEmphasis rlm_lgre LowGrayLevelRunEmphasis "
        "rlm_hgre HighGrayLevelRunEmphasis rlm_srlge ShortRunLowGrayLevelEmphasis "
        "rlm_srhge ShortRunHighGrayLevelEmphasis rlm_lrlge LongRunLowGrayLevelEmphasis "
        "rlm_lrhge LongRunHighGrayLevelEmphasis rlm_glnu GrayLevelNonUniformity "
        "rlm_glnu_norm GrayLevelNonUniformityNormalized rlm_rlnu RunLengthNonUniformity "
        "rlm_rlnu_norm RunLengthNonUniformityNormalized rlm_r_perc RunPercentage "
        "rlm_gl_var GrayLevelVariance rlm_rl_var RunVariance rlm_rl_entr RunEntropy"
    ),
    "glszm": (
        "szm_sze SmallAreaEmphasis szm_lze LargeAreaEmphasis szm_lgze LowGrayLevelZoneEmphasis "
        "szm_hgze HighGrayLevelZoneEmphasis szm_szlge SmallAreaLowGrayLevelEmphasis "
        "szm_szhge SmallAreaHighGrayLevelEmphasis szm_lzlge LargeAreaLowGrayLevelEmphasis "
        "szm_lzhge LargeAreaHighGrayLevelEmphasis szm_glnu GrayLevelNonUniformity "
        "szm_glnu_norm GrayLevelNonUniformityNormalized szm_zsnu SizeZoneNonUniformity "
        "szm_zsnu_norm SizeZoneNonUniformityNormalized szm_z_perc ZonePercentage "
        "szm_gl_var GrayLevelVariance szm_zs_var ZoneVariance szm_zs_entr ZoneEntropy"
    ),
    "gldm": (
        "ngl_lde SmallDependenceEmphasis ngl_hde LargeDependenceEmphasis "
        "ngl_lgce LowGrayLevelEmphasis ngl_hgce HighGrayLevelEmphasis "
        "ngl_ldlge SmallDependenceLowGrayLevelEmphasis "
        "ngl_ldhge SmallDependenceHighGrayLevelEmphasis "
        "ngl_hdlge LargeDependenceLowGrayLevelEmphasis "
        "ngl_hdhge LargeDependenceHighGrayLevelEmphasis ngl_glnu GrayLevelNonUniformity "
        "ngl_dcnu DependenceNonUniformity ngl_dcnu_norm DependenceNonUniformityNormalized "
        "ngl_gl_var GrayLevelVariance ngl_dc_var DependenceVariance ngl_dc_entr DependenceEntropy"
    ),
    "ngtdm": (
        "ngt_coarseness Coarseness ngt_contrast Contrast ngt_busyness Busyness "
        "ngt_complexity Complexity ngt_strength Strength"
    ),
}


def load_mirp() -> Callable:
    "Return mirp, by slice; it follows IBSI and has no shape in two dimensions."
    from mirp import extract_features

    places = {}
    for name, pairs in MIRP_NAMES.items():
        words = pairs.split()
        for short, feature in zip(words[::2], words[1::2], strict=True):
            places[short] = f"{name}_{feature}"
    by_slice = dict(glcm="2d_average", glrlm="2d_average", glszm="2d", ngtdm="2d", ngldm="2d")
    settings = {f"{family}_spatial_method": method for family, method in by_slice.items()}
    settings |= dict(by_slice=True, ngldm_difference_level=0.0)
    settings["base_discretisation_method"] = "fixed_bin_size"
    settings["base_discretisation_bin_width"] = float(BIN_WIDTH)

    def measure(values, mask, feature_classes):
        families = MIRP_FAMILIES["75 textures" if "glcm" in feature_classes else "29 features"]
        # IBSI's bins begin at the lower bound that is given: at PyRadiomics' first edge
        first_edge = float(values[mask].min() // BIN_WIDTH * BIN_WIDTH)
        table = extract_features(
            image=values[None].astype(float),
            mask=mask[None].astype(int),
            base_feature_families=families,
            resegmentation_intensity_range=[first_edge, 255.0],
            **settings,
        )[0]
        found = {}
        for column, value in table.iloc[0].items():
            short = re.sub("(_d1|_2d|_fbs).*", "", column)  # how it was computed
            if short in places:
                found[places[short]] = float(value)
        return found

    return measure


LOADERS = {
    "PyRadiomics": load_pyradiomics,
    "osteonb": load_osteonb,
    "flash-radiomics": load_flash_radiomics,
    "fastrad": load_fastrad,
    "mirp": load_mirp,
    "numpyradiomics": load_numpyradiomics,
    "pytorchradiomics": load_pytorchradiomics,
}


def time_features(
    measure: Callable,  # of values, mask and classes
    arguments: tuple,  # values, mask, classes
    rounds: int,  # of which the median counts
) -> dict:  # cpu and wall, milliseconds; features
    "Measure one channel under one mask."
    cpu = []
    wall = []
    for _ in range(rounds):
        starts = time.process_time(), time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            features = measure(*arguments)
        cpu.append(1000 * (time.process_time() - starts[0]))
        wall.append(1000 * (time.perf_counter() - starts[1]))
    found = {name: float(value) for name, value in features.items()}
    return dict(cpu=float(np.median(cpu)), wall=float(np.median(wall)), features=found)


def warm_up(
    measure: Callable,  # of values, mask and classes
) -> None:
    "Measure a small image, so that what is imported or compiled at the first call is not timed."
    values = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    for feature_classes in CLASSES.values():
        with contextlib.suppress(Exception):  # reported where a tile is measured
            time_features(measure, (values, values > 20, feature_classes), 1)


def main() -> None:
    "Answer requests until standard input ends."
    name, path = sys.argv[1:]
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")  # packages may print: their output goes to standard error
    os.dup2(2, 1)
    arrays = np.load(path)

    def reply(**answer: object) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        measure = LOADERS[name]()
        warm_up(measure)
    except Exception as error:
        reply(error=f"cannot be loaded: {type(error).__name__}: {error}")
        return
    reply(ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        pixels = [arrays[f"{request['tile']} {part}"] for part in ("values", request["mask"])]
        arguments = (*pixels, CLASSES[request["features"]])
        try:
            reply(**time_features(measure, arguments, request["rounds"]))
        except Exception as error:
            reply(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
