"""Triton kernels against float64: on a GPU where there is one, else in the interpreter (see conftest.py).

The interpreter of Triton 3.9 gives wrong products for bfloat16, so there products are checked in float32 and
float16.
"""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
pytest.importorskip("triton", reason="needs Triton (pip install triton)")

from moesim.calibrate.kernels import reference, runs_on  # noqa: E402
from moesim.calibrate.kernels.dequant_gemm import dequant_gemm  # noqa: E402
from moesim.calibrate.kernels.grouped_gemm import block_rows_for, fused_moe, grouped_gemm  # noqa: E402
from moesim.calibrate.kernels.paged_attention import paged_decode, splits_for  # noqa: E402
from moesim.calibrate.kernels.rowwise import rmsnorm_residual, softmax_topk  # noqa: E402
from moesim.calibrate.kernels.sorting import sort_tokens  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRODUCTS = ["fp32", "fp16", "bf16"] if DEVICE == "cuda" else ["fp32", "fp16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def normal(seed, *shape, dtype="fp32", scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(
        DEVICE, DTYPES[dtype]
    )


def error(got, want):
    return float((got.double() - want).abs().max() / want.abs().max())


def test_the_interpreter_is_what_makes_the_kernels_run_on_a_cpu(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert runs_on("cpu")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert not runs_on("cpu")


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "hidden", "inner"),
    [(1, 1, 1, 32, 16), (5, 2, 4, 70, 33), (40, 2, 3, 64, 48), (7, 4, 16, 130, 65)],
)
def test_fused_moe(dtype, tokens, top_k, experts, hidden, inner):
    x = normal(1, tokens, hidden, dtype=dtype)
    gate_up = normal(2, experts, 2 * inner, hidden, dtype=dtype, scale=hidden**-0.5)
    down = normal(3, experts, hidden, inner, dtype=dtype, scale=inner**-0.5)
    weights, ids = reference.softmax_topk(normal(4, tokens, experts), top_k)
    weights = weights.float()
    want = reference.moe_ffn(x, gate_up, down, weights, ids)
    got = fused_moe(x, gate_up, down, weights, ids)
    assert error(got, want) < reference.tolerance(dtype, hidden + inner, 3)


def test_one_expert_takes_all_and_others_none():
    x, ids = normal(1, 50, 32), torch.full((50, 1), 2, device=DEVICE)
    w = normal(2, 4, 24, 32)
    blocks = sort_tokens(ids, 4, 16)
    got = grouped_gemm(x, w, blocks, rows_per_input=1)
    assert error(got, reference.product(x, w[2])) < reference.tolerance("fp32", 32)


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "page", "lengths", "splits"),
    [
        (4, 4, 16, 16, [1, 16, 17, 100], 1),
        (8, 2, 64, 16, [130, 64, 3], 3),
        (6, 2, 40, 8, [5, 200], 4),  # a group and a width that are no powers of two
        (8, 2, 16, 16, [400, 70], 1),  # many blocks per split: the running maximum moves
        (4, 2, 32, 16, [500], 2),
        (2, 1, 32, 64, [300], 8),  # splits longer than what is left
    ],
)
def test_paged_decode(dtype, heads, kv_heads, dim, page, lengths, splits):
    batch, width = len(lengths), -(-max(lengths) // page)
    pages = batch * width + 3
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(5))[: batch * width]
    table = order.int().view(batch, width).to(DEVICE)
    keys = normal(1, pages, page, kv_heads, dim, dtype=dtype)
    values = normal(2, pages, page, kv_heads, dim, dtype=dtype)
    q = normal(3, batch, heads, dim, dtype=dtype)
    count = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    want = reference.paged_decode(q, keys, values, table, count)
    got = paged_decode(q, keys, values, table, count, splits=splits)
    assert error(got, want) < reference.tolerance(dtype, max(lengths), 2)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (3, 100), (5, 1024)])
