"""The page: whole, safe, offline, and it draws in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from synthetic import make_result

from moesim.errors import LawBroken, SpecError
from moesim.report import render, report
from moesim.results import Result, Tables, summary

VOID = {"meta", "link", "br", "img", "input", "hr"}
SECTIONS = [
    "verdict",
    "what-was-run",
    "key-numbers",
    "latency",
    "timeline",
    "time",
    "experts",
    "replicas",
    "laws",
    "assumptions",
    "reproduce",
]
CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)


class Page(HTMLParser):
    """Collect elements, text outside scripts, and script bodies; check that tags nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.scripts, self.open = [], [], {}, []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] == "script":
            key = self.open[-1][1].get("id", "page")
            self.scripts[key] = self.scripts.get(key, "") + data
        elif not (self.open and self.open[-1][0] == "style"):
            self.text.append(data)

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


@pytest.fixture(scope="module")
def page(run):
    return Page(render(run))


def renamed(result, **changes):
    return replace(
        result, manifest={**result.manifest, "scenario": {**result.manifest["scenario"], **changes}}
    )


def test_sections_in_order_verdict_first(page):
    assert [a["id"] for tag, a in page.elements if tag == "section"] == SECTIONS
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_from_anywhere(page):
    assert not [
        t for t, _ in page.elements if t in {"link", "img", "iframe", "object", "embed", "base", "source"}
    ]
    assert not [a for _, a in page.elements if {"src", "srcset", "data", "action", "background"} & set(a)]
    assert all(a["href"].startswith("https://") for t, a in page.elements if t == "a")
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    (policy,) = (a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_the_style_loads_nothing(run):
    style = re.search(r"<style>(.*?)</style>", render(run), re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme:dark" in style
    assert "@media print" in style


def test_no_nan_is_shown_or_embedded(run, cut_run, page):
    for shown in (page, Page(render(cut_run))):
        assert not re.search(r"\b(nan|NaN|inf|Infinity|None|undefined)\b", shown.words)
        for name in ("summary", "figures"):
            json.loads(shown.scripts[name], parse_constant=pytest.fail)  # called for NaN and Infinity only


def test_embedded_summary_is_the_summary(run, page):
    assert json.loads(page.scripts["summary"]) == json.loads(json.dumps(summary(run)))


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", "</script><b>x", '"><img src=x onerror=alert(1)>', "<!--"]
)
def test_user_text_stays_text(run, page, evil):
    ops = run.tables.ops.assign(op=[f"{evil}{i}" for i in range(3)])
    hostile = renamed(
        replace(run, tables=replace(run.tables, ops=ops)),
        name=evil,
        title=evil,
        question=evil,
        description=evil,
        model={"name": evil, "sources": [{"cite": evil, "url": "javascript:alert(1)"}]},
    )
    hostile = replace(
        hostile,
        manifest={
            **hostile.manifest,
            "pricing_notes": [evil],
            "command": ["moesim", "run", evil],
            "origins": {"name": evil},
        },
    )
    shown = Page(render(hostile))
    count = [t for t, _ in page.elements]
    ours = [t for t, _ in shown.elements]
    for tag in ("script", "b", "img"):
        assert ours.count(tag) == count.count(tag)
    assert shown.words.count(evil) >= 6
    assert "<" not in shown.scripts["summary"] + shown.scripts["figures"]
    assert json.loads(shown.scripts["summary"])["scenario"] == evil
    assert evil in json.dumps(json.loads(shown.scripts["figures"]), ensure_ascii=False).replace('\\"', '"')
    assert "javascript:" not in [a.get("href", "")[:11] for _, a in shown.elements]


def test_bounds_are_called_bounds(run, page):
    assert "Some prices are bounds." in page.words
    assert "6.55 % of engine time is priced by the roofline bound" in page.words
    measured = replace(run, tables=replace(run.tables, ops=run.tables.ops.assign(source="measured")))
    assert "roofline bound:" not in Page(render(measured)).words
    bound = replace(run, tables=replace(run.tables, ops=run.tables.ops.assign(source="bound")))
    assert " Prices are bounds." in Page(render(bound)).words


def test_numbers_of_the_page_are_the_summary(run, page):
    found = summary(run)
    assert f"{found['throughput']['output_tokens_per_s']:.4g} token/s" in page.words
    assert f"{1e3 * found['ttft_s']['p95']:.4g} ms" in page.words
    assert f"{found['cost_usd']:.4g} USD" in page.words
    for text in (
        "synthetic.yaml:12",
        "A datasheet, 2024",
        "Weights are read once per step.",
        "H100 SXM, NVIDIA",
    ):
        assert text in page.words


def test_a_missed_target_is_said_first(cut_run):
    words = Page(render(cut_run)).words
    assert "1 of 2 targets is missed: TTFT p95 is beyond the limit of 200 ms" in words
    assert words.index("1 of 2 targets") < words.index("What was run")


def test_equal_runs_give_equal_pages():
    assert render(make_result(requests=60)) == render(make_result(requests=60))


def test_a_run_that_breaks_a_law_gets_no_page(run, tmp_path):
    requests = run.tables.requests.assign(generated_tokens=run.tables.requests["generated_tokens"] + 1)
    with pytest.raises(LawBroken):
        report(replace(run, tables=replace(run.tables, requests=requests)), tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_bare_and_empty_runs_have_a_page(run):
    bare = Page(render(Result(run.manifest, Tables(requests=run.tables.requests))))
    assert "The run recorded no ops." in bare.words
    nothing = Result({**run.manifest, "arrived": 0}, Tables(requests=run.tables.requests.head(0)))
    assert [a["id"] for tag, a in Page(render(nothing)).elements if tag == "section"] == SECTIONS


def test_unwritable_place_is_a_spec_error(run, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SpecError, match="cannot be written"):
        report(run, tmp_path / "file" / "report.html")


def test_a_large_run_stays_below_six_megabytes(tmp_path):
    """A fleet of 64 replicas with 2,000 samples each, 256 experts in 61 layers, 20,000 requests."""
    base = make_result(requests=20, replicas=1, warmup=0)
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, base.manifest["simulated_s"], 2000))
    timeline = pd.concat(
        [
            pd.DataFrame(
                {
                    "time_s": times,
                    "pool": "serve",
                    "replica": r,
                    "waiting": 1,
                    "running": 2,
                    "kv_used": 0.0,
                    "step_tokens": 4,
                    "step_s": 0.0,
                }
            )
            for r in range(64)
        ]
    )
    row = base.tables.replicas.iloc[[0]]
    replicas = pd.concat(
        [row]
        + [
            row.assign(
                replica=r, requests_s=0.0, steps=0, busy_s=0.0, prefill_tokens=0, decode_tokens=0, step_s=0.0
            )
            for r in range(1, 64)
        ]
    )
    load = rng.dirichlet(np.ones(256), 61)
    experts = pd.DataFrame(
        {
            "layer": np.repeat(np.arange(61), 256),
            "expert": np.tile(np.arange(256), 61),
            "rank": 0,
            "load": load.ravel(),
        }
    )
    late = pd.concat(
        [base.tables.requests]
        + [base.tables.requests[base.tables.requests["status"] == "rejected"].assign(status="rejected")]
        * 20_000
    )
    late = late.assign(request=range(len(late)))
    big = Result(
        {**base.manifest, "arrived": len(late)},
        replace(base.tables, requests=late, timeline=timeline, replicas=replicas, experts=experts),
    )
    path = report(big, tmp_path / "report.html")
    assert path.stat().st_size < 6e6
    figures = json.loads(Page(path.read_text()).scripts["figures"])
    assert np.shape(figures["experts"]["data"][0]["z"]) == (61, 256)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: nobody looked at the drawing")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_every_figure_offline(run, tmp_path, width):
    path = report(run, tmp_path / "report.html")
    # a wrapper of the wanted width: headless windows are never narrower than 500 pixels
    probe = tmp_path / "probe.html"
    script = (
        "<script>window.__seen=[];addEventListener('error',e=>__seen.push(e.message));"
        "document.addEventListener('securitypolicyviolation',e=>__seen.push(e.violatedDirective));"
        "addEventListener('load',()=>setTimeout(()=>{const d=document.documentElement;"
        "d.dataset.seen=JSON.stringify(__seen);d.dataset.wide=String(d.scrollWidth>innerWidth)},1500))</script>"
    )
    text = path.read_text().replace("<style>", script + "<style>", 1)
    inner = tmp_path / "inner.html"
    inner.write_text(text)
    probe.write_text(
        f"<iframe id=f src=inner.html width={width} height=900></iframe><script>const wait=setInterval(()=>{{"
        "const d=document.getElementById('f').contentDocument;const o={...d.documentElement.dataset,"
        "plots:d.querySelectorAll('svg.main-svg').length};if(!(o.seen&&(o.drawn||o.failed)))return;"
        "clearInterval(wait);document.body.textContent=JSON.stringify(o)},100)</script>"
    )
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=60000",
            "--dump-dom",
            probe.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = json.loads(re.search(r"<body>(\{.*?\})</body>", done.stdout, re.DOTALL).group(1))
    wanted = sum('data-figure="' in line for line in path.read_text().split("<figure ")[1:])
    assert "failed" not in found
    assert int(found["drawn"]) == wanted == 8
    assert found["plots"] >= wanted
    assert json.loads(found["seen"]) == []
    assert found["wide"] == "false"  # nothing sticks out sideways
