"""The tap on plain tensors: reading is a product, steering is a sum, and nothing else changes."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from probes.steering import Move, displacement
from serving.worker import tap
from serving.worker.tap import laid_out, project, silence, silent, write

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random(*shape, seed=0, dtype=torch.float32):
    """A seeded normal tensor."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bits(tensor):
    """The tensor's bytes, so that equal means equal to the bit."""
    return tensor.contiguous().view(torch.uint8)


def read(hidden, residual, matrix, parts, first=0):
    """What the hook on a tapped block does."""
    write(project(hidden, residual, matrix.T), parts, first)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 9),
    spare=st.integers(0, 3),
    num_probes=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    with_residual=st.booleans(),
    seed=st.integers(0, 99),
)
def test_read_is_the_stream_times_the_matrix(rows, spare, num_probes, dtype, with_residual, seed):
    """`(hidden + residual) @ matrix` in float32, the sum rounded to the model's dtype; rows beyond the batch stay."""
    hidden, residual = random(rows, 8, seed=seed, dtype=dtype), random(rows, 8, seed=seed + 1, dtype=dtype)
    matrix = random(8, num_probes, seed=seed + 2)
    scores = torch.full((rows + spare, num_probes), torch.nan)
    read(hidden, residual if with_residual else None, matrix, scores)
    stream = hidden + residual if with_residual else hidden
    torch.testing.assert_close(scores[:rows], (stream.double() @ matrix.double()).float(), rtol=1e-5, atol=1e-5)
    assert scores[rows:].isnan().all()


def test_blocks_write_side_by_side():
    """Each block fills its own columns, over what the last step left there; a block that is silent leaves them."""
    streams, matrices = [random(4, 8, seed=i) for i in range(3)], [random(8, 2, seed=9 + i) for i in range(3)]
    parts = torch.zeros(6, 6)
    silence(parts)
    for _ in range(2):
        for index in (0, 2):
            read(streams[index], None, matrices[index], parts, first=2 * index)
            expected = streams[index] @ matrices[index]
            torch.testing.assert_close(parts[:4, 2 * index : 2 * index + 2], expected, rtol=1e-5, atol=1e-5)
    assert parts[:, 2:4].isnan().all()
    assert silent(parts)[:4].all(0).tolist() == [False, False, True, True, False, False]


def nans():
    """NaN in every way that arithmetic gives it, and read from streams that hold some."""
    zero, infinite = torch.zeros(1), torch.tensor([torch.inf])
    broken = project(torch.tensor([[torch.nan, 1.0], [torch.inf, -torch.inf]]), None, torch.ones(1, 2))
    return torch.cat([zero / zero, infinite - infinite, infinite * zero, (-zero - 1).sqrt(), broken.flatten()])


def test_what_was_not_read_is_told_from_what_was_read_as_nan():
    """A tap that ran and read NaN is not a silent one; its own NaN keeps its bits wherever it is copied or added to."""
    parts = torch.cat([nans(), torch.tensor([torch.nan, -torch.nan, 0.0, torch.inf])])
    assert not silent(parts).any()
    silence(parts)
    kept = torch.zeros(len(parts)).index_copy_(0, torch.arange(len(parts)), parts)
    assert kept.isnan().all()
    assert silent(kept.clone()[torch.arange(len(parts)).flip(0)]).all()
    assert silent(kept + 1.0).all()
    assert silent(1.0 + kept).all()


def test_read_leaves_the_stream_alone():
    """Reading changes no bit of what the model computes with."""
    hidden, residual = random(4, 8), random(4, 8, seed=1)
    before = bits(hidden).clone(), bits(residual).clone()
    read(hidden, residual, random(8, 2), torch.zeros(4, 2))
    assert torch.equal(bits(hidden), before[0])
    assert torch.equal(bits(residual), before[1])


@pytest.mark.parametrize("num_columns", [1, 3, 8, 9])
def test_the_compiled_projection_is_the_same_sum(num_columns):
    """What the compiler is given to fuse equals the matrix product, for few columns and for many."""
    hidden, residual, columns = random(5, 32), random(5, 32, seed=1), random(num_columns, 32, seed=2)
    compiled = torch.compile(project, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden, residual, columns), project(hidden, residual, columns))


@pytest.mark.parametrize("by", [write, torch.ops.foreguard.store])
def test_a_share_goes_to_its_columns(by):
    """Through the call and without it: nothing else of the buffer changes."""
    parts, part = torch.zeros(6, 5), random(4, 2)
    by(part, parts, 1)
    assert torch.equal(parts[:4, 1:3], part)
    parts[:4, 1:3] = 0
    assert not parts.any()


@pytest.mark.parametrize("by", [write, torch.ops.foreguard.store])
def test_a_batch_beyond_the_buffer_stops_loudly(by):
    """More rows than the buffer holds is an error, never a score that is lost."""
    with pytest.raises(RuntimeError, match=r"size|shape|dimension"):
        by(random(5, 2), torch.zeros(4, 2), 0)


def additions(count, seed):
    """So many vectors to add, one column each."""
    return [Move(column, "add", None, (vector,)) for column, vector in enumerate(random(count, 8, seed=seed))]


