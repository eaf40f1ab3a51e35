"""Every setting of PyRadiomics' parameter files gives PyRadiomics' values, at 1e-6, on real tiles and on a drawn one.

PyRadiomics gets the picture in 32 bits (its bins overflow in 8) and as a plane, where it computes the Laplacian, which it leaves out of a volume of one slice."""
import logging
import warnings

import numpy as np
import pytest
import SimpleITK as sitk
from radiomics.featureextractor import RadiomicsFeatureExtractor as PyRadiomics

from osteonb.data.images import read_tile
from osteonb.radiomics.engines import _feature_differences
from osteonb.radiomics.extractor import RadiomicsFeatureExtractor
from osteonb.radiomics.masks import tissue_mask
from osteonb.radiomics.parameters import _CLASSES, _IMAGE_TYPES, _SETTINGS
from osteonb.radiomics.stain import to_grey
from osteonb.synthetic.cohort import draw_tile
from osteonb.synthetic.fixtures import real_data_folder

SIDE = 256          # pixels of a crop: PyRadiomics takes a second where a tile takes half a minute
LIMIT = 1e-6
ALL = {name: [] for name in _CLASSES}
FAST = dict(firstorder=[], shape2D=[], glcm=["Contrast", "Idm", "JointEntropy"], glszm=["ZonePercentage"])

