"""Sessions: what is rewritten, what stays onnxruntime's own, and that both answer alike."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from places import GOLDEN
from qdq_graphs import GraphBuilder

from sparse_accel.native import VARIABLE as LIBRARY_VARIABLE
from sparse_accel.runtime import explain, session
from sparse_accel.runtime.library import Library, load_library
from sparse_accel.runtime.loading import VARIABLE, model_file
from sparse_accel.runtime.rewrite import rewrite
from sparse_accel.runtime.timing import plain_session, random_inputs

DEPLOYMENT = GOLDEN / "old_run" / "deployment"


@pytest.fixture(autouse=True)
def no_forced_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)


def block(zeros: float, width: int = 64) -> onnx.ModelProto:
    """A feed-forward block and two Linears, of which a fraction of the weights is zero."""
    build = GraphBuilder()
    x = build.input("x", ["batch", "sequence", width])
    y = build.linear("last", build.feed_forward("block", x, width, 2 * width), width, width)
    model = build.model(build.op("Identity", y, output="y"))
    random = np.random.default_rng(1)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("weight_quantized"):
            shape = tuple(tensor.dims)
            values = random.integers(-127, 128, shape) * (random.random(shape) >= zeros)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.int8), tensor.name))
    return model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder


def one_line(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = caplog.records
    message = record.getMessage()
    assert record.name == "sparse_accel.runtime" and "\n" not in message
    return message


def agree(folder: Path, made: Any, feed: dict[str, np.ndarray]) -> None:
    own = plain_session(model_file(folder)).run(None, feed)[0]
    found = made.run(None, feed)[0]
    assert found.dtype == own.dtype and found.shape == own.shape
    # A value halfway between two integers may go either way: one step of a quantized value is allowed, for a few.
    assert np.mean(np.abs(found - own) > 1e-4 * np.abs(own).max()) < 0.02


@pytest.mark.parametrize("batch, tokens", [(1, 1), (3, 5), (2, 16)])
@pytest.mark.parametrize("isa", load_library().instruction_sets)
def test_a_deployment_answers_as_before(isa: str, batch: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, isa)
    made, own = session(DEPLOYMENT, threads=1), plain_session(DEPLOYMENT / "model.onnx")
    assert type(made) is onnxruntime.InferenceSession
    for which in ("get_inputs", "get_outputs"):
        described = [[(each.name, each.shape, each.type) for each in getattr(s, which)()] for s in (made, own)]
        assert described[0] == described[1]
    feed = random_inputs(DEPLOYMENT / "model.onnx", batch, tokens)
    feed["attention_mask"][0, tokens // 2 + 1 :] = 0
    np.testing.assert_allclose(made.run(None, feed)[0], own.run(None, feed)[0], atol=0.02)


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("isa", load_library().instruction_sets)
def test_any_number_of_zeros(isa: str, zeros: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, isa)
    folder = saved(block(zeros), tmp_path)
    made = session(folder)
    found = explain(made)
    # Dense matrices are left alone where onnxruntime's own kernel is as fast: all but AVX-512 VBMI.
    if isa in ("avx512_vbmi", "portable") or zeros >= 0.9:
        assert found.operators == {"FeedForward": 1, "Linear": 1} and found.kept == ()
    else:
        assert found.instruction_set is None
        assert "too few zeros" in found.kept[0].reason
    agree(folder, made, {"x": np.random.default_rng(0).normal(0, 1, (2, 7, 64)).astype(np.float32)})


def test_an_explanation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, load_library().instruction_sets[0])
    found = explain(session(saved(block(0.9), tmp_path)))
    up, down, last = found.matrices
    assert (up.layer, up.shape) == ("block.up", (64, 128)) and (down.layer, down.shape) == ("block.down", (128, 64))
    assert last.layer == "last" and last.shape == (64, 64)
    assert up.zeros == pytest.approx(0.9, abs=0.03)
    assert all(1 - each.zeros <= each.density for each in found.matrices)
    words = str(found)
    assert str(found.instruction_set) in words and "block.up" in words and "1 FeedForward" in words


def test_only_its_own_sessions_are_explained() -> None:
    with pytest.raises(ValueError, match="only sessions that"):
        explain(plain_session(DEPLOYMENT / "model.onnx"))


# --- onnxruntime's own session ----------------------------------------------------------------------------------------


def test_without_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for file, reason in ((tmp_path / "none.so", "is not there"), (DEPLOYMENT / "model.onnx", "cannot be loaded")):
        caplog.clear()
        monkeypatch.setenv(LIBRARY_VARIABLE, str(file))
        made = session(DEPLOYMENT)
        found = explain(made)
        assert found.instruction_set is None and reason in found.reason
        assert reason in one_line(caplog) and reason in str(found)
        feed = random_inputs(DEPLOYMENT / "model.onnx", 1, 4)
        assert np.array_equal(made.run(None, feed)[0], plain_session(DEPLOYMENT / "model.onnx").run(None, feed)[0])


def test_on_another_platform(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("sparse_accel.native.NAME", "not_built.so")
    session(DEPLOYMENT)
    assert "`pip install` builds it where there is a C++ compiler" in one_line(caplog)
    caplog.clear()
    monkeypatch.setattr("sys.platform", "darwin")
    session(DEPLOYMENT)
    assert "for Linux on x86-64 alone" in one_line(caplog)


def test_on_a_cpu_that_nobody_has_measured(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    library = load_library()
    monkeypatch.setattr(library, "default", "")
    assert explain(session(DEPLOYMENT)).instruction_set is None
    assert "nobody has measured" in one_line(caplog) and VARIABLE in one_line(caplog)
    monkeypatch.setenv(VARIABLE, "portable")
    assert explain(session(DEPLOYMENT)).instruction_set == "portable"


def test_a_forced_instruction_set_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "avx1024")
    with pytest.raises(ValueError, match=r"SPARSE_ACCEL_ISA=avx1024: expected one of .*portable\), or none"):
        session(DEPLOYMENT)


def test_an_onnxruntime_that_refuses_the_library(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Old(onnxruntime.SessionOptions):
        def register_custom_ops_library(self, path: str) -> None:
            raise RuntimeError("sparse_accel needs onnxruntime 1.17 or newer")

    monkeypatch.setattr(onnxruntime, "SessionOptions", Old)
    monkeypatch.setenv(VARIABLE, "portable")
    assert explain(session(DEPLOYMENT)).instruction_set is None
    assert "1.17 or newer" in one_line(caplog)


def test_a_library_with_wrong_sums_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = Library.sums

    def wrong(self: Library, *arguments: Any, **more: Any) -> np.ndarray:
        sums = right(self, *arguments, **more)
        sums[-1, -1] += 1
        return sums

    monkeypatch.setattr(Library, "sums", wrong)
    monkeypatch.setenv(VARIABLE, "portable")
    assert explain(session(DEPLOYMENT)).instruction_set is None
    assert "is not used: its sums with" in one_line(caplog)


def test_graphs_without_anything_to_gain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build = GraphBuilder()
    x = build.input("x", ["batch", 8])
    weight = build.constant(np.ones((8, 4), dtype=np.float32))
    model = build.model(build.op("MatMul", x, weight, output="y"))
    found = explain(session(saved(model, tmp_path)))
    assert found.instruction_set is None
    if load_library().default:
        assert "no part of this graph gains" in one_line(caplog)


def test_errors_are_those_of_onnxruntime(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "model.onnx"
    for content in (b"", b"no model", (DEPLOYMENT / "model.onnx").read_bytes()[:5000]):
        file.write_bytes(content)
        with pytest.raises(Exception) as own:
            plain_session(file)
        with pytest.raises(type(own.value)):
            session(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no model\.onnx in this folder"):
        session(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        session(tmp_path / "other.onnx")


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "portable")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session(DEPLOYMENT)
    assert list(tmp_path.iterdir()) == []


def test_threads_are_those_of_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "portable")
    assert session(DEPLOYMENT, threads=3).get_session_options().intra_op_num_threads == 3


def test_threads_that_cannot_be() -> None:
    for threads in (0, -1, "2"):
        with pytest.raises(ValueError, match="expected a whole number from 1 on"):
            session(DEPLOYMENT, threads)  # type: ignore[arg-type]


def test_options_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in ("portable", "none"):
        monkeypatch.setenv(VARIABLE, isa)
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        made = session(DEPLOYMENT, threads=1, options=options)
        assert made.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert made.get_session_options().intra_op_num_threads == 1


def test_no_kernels_at_all(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(VARIABLE, "none")
    assert explain(session(DEPLOYMENT)).reason == "SPARSE_ACCEL_ISA=none"
    assert "SPARSE_ACCEL_ISA=none" in one_line(caplog)


def test_other_providers_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime then makes the session again, of what it was made of."""
    monkeypatch.setenv(VARIABLE, "portable")
    made, feed = session(DEPLOYMENT), random_inputs(DEPLOYMENT / "model.onnx", 2, 5)
    before = made.run(None, feed)[0]
    made.set_providers(["CPUExecutionProvider"])
    assert np.array_equal(made.run(None, feed)[0], before)