def every_kind(seed=5):
    """One move of each operator, and of each gate; rotations in an orthonormal plane."""
    basis = torch.linalg.qr(random(8, 8, seed=seed)).Q
    gate = (random(8, seed=seed + 1), torch.tensor([0.2]))
    limits = (torch.full((8,), -1.5), torch.full((8,), 1.5))
    return [
        Move(0, "add", "hard", (random(8, seed=seed + 2), *gate)),
        Move(1, "add", "soft", (random(8, seed=seed + 3), *gate)),
        Move(2, "affine", None, (random(8, seed=seed + 4), random(8, seed=seed + 5), *limits)),
        Move(3, "low_rank", None, (random(2, 8, seed=seed + 6), random(2, 8, seed=seed + 7), random(8, seed=seed + 8))),
        Move(4, "rotate", None, (basis[0], basis[1], torch.tensor([0.7]))),
    ]


def steer(hidden, residual, coefficients, moves):
    """What the hook on a steered block does."""
    torch.ops.foreguard.steer(hidden, residual, coefficients, *laid_out(moves))


@settings(max_examples=40)
@example(rows=4, num_vectors=4, dtype=torch.float16, seed=0)
@given(rows=st.integers(1, 9), num_vectors=st.integers(1, 4), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_steer_adds_coefficients_times_vectors(rows, num_vectors, dtype, seed):
    """Each row gets its own mix of vectors, rounded once to the model's dtype, in place."""
    hidden = random(rows, 8, seed=seed, dtype=dtype)
    coefficients, moves = random(rows + 2, num_vectors, seed=seed + 1), additions(num_vectors, seed + 2)
    vectors = torch.stack([move.tensors[0] for move in moves])
    added = (coefficients[:rows] @ vectors).to(dtype)
    expected = hidden + added
    steer(hidden, None, coefficients, moves)
    # A sum in another order may round to the next number, which is far from it where `hidden` takes most of it away.
    unit = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(hidden, expected, rtol=unit, atol=unit * added.abs().max().item())


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("move", every_kind(), ids=lambda move: f"{move.operator}-{move.gate}")
def test_the_served_operator_is_the_offline_operator(move, with_residual):
    """The op displaces `hidden` by what the operator gives for the stream `hidden + residual`, and nothing else."""
    hidden, residual = random(6, 8), random(6, 8, seed=1) if with_residual else None
    coefficients = random(9, 5, seed=2).abs()
    stream = hidden + residual if with_residual else hidden
    expected = hidden + displacement(stream, coefficients[:6], [move])
    before = None if residual is None else residual.clone()
    steer(hidden, residual, coefficients, [move])
    torch.testing.assert_close(hidden, expected)
    assert before is None or torch.equal(residual, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_coefficients_leave_bits_unchanged(dtype):
    """A row that is not steered keeps its bits beside rows that are, under every operator at once."""
    hidden = random(6, 8, dtype=dtype) * 1000
    before = hidden.clone()
    coefficients = torch.zeros(10, 5)
    coefficients[2] = torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0])
    steer(hidden, random(6, 8, seed=3, dtype=dtype), coefficients, every_kind())
    others = [0, 1, 3, 4, 5]
    assert torch.equal(bits(hidden[others]), bits(before[others]))
    assert not torch.equal(hidden[2], before[2])


def test_zero_coefficients_keep_special_values():
    """Infinities, the smallest and the largest numbers, and zero of either sign come through to the bit."""
    info = torch.finfo(torch.bfloat16)
    values = [torch.inf, -torch.inf, 0.0, -0.0, info.max, info.min, info.tiny, info.smallest_normal]
    hidden = torch.tensor([values, values], dtype=torch.bfloat16)
    before = hidden.clone()
    coefficients = torch.zeros(2, 5)
    coefficients[1] = 1.0
    steer(hidden, None, coefficients, every_kind())
    assert torch.equal(bits(hidden[0]), bits(before[0]))
    assert not torch.equal(hidden[1], before[1])


def test_ops_declare_what_they_change():
    """PyTorch's own checker: schemas, fake implementations and functionalisation agree with what the ops do."""
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    store = (random(4, 2), torch.zeros(5, 3), 1)
    torch.library.opcheck(torch.ops.foreguard.store.default, store, test_utils=checks)
    for residual in (None, random(4, 8, seed=1)):
        steered = (random(4, 8), residual, torch.ones(4, 5), *laid_out(every_kind()))
        torch.library.opcheck(torch.ops.foreguard.steer.default, steered, test_utils=checks)


@pytest.mark.parametrize("gate", [None, "hard", "soft"])
@pytest.mark.parametrize("operator", ["add", "affine", "low_rank", "rotate"])
def test_no_tap_looks_at_what_the_device_holds(operator, gate):
    """What a CUDA graph captures must not depend on values: both ops run on a device that has none."""
    shapes = {
        "add": [(8,)],
        "affine": [(8,)] * 4,
        "low_rank": [(2, 8), (2, 8), (8,)],
        "rotate": [(8,), (8,), (1,)],
    }[operator] + ([(8,), (1,)] if gate else [])
    with torch.device("meta"):
        tensors = [torch.zeros(shape) for shape in shapes]
        hidden, residual = torch.zeros(4, 8, dtype=torch.bfloat16), torch.zeros(4, 8, dtype=torch.bfloat16)
        coefficients, parts = torch.zeros(6, 1), torch.zeros(6, 3)
    plan, own = laid_out([Move(0, operator, gate, tuple(tensors))])
    tap.steer(hidden, residual, coefficients, plan, own)
    tap.silence(parts)
    tap.store(project(hidden, residual, torch.zeros(2, 8, device="meta")), parts, 1)
    with pytest.raises(RuntimeError, match="meta"):
        bool(coefficients.any())