# name of the case -> (setting, imageType, featureClass); the picture's gray values go from 0 to 255
CASES = {
    "defaults": ({}, {}, ALL),
    "binWidth": (dict(binWidth=5), {}, ALL),
    "binWidth, a fraction": (dict(binWidth=7.3), {}, ALL),
    "binCount": (dict(binCount=32), {}, ALL),
    "binCount of few": (dict(binCount=3), {}, ALL),
    "distances 2": (dict(distances=[2]), {}, dict(glcm=[], gldm=[], ngtdm=[], glrlm=[])),
    "distances 1 and 3": (dict(distances=[1, 3]), {}, dict(glcm=[], gldm=[], ngtdm=[])),
    "weightingNorm manhattan": (dict(weightingNorm="manhattan"), {}, dict(glcm=[], glrlm=[])),
    "weightingNorm euclidean": (dict(weightingNorm="euclidean", distances=[1, 2]), {}, dict(glcm=[], glrlm=[])),
    "weightingNorm infinity": (dict(weightingNorm="infinity"), {}, dict(glcm=[], glrlm=[])),
    "weightingNorm no_weighting": (dict(weightingNorm="no_weighting"), {}, dict(glcm=[], glrlm=[])),
    "symmetricalGLCM off": (dict(symmetricalGLCM=False), {}, dict(glcm=[])),
    "symmetricalGLCM off, weighted": (dict(symmetricalGLCM=False, weightingNorm="infinity"), {}, dict(glcm=[])),
    "gldm_a": (dict(gldm_a=1, binWidth=10), {}, dict(gldm=[])),
    "gldm_a, distances": (dict(gldm_a=2, distances=[2], binWidth=10), {}, dict(gldm=[])),
    "voxelArrayShift": (dict(voxelArrayShift=300), {}, dict(firstorder=[])),
    "deprecated by name": ({}, {}, dict(firstorder=["StandardDeviation", "Mean"], shape2D=["SphericalDisproportion"])),
    "normalize": (dict(normalize=True, binWidth=0.1), {}, ALL),
    "normalizeScale": (dict(normalize=True, normalizeScale=100, voxelArrayShift=300), {}, ALL),
    "removeOutliers": (dict(normalize=True, normalizeScale=100, removeOutliers=1.5), {}, FAST),
    "resegmentRange": (dict(resegmentRange=[60, 180]), {}, ALL),
    "resegmentRange, one limit": (dict(resegmentRange=[120]), {}, FAST),
    "resegmentRange, upside down": (dict(resegmentRange=[180, 60]), {}, FAST),
    "resegmentMode relative": (dict(resegmentRange=[0.3, 0.8], resegmentMode="relative"), {}, FAST),
    "resegmentMode sigma": (dict(resegmentRange=[-1, 1.5], resegmentMode="sigma"), {}, FAST),
    "resegmentShape": (dict(resegmentRange=[60, 180], resegmentShape=True), {}, FAST),
    "resampledPixelSpacing": (dict(resampledPixelSpacing=[2, 2]), {}, ALL),
    "resampledPixelSpacing, finer": (dict(resampledPixelSpacing=[0.7, 0.7], padDistance=2), {}, FAST),
    "resampledPixelSpacing, in one direction": (dict(resampledPixelSpacing=[1.6, 0]), {}, FAST),
    "resampledPixelSpacing, the same": (dict(resampledPixelSpacing=[1, 1]), dict(Gradient={}), FAST),
    **{f"interpolator {name}": (dict(resampledPixelSpacing=[1.5, 1.5], interpolator=name), {}, FAST)
       for name in ("sitkNearestNeighbor", "sitkLinear", "sitkGaussian", "sitkHammingWindowedSinc", "sitkLanczosWindowedSinc")},
    "interpolator none": (dict(resampledPixelSpacing=[2, 2], interpolator=None), {}, FAST),
    "normalized, resampled, segmented again": (dict(normalize=True, normalizeScale=100, resampledPixelSpacing=[1.3, 1.3], resegmentRange=[-2, 2],
                                                    resegmentMode="sigma", voxelArrayShift=300), dict(Original={}, Wavelet={}), FAST),
    "preCrop, padDistance": (dict(preCrop=True, padDistance=3), dict(LoG=dict(sigma=[2])), FAST),
    "label": (dict(label=2), {}, FAST),
    "minimumROISize": (dict(minimumROISize=10, minimumROIDimensions=1), {}, FAST),
    "geometryTolerance, correctMask": (dict(geometryTolerance=1e-3, correctMask=True), {}, FAST),
    "force2D": (dict(force2D=True, force2Ddimension=0), dict(Wavelet={}), FAST),
    "Original": ({}, dict(Original={}), FAST),
    "LoG": ({}, dict(LoG=dict(sigma=[1.0, 2.5, 4], binWidth=5)), FAST),
    "LoG, all classes": (dict(sigma=[1.5]), dict(LoG=dict(binWidth=8)), ALL),
    "Wavelet": (dict(binWidth=5), dict(Wavelet={}), FAST),
    "Wavelet, all classes": (dict(binWidth=10), dict(Wavelet={}), ALL),
    "Wavelet, levels": ({}, dict(Wavelet=dict(wavelet="db2", start_level=1, level=2)), FAST),
    "Wavelet, haar": ({}, dict(Wavelet=dict(wavelet="haar", level=2)), FAST),
    "Square": ({}, dict(Square=dict(binWidth=5)), ALL),
    "SquareRoot": ({}, dict(SquareRoot=dict(binWidth=5)), ALL),
    "Logarithm": ({}, dict(Logarithm=dict(binWidth=5)), ALL),
    "Exponential": ({}, dict(Exponential=dict(binWidth=5)), ALL),
    "Gradient": ({}, dict(Gradient=dict(binWidth=3)), ALL),
    "Gradient, without spacing": (dict(gradientUseSpacing=False), dict(Gradient={}), FAST),
    "LBP2D": ({}, dict(LBP2D=dict(binWidth=1)), ALL),
    "LBP2D, wider": (dict(lbp2DRadius=2.5, lbp2DSamples=12, lbp2DMethod="ror"), dict(LBP2D=dict(binWidth=100)), FAST),
    "LBP2D, default": (dict(lbp2DMethod="default"), dict(LBP2D={}), FAST),
    "additionalInfo": (dict(additionalInfo=False), {}, FAST),
}