def test_logging_is_quiet_with_kernels(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(VARIABLE, "portable")
    with caplog.at_level(logging.DEBUG, "sparse_accel.runtime"):
        session(DEPLOYMENT)
    assert caplog.records == []


@pytest.mark.parametrize("isa", load_library().instruction_sets)
def test_a_file_that_has_the_operators(isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels pack its int8 weights themselves, also those that are too dense to be worth it."""
    monkeypatch.setenv(VARIABLE, isa)
    model = block(0.3)
    folder = saved(model, tmp_path)
    onnx.save(rewrite(model).model, tmp_path / "model.kernels.onnx")
    made = session(tmp_path / "model.kernels.onnx")
    assert explain(made).operators == {"FeedForward": 1, "Linear": 1}
    agree(folder, made, {"x": np.random.default_rng(0).normal(0, 1, (2, 7, 64)).astype(np.float32)})


@pytest.mark.parametrize("isa", load_library().instruction_sets)
def test_axes_of_unknown_length_are_repeated_as_onnxruntime_does(
    isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, isa)
    build = GraphBuilder()
    x, residual = build.input("x", ["batch", "tokens", 64]), build.input("residual", ["rows", "columns", 64])
    build.random = np.random.default_rng(3)
    y = build.norm("norm", build.op("Add", build.linear("layer", x, 64, 64), residual), 64)
    model = build.model(build.op("Identity", y, output="y"))
    (weight,) = (each for each in model.graph.initializer if each.name == "layer.weight_quantized")
    few = onnx.numpy_helper.to_array(weight) * (np.random.default_rng(1).random((64, 64)) > 0.8)
    weight.CopyFrom(onnx.numpy_helper.from_array(few.astype(np.int8), weight.name))
    made = session(saved(model, tmp_path))
    assert explain(made).operators == {"LinearAddNorm": 1}
    random = np.random.default_rng(0)
    for shape in ((3, 5, 64), (1, 5, 64), (3, 1, 64), (1, 1, 64)):
        feed = {name: random.normal(0, 1, s).astype(np.float32) for name, s in (("x", (3, 5, 64)), ("residual", shape))}
        agree(tmp_path, made, feed)
