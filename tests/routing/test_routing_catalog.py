"""Shipped routing files: popularity of each, and the fitted models against recordings they were not fitted on."""

import numpy as np
import pytest

from moesim.errors import SpecError
from moesim.files import Document, catalog_names, catalog_root
from moesim.routing.describe import describe
from moesim.routing.popularity import layer_popularity
from moesim.routing.store import load_model
from moesim.spec.base import load_spec, validate
from moesim.spec.routing import RoutingSpec

FITTED = ("gpt-oss-20b", "deepseek-v2-lite")


@pytest.mark.parametrize("name", catalog_names("routing"))
def test_every_file_gives_a_popularity(name):
    spec = load_spec(RoutingSpec, name, "routing")
    assert spec.name == name
    experts, k = spec.experts or 16, spec.top_k or 4
    share = layer_popularity(spec, experts, k)
    assert share.shape[1] == experts
    assert share.sum(axis=1) == pytest.approx(1)
    assert np.all(share * k <= 1 + 1e-6)
    if spec.experts is not None:
        with pytest.raises(SpecError, match="the model has"):
            layer_popularity(spec, 2 * experts, k)


def test_sidecars_are_small():
    for name in FITTED:
        assert (catalog_root() / "workloads/routing" / f"{name}.npz").stat().st_size < 1e6


def test_popularity_order_of_mixtral_is_kept():
    spec = load_spec(RoutingSpec, "mixtral-8x7b", "routing")
    share = layer_popularity(spec, 8, 2)
    assert share.shape == (32, 8)
    for layer, order in enumerate(spec.router.order):
        assert np.argsort(-share[layer]).tolist() == list(order)


@pytest.mark.shared
@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("seed", [0, 1])
def test_samples_match_sequences_kept_out_of_the_fit(held_out, name, seed):
    """Issue table: overlap, load, information, LRU hit rate and distinct experts, each within 5 %."""
    recorded = held_out(name)
    spec = load_spec(RoutingSpec, name, "routing")
    assert spec.router.tokens + len(recorded.experts) in {69221, 13829}  # nothing was both fitted and judged
    table = describe(recorded, load_model(spec), seed=seed).set_index("statistic")
    assert len(table) == 27
    worst = table["relative_error"].abs()
    assert worst.max() < 0.05, table[worst >= 0.05].to_string()
    if seed == 0:  # what the file says is what comes out
        said = describe(spec).set_index("statistic")
        assert table["sampled"].to_numpy() == pytest.approx(said["sampled"].to_numpy(), rel=1e-3)


@pytest.mark.shared
def test_recordings_show_persistence_and_affinity(held_out):
    for name, overlap, baseline in (("gpt-oss-20b", 0.437, 0.190), ("deepseek-v2-lite", 0.278, 0.118)):
        table = describe(held_out(name)).set_index("statistic")["recorded"]
        assert table["previous_overlap"] == pytest.approx(overlap, rel=0.05)
        assert table["independent_overlap"] == pytest.approx(baseline, rel=0.05)


@pytest.mark.parametrize(
    ("router", "words"),
    [
        ({"kind": "popularity"}, "either shares or zipf"),
        ({"kind": "popularity", "zipf": 1.0, "shares": [[1, 1]]}, "either shares or zipf"),
        ({"kind": "popularity", "zipf": 1.0, "order": [[0, 2]]}, "once"),
        ({"kind": "popularity", "shares": [[1, 1], [1]]}, "all of one length"),
        ({"kind": "popularity", "shares": [[0, 0]]}, "positive share"),
        ({"kind": "popularity", "shares": [[1, 1]], "layers": [0, 1]}, "names 2 rows"),
        ({"kind": "popularity", "shares": [[1, 1, 1]]}, "expected 2"),
        ({"kind": "trace", "path": "x.npz", "skip": 3}, "unknown key"),
        ({"kind": "zipf"}, "zipf"),
    ],
)
def test_wrong_files_are_refused(router, words):
    data = {
        "kind": "routing",
        "name": "x",
        "experts": 2,
        "top_k": 1,
        "router": router,
        "sources": [{"fields": ["*"], "cite": "c"}],
    }
    with pytest.raises(SpecError, match=words):
        validate(RoutingSpec, Document(data, "x.yaml"))