def as_pair(rgb, spacing=(1.0, 1.0)):
    "The gray channel in 32 bits, and a mask with the tissue's left part as label 1 and its right part as label 2."
    gray, tissue = to_grey(rgb).astype(np.int32), tissue_mask(rgb)
    y, x = np.indices(gray.shape)
    labels = np.where(x < 0.6*gray.shape[1], 1, 2)*(tissue & (np.hypot(y - 120, x - 100) < 300))
    labels[:7] = labels[:, :5] = labels[-9:] = 0
    pair = [sitk.GetImageFromArray(one) for one in (gray, labels.astype(np.uint8))]
    for one in pair: one.SetSpacing(spacing)
    return pair


def worst_difference(sections, image, mask, **kwargs):
    "The largest relative difference of all features, with its name; names and order are the same."
    if sections.get("setting", {}).get("force2D"):      # which is for one slice of a volume: of a plane it leaves out the rows
        image, mask = (sitk.JoinSeries([one], 0, 2.5) if one.GetDimension() == 2 else one for one in (image, mask))
    logging.getLogger("radiomics").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PyRadiomics(sections).execute(image, mask, **kwargs)
        ours = RadiomicsFeatureExtractor(sections).execute(image, mask, **kwargs)
    assert list(ours) == list(theirs)
    features = [name for name in ours if not name.startswith("diagnostics")]
    worst = {}
    for prefix in dict.fromkeys(name.rsplit("_", 2)[0] for name in features):
        mine, reference = ({name[len(prefix) + 1:]: float(all_[name]) for name in features if name.rsplit("_", 2)[0] == prefix} for all_ in (ours, theirs))
        differences = _feature_differences(mine, reference)
        name = max(differences, key=differences.get)
        worst[f"{prefix}_{name}"] = differences[name]
    name = max(worst, key=worst.get)
    return worst[name], name


def as_sections(case):
    setting, image_types, classes = CASES[case]
    sections = dict(setting=setting, imageType=image_types, featureClass=classes)
    return {name: content for name, content in sections.items() if content}


@pytest.fixture(scope="module")
def drawn():
    return as_pair(draw_tile("Case 901 A3-8844-18245", "Viable", size=128))


@pytest.fixture(scope="module")
def real():
    "The middles of two real tiles, one of them with a side of odd length."
    if real_data_folder() is None: pytest.skip("the real tiles are absent: $OSTEONB_DATA/tcia_osteosarcoma")
    paths = sorted(real_data_folder().rglob("*.jpg"))
    crops = [read_tile(path)[380:380 + SIDE, 300:300 + SIDE] for path in (paths[3], paths[-5])]
    return [as_pair(crops[0]), as_pair(crops[1][:-1, :-4])]


def test_every_setting_has_a_case():
    named = set()
    for setting, image_types, _ in CASES.values():
        named |= set(setting).union(*image_types.values())
    assert set(_SETTINGS) - named == {"label_channel"}
    assert {name for _, image_types, _ in CASES.values() for name in image_types} == set(_IMAGE_TYPES)


@pytest.mark.parametrize("case", CASES)
def test_drawn_tile(case, drawn):
    difference, name = worst_difference(as_sections(case), *drawn)
    assert difference <= LIMIT, name


@pytest.mark.parametrize("case", CASES)
def test_real_tiles(case, real):
    for pair in real:
        difference, name = worst_difference(as_sections(case), *pair)
        assert difference <= LIMIT, name


@pytest.mark.parametrize("case", ["defaults", "weightingNorm euclidean", "weightingNorm manhattan", "LoG", "Gradient", "resampledPixelSpacing, in one direction", "resegmentShape"])
def test_pixels_that_are_no_squares(case):
    pair = as_pair(draw_tile("Case 901 A3-8844-18245", "Viable", size=128), (0.5, 0.8))
    difference, name = worst_difference(as_sections(case), *pair)
    assert difference <= LIMIT, name


