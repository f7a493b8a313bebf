"""The suite ``tiers``: every band holds, and the figures move when the physics does."""

from dataclasses import replace

import pytest

from moesim.files import catalog_root
from moesim.study.recorded import tiers
from moesim.study.recorded.tiers_cases import tier_cases
from moesim.study.recorded.tiers_coe import samba_batch_s, samba_setup
from moesim.study.serving.score import load_bands


@pytest.fixture(scope="module")
def answer():
    bands = load_bands(catalog_root() / "validation" / "bands.yaml").suites["tiers"]
    return tiers.run(bands=bands)


def test_every_band_holds(answer):
    assert len(answer["bands"]) >= 20
    assert [band["name"] for band in answer["bands"] if not band["ok"]] == []


def test_all_eight_overall_rows_are_there_and_close(answer):
    rows = {name: f for name, f in answer["metrics"].items() if name.startswith("overall")}
    assert len(rows) == 8
    assert sorted({f["published"] for f in rows.values()}) == [2.6, 2.7, 2.8, 3.7, 3.9, 4.2, 4.8, 6.6]
    assert max(f["error"] for f in rows.values()) < 0.015


def test_the_honest_variant_stands_beside_the_papers_own_assumption(answer):
    wide = answer["metrics"]["eight_links_dgx-h100"]
    assert wide["switch"] == pytest.approx(1e12 / (8 * 64e9), rel=1e-3)
    assert wide["overall"] < answer["metrics"]["overall_8x20_dgx-h100"]["value"] / 2


def test_a_slower_copy_breaks_the_rows():
    row = tier_cases().samba.overall[0]
    rdu, gpu = samba_setup("sn40l-8"), samba_setup("dgx-a100")
    fair = samba_batch_s(gpu, row.batch, row.output) / samba_batch_s(rdu, row.batch, row.output)
    slow = replace(rdu, copy_bytes_per_s=rdu.copy_bytes_per_s / 2)
    halved = samba_batch_s(gpu, row.batch, row.output) / samba_batch_s(slow, row.batch, row.output)
    assert abs(fair / row.a100 - 1) < 0.05 < abs(halved / row.a100 - 1)
