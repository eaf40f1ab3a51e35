"""ICC(3,1) of `osteonb.radiomics.stability`, computed by hand there, against two packages of statistics."""

import numpy as np
import pandas as pd
import pytest

from osteonb.radiomics.stability import _intraclass_correlation, _mean_squares

SHROUT_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
)


def tables():
    "Return tables of ratings: the published one, and random ones with little and much agreement."
    rng = np.random.default_rng(0)
    found = [SHROUT_FLEISS]
    for n, k, noise in (
        (2, 2, 0.1),
        (3, 4, 1),
        (12, 2, 0.01),
        (40, 3, 10),
        (120, 2, 1),
        (7, 5, 0.3),
    ):
        found.append(
            1000
            + rng.normal(size=(n, 1))
            + noise * rng.normal(size=(n, k))
            + 3 * rng.normal(size=(1, k))
        )
    return found


def as_long(values):
    "Return a table with a row for each rating."
    return (
        pd.DataFrame(values).stack().rename_axis(["tile", "version"]).rename("value").reset_index()
    )


def test_the_published_example():
    "Shrout and Fleiss (1979), tables 3 and 4."
    between_rows, rest = _mean_squares(SHROUT_FLEISS)
    assert round(between_rows, 2) == 11.24 and round(rest, 2) == 1.02
    assert round(_intraclass_correlation(SHROUT_FLEISS), 2) == 0.71


@pytest.mark.parametrize("values", tables(), ids=lambda values: "{}x{}".format(*values.shape))
def test_pingouin_agrees(values):
    pingouin = pytest.importorskip("pingouin")
    if len(values) < 5:
        pytest.skip("pingouin wants five targets")
    table = pingouin.intraclass_corr(as_long(values), "tile", "version", "value").set_index("Type")
    name = "ICC(C,1)" if "ICC(C,1)" in table.index else "ICC3"  # its name before 0.6
    assert np.isclose(table.ICC[name], _intraclass_correlation(values), rtol=1e-9)


@pytest.mark.parametrize("values", tables(), ids=lambda values: "{}x{}".format(*values.shape))
def test_statsmodels_has_the_same_mean_squares(values):
    api = pytest.importorskip("statsmodels.formula.api")
    anova = pytest.importorskip("statsmodels.stats.anova")
    long = as_long(values - values.mean())
    table = anova.anova_lm(api.ols("value ~ C(tile) + C(version)", long).fit())
    mean_squares = table.sum_sq / table.df
    found = _mean_squares(values)
    assert np.allclose(found, mean_squares[["C(tile)", "Residual"]], rtol=1e-6)