def test_one_slice_of_a_volume():
    "Its thickness counts in TotalEnergy, and a spacing of three numbers is taken."
    image, mask = (sitk.JoinSeries([one], 0, 2.5) for one in as_pair(draw_tile("Case 901 A3-8844-18245", "Viable", size=96)))
    sections = dict(setting=dict(force2D=True, resampledPixelSpacing=[1.5, 1.5, 4]), imageType=dict(Original={}, Wavelet={}, Gradient={}), featureClass=FAST)
    difference, name = worst_difference({**sections, "setting": sections["setting"] | dict(additionalInfo=False)}, image, mask)
    assert difference <= LIMIT, name


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_other_types(dtype, drawn):
    "16 bits and floats; PyRadiomics gets 8 bits as 32."
    image, mask = drawn
    factor = 1 if dtype == np.uint8 else 100
    values = (sitk.GetArrayFromImage(image)*factor).astype(dtype) if np.dtype(dtype).kind != "f" else (sitk.GetArrayFromImage(image)/255).astype(dtype)
    width = dict(u=25*factor, i=25*factor, f=0.1)[np.dtype(dtype).kind]
    sections = dict(setting=dict(binWidth=width, additionalInfo=False), imageType=dict(Original={}, LoG=dict(sigma=[2], binWidth=width/5)), featureClass=ALL)
    if dtype != np.uint8:
        difference, name = worst_difference(sections, sitk.GetImageFromArray(values), mask)
        assert difference <= LIMIT, name
    else:
        ours = [RadiomicsFeatureExtractor(sections).execute(one, mask) for one in (sitk.GetImageFromArray(values), sitk.GetImageFromArray(values.astype(np.int32)))]
        assert ours[0] == pytest.approx(ours[1], rel=1e-9, nan_ok=True)


def test_label_and_label_channel(drawn):
    image, mask = drawn
    labels = sitk.GetArrayFromImage(mask)
    channels = sitk.GetImageFromArray(np.dstack([labels, 255*(labels == 1)]), isVector=True)
    sections = dict(setting=dict(label_channel=1, label=255), featureClass=FAST)
    assert worst_difference(sections, image, channels)[0] <= LIMIT
    assert worst_difference(dict(featureClass=FAST), image, channels, label=255, label_channel=1)[0] <= LIMIT
    assert worst_difference(dict(featureClass=FAST), image, mask, label=2)[0] <= LIMIT


@pytest.mark.parametrize("shape", ["row", "two pixels", "diagonal", "ring"])
def test_small_regions(shape, drawn):
    "A row of pixels has features where `minimumROIDimensions` is 1; what is undefined is so in both."
    image, _ = drawn
    mask = np.zeros(image.GetSize()[::-1], np.uint8)
    if shape == "row": mask[5, 10:40] = 1
    if shape == "two pixels": mask[5, 10:12] = 1
    if shape == "diagonal": mask[range(9), range(9)] = 1
    if shape == "ring": mask[5:20, 5:20] = 1; mask[6:19, 6:19] = 0
    classes = {name: [] for name in _CLASSES if name != "shape2D"}
    sections = dict(setting=dict(minimumROIDimensions=1, binWidth=3), featureClass=classes)
    difference, name = worst_difference(sections, image, sitk.GetImageFromArray(mask))
    assert difference <= LIMIT, name


@pytest.mark.parametrize("sections, message", [
    (dict(setting=dict(binwidth=5)), "binWidth"),
    (dict(setting=dict(force2Ddimension=1)), "one slice"),
    (dict(setting=dict(minimumROIDimensions=3)), "two dimensions"),
    (dict(setting=dict(lbp3DLevels=2)), "use LBP2D"),
    (dict(imageType=dict(LBP3D={})), "use LBP2D"),
    (dict(imageType=dict(LoG={})), "has no sigma"),
    (dict(featureClass=dict(shape=[])), "use shape2D"),
    (dict(voxelSetting=dict(kernelRadius=2)), "each pixel"),
    (dict(featureClass=dict(glcm=["SumVariance"])), "unknown feature of glcm"),
])
def test_refused_by_name(sections, message):
    with pytest.raises(ValueError, match=message): RadiomicsFeatureExtractor(sections)