def test_rmsnorm_residual(dtype, rows, width):
    x, residual = normal(1, rows, width, dtype=dtype), normal(2, rows, width, dtype=dtype)
    weight = normal(3, width, dtype=dtype)
    got = rmsnorm_residual(x, residual, weight, 1e-5)
    want = reference.rmsnorm_residual(x, residual, weight, 1e-5)
    assert error(got[0], want[0]) < reference.tolerance(dtype, width)
    assert error(got[1], want[1]) < reference.tolerance(dtype, 2)


@pytest.mark.parametrize(
    ("rows", "experts", "top_k"), [(1, 1, 1), (9, 8, 2), (4, 60, 4), (3, 128, 8), (5, 6, 6)]
)
def test_softmax_topk(rows, experts, top_k):
    logits = normal(1, rows, experts, scale=3.0)
    weights, ids = softmax_topk(logits, top_k)
    want_weights, want_ids = reference.softmax_topk(logits, top_k)
    assert torch.equal(ids.long(), want_ids)
    assert error(weights, want_weights) < reference.tolerance("fp32", experts, 4)


def test_equal_logits_choose_distinct_experts():
    weights, ids = softmax_topk(torch.zeros(2, 8, device=DEVICE), 3)
    assert ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert torch.allclose(weights, torch.full_like(weights, 1 / 3))


@pytest.mark.parametrize("dtype", PRODUCTS)
@pytest.mark.parametrize(("m", "n", "k", "group"), [(1, 16, 64, 32), (5, 70, 256, 64), (33, 64, 512, 128)])
def test_dequant_gemm(dtype, m, n, k, group):
    codes = torch.randint(0, 16, (n, k), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    packed, scales = reference.pack_int4(codes), normal(2, n, k // group, dtype=dtype).abs() + 0.1
    x = normal(3, m, k, dtype=dtype)
    want = reference.product(x, reference.dequantised(packed, scales))
    assert error(dequant_gemm(x, packed, scales), want) < reference.tolerance(dtype, k, 2)


def test_dequant_gemm_refuses_groups_that_its_tiles_do_not_divide():
    with pytest.raises(ValueError, match="multiple of 32"):
        dequant_gemm(torch.ones(1, 96), torch.zeros(4, 48, dtype=torch.uint8), torch.ones(4, 4))


def test_packing_is_undone_by_dequantising():
    codes = torch.arange(16).repeat(2, 4)
    back = reference.dequantised(reference.pack_int4(codes), torch.full((2, 2), 0.5))
    assert torch.equal(back, (codes.double() - 8.0) * 0.5)


@pytest.mark.parametrize(
    ("pairs", "experts", "rows"), [(1, 64, 16), (64, 1, 64), (65, 1, 128), (10**6, 4, 128), (96, 4, 32)]
)
def test_block_rows_follow_the_mean(pairs, experts, rows):
    assert block_rows_for(pairs, experts) == rows


@pytest.mark.parametrize(
    ("batch", "kv_heads", "longest", "units", "splits"),
    [(1, 8, 8192, 132, 32), (64, 8, 8192, 132, 1), (1, 8, 300, 132, 1), (1, 1, 10**6, 132, 64)],
)
def test_splits_fill_the_device_and_stay_long(batch, kv_heads, longest, units, splits):
    assert splits_for(batch, kv_heads, longest, units) == splits


def test_the_references_agree_with_pytorch():
    """The references judge the kernels; PyTorch's own operators judge the references."""
    q, k, v = (normal(i, 2, 4, 5, 8).double() for i in range(3))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    assert torch.allclose(reference.attention(q, k, v, causal=True), sdpa(q, k, v, is_causal=True))
    assert torch.allclose(reference.attention(q, k, v, causal=False), sdpa(q, k, v))
    x, weight = normal(1, 3, 16).double(), normal(2, 16).double()
    got, _ = reference.rmsnorm_residual(x, torch.zeros_like(x), weight, 1e-6)
    assert torch.allclose(got, torch.nn.functional.rms_norm(x, (16,), weight, 1e-6))
