import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gkt_mpi.errors import ConfigError
from gkt_mpi.wire.codec import Codec, WireConfig

CODECS = ["float32", "bfloat16", "float16", "int8", "int4"]
features = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    elements=st.one_of(st.just(0.0), st.floats(0, 6e4, width=32), st.floats(0, 2**-10, width=32)),
)


def round_trip(name, feature):
    batch, channels, height, width = feature.shape
    codec = Codec(name, (height, width, channels))
    rows = codec.encode(feature)
    assert rows.dtype == torch.uint8
    assert rows.shape == (batch, codec.row_bytes)
    decoded = codec.decode(rows)
    assert decoded.dtype == torch.float32
    assert decoded.shape == feature.shape
    return decoded


@pytest.mark.parametrize(
    ("name", "most"),
    [("float32", 65_536), ("bfloat16", 32_768), ("float16", 32_768), ("int8", 16_450), ("int4", 8_260)],
)
def test_a_cifar_feature_takes_no_more_bytes_than_promised(name, most):
    assert Codec(name, (32, 32, 16)).row_bytes <= most


@settings(max_examples=80, deadline=None)
@given(features)
def test_float32_is_exact_and_halves_are_what_torch_rounds_to(array):
    feature = torch.from_numpy(array)
    assert torch.equal(round_trip("float32", feature), feature)
    assert torch.equal(round_trip("bfloat16", feature), feature.bfloat16().float())
    assert torch.equal(round_trip("float16", feature), feature.half().float())


@settings(max_examples=80, deadline=None)
@given(features, st.sampled_from([("int8", 255), ("int4", 15)]))
def test_integers_are_within_half_a_step_of_the_sample_and_channel(array, codec):
    name, top = codec
    decoded = round_trip(name, torch.from_numpy(array)).numpy().astype(np.float64)
    step = array.astype(np.float64).max(axis=(2, 3), keepdims=True) / top
    # A scale below the smallest normal float32 loses bits, or vanishes: allow some of the smallest steps there are.
    assert np.all(np.abs(decoded - array) <= 0.50001 * step + 512 * 2.0**-149)


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=40, deadline=None)
@given(features)
def test_exact_zero_stays_exact_zero(name, array):
    decoded = round_trip(name, torch.from_numpy(array)).numpy()
    assert np.all(decoded[array == 0] == 0)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("value", [0.0, 1.0, 3e-41, 1e-30, 6e4])
def test_a_constant_feature_comes_back_constant(name, value):
    decoded = round_trip(name, torch.full((2, 3, 4, 5), value))
    assert len(decoded.unique()) == 1
    if value >= 1:
        assert float(decoded[0, 0, 0, 0]) == pytest.approx(value, rel=0.004)


@pytest.mark.parametrize("name", CODECS)
def test_memory_layout_does_not_change_the_rows(name):
    feature = torch.rand(6, 8, 10, 12, generator=torch.Generator().manual_seed(0))
    codec = Codec(name, (10, 12, 8))
    rows = codec.encode(feature)
    assert torch.equal(codec.encode(feature.contiguous(memory_format=torch.channels_last)), rows)
    strided = torch.zeros(6, 8, 10, 24)[..., ::2].copy_(feature)
    assert not strided.is_contiguous()
    assert torch.equal(codec.encode(strided), rows)
    assert torch.equal(codec.decode(rows[[4, 1]]), codec.decode(rows)[[4, 1]])


def test_float32_shares_memory_with_channels_last_features():
    feature = torch.rand(4, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    rows = Codec("float32", (8, 8, 16)).encode(feature)
    assert rows.data_ptr() == feature.data_ptr()
    decoded = Codec("float32", (8, 8, 16)).decode(rows)
    assert decoded.data_ptr() == feature.data_ptr()
    assert decoded.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_found(name, bad):
    feature = torch.rand(3, 2, 4, 4)
    codec = Codec(name, (4, 4, 2))
    assert codec.is_finite(codec.encode(feature))
    feature[1, 1, 2, 3] = bad
    assert not codec.is_finite(codec.encode(feature))


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 3e38])
def test_a_scale_that_no_feature_has_is_found(name, scale):
    """3e38 is finite, but not times the largest code."""
    codec = Codec(name, (4, 4, 2))
    rows = codec.encode(torch.rand(3, 2, 4, 4))
    rows[1, 4:8] = torch.tensor([scale]).view(torch.uint8)
    assert not codec.is_finite(rows)


@pytest.mark.parametrize("name", CODECS)
def test_the_largest_values_and_channels_of_zeros_or_less_are_finite(name):
    feature = torch.full((1, 3, 4, 4), 60_000.0 if name == "float16" else 3.3e38)
    feature[0, 1], feature[0, 2] = -0.0, 0.0
    codec = Codec(name, (4, 4, 3))
    assert codec.is_finite(codec.encode(feature))
    assert torch.isfinite(codec.decode(codec.encode(feature))).all()


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_negative_values_are_finite_and_negative_infinity_and_nan_are_not(name):
    codec = Codec(name, (4, 4, 2))
    feature = torch.randn(3, 2, 4, 4)
    feature[0, 0, 0, 0], feature[0, 0, 0, 1] = -0.0, -60_000.0
    assert codec.is_finite(codec.encode(feature))
    for bad in (-float("inf"), -float("nan")):
        feature[1, 1, 2, 3] = bad
        assert not codec.is_finite(codec.encode(feature))


def test_blocks_hold_as_many_rows_as_fit_and_at_least_one():
    codec = Codec("float32", (32, 32, 16))
    assert codec.block_rows(8) == 128
    assert codec.block_rows(0.01) == 1


@pytest.mark.parametrize("block_mib", [0, -1, 1025])
def test_block_sizes_out_of_range_are_refused(block_mib):
    with pytest.raises(ConfigError, match="wire.block_mib"):
        WireConfig(block_mib=block_mib)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", CODECS)
def test_a_gpu_encodes_and_decodes_as_the_cpu(name):
    codec = Codec(name, (8, 8, 16))
    feature = torch.rand(5, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    rows = codec.encode(feature)
    on_gpu = codec.encode(feature.cuda())
    assert on_gpu.is_cuda and torch.equal(on_gpu.cpu(), rows)
    assert torch.equal(codec.decode(on_gpu).cpu(), codec.decode(rows))
