"""The benchmarks' own logic: who takes part, the gate, quantiles, noise, tables; nothing here is timed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import (
    check,
    compare,
    cpu,
    gpu,
    judge,
    memory,
    objective_steps,
    pages,
    results,
    show,
    stages,
    tables,
    ten_minutes,
)
from benchmarks.cases import Case, from_facts, grid
from benchmarks.clock import exponent, interleaved, median_noise, quantiles
from benchmarks.rivals import AUTOTUNED, COMPILED, CPP, EAGER, RELEASED, RIVALS
from benchmarks.workloads import (
    CIFAR_RESNET32X4_MOBILENETV2,
    CUB_RESNET32X4_MOBILENETV2,
    IMAGENET21K_RESNET50_MOBILENETV2,
    WORKLOADS,
)
from icd_kernels.backends import cpp
from icd_kernels.backends.triton import TRITON

SMALL = Case(CIFAR_RESNET32X4_MOBILENETV2.with_batch(2), "spatial")
NEEDS_CPP = pytest.mark.skipif(bool(RIVALS["cpp"].why_not(SMALL, "cpu")), reason="backend 'cpp' is missing")


class TestCases:
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_labels_are_unique(self, device: str) -> None:
        labels = [case.label for case in grid("full", device)]
        assert len(set(labels)) == len(labels)

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_every_workload_is_there_in_every_precision_and_form(self, device: str) -> None:
        cases = [case for case in grid("full", device) if not case.sweep]
        for workload in WORKLOADS:
            for precision in ("float32", "bfloat16", "float64"):
                forms = {
                    case.form for case in cases if case.precision == precision and case.workload.title == workload.title
                }
                assert forms == {"spatial", "class"}

    def test_facts_come_back(self) -> None:
        for case in grid("full", "cpu"):
            assert from_facts(json.loads(json.dumps(case.facts()))) == case

    def test_bytes_are_those_of_the_tensors(self) -> None:
        inputs = SMALL.inputs()
        expected = sum(tensor.nbytes for tensor in inputs) + sum(leaf.nbytes for leaf in inputs.leaves())
        assert SMALL.bytes_moved == expected

    def test_channels_last(self) -> None:
        features = SMALL._replace(layout="channels-last").inputs().student_features
        assert features.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(features, SMALL.inputs().student_features)

    def test_a_judged_case_is_small(self) -> None:
        judged = Case(IMAGENET21K_RESNET50_MOBILENETV2, "class").judged()
        assert (judged.workload.batch, judged.workload.classes) == (1, 2048)
        assert SMALL.judged() == SMALL

    @pytest.mark.parametrize("form", ["spatial", "class"])
    def test_sweeps_grow(self, form: str) -> None:
        for sweep in ("classes", "batch", "side", "regions"):
            sizes = [case.size for case in grid("full", "cpu") if case.sweep == sweep and case.form == form]
            assert sizes == sorted(set(sizes))
            assert len(sizes) >= 5


class TestRivals:
    def test_the_released_code_has_one_form(self) -> None:
        assert RELEASED.why_not(SMALL, "cpu") == ""
        assert "only the spatial form" in RELEASED.why_not(SMALL._replace(form="class"), "cpu")
        assert "only the spatial form" in RELEASED.why_not(SMALL._replace(scales=(1, 2)), "cpu")

    def test_a_backend_of_another_device_is_absent(self) -> None:
        assert RIVALS["cuda"].why_not(SMALL, "cpu")

    def test_the_released_restatement_is_right(self) -> None:
        figures, wrong = judge.Truth.of(SMALL).verdict(RELEASED)
        assert not wrong
        assert figures["errors"]["loss"] < 1e-5

    def test_compilers_take_part_where_they_are_asked_to(self) -> None:
        settings = cpu.Settings(2, 1.0, command.ALL_COMPILED, command.ONE_AUTOTUNED)
        cases = grid("full", "cpu")
        assert all(settings.takes_part(EAGER, case) and settings.takes_part(CPP, case) for case in cases)
        compiled = [case for case in cases if settings.takes_part(COMPILED, case)]
        assert {case.precision for case in compiled} == {"float32"}
        assert {case.sweep for case in compiled} == {"", "classes"}
        assert len([case for case in cases if settings.takes_part(AUTOTUNED, case)]) == 2

    def test_a_gpu_times_ours_and_theirs(self) -> None:
        names = [rival.name for rival in gpu.rivals_of(SMALL, compiled="CIFAR", autotuned="spatial$")]
        assert names == ["triton", "cuda", "eager", "released", "compiled", "compiled max-autotune"]
        assert [rival.name for rival in gpu.rivals_of(SMALL, "CUB", "CUB")] == names[:-2]


class TestGate:
    def test_a_wrong_result_is_refused(self) -> None:
        truth = judge.Truth.of(SMALL)
        right = EAGER.forward_backward(truth.inputs, **SMALL.options)()
        judge.check(right, truth.eager_errors, truth.exact, summed_rows=16)
        with pytest.raises(judge.WrongResultError, match="loss: error"):
            judge.check((right[0] * 1.01, *right[1:]), truth.eager_errors, truth.exact, summed_rows=16)

    def test_a_wrong_backend_gets_no_figure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(judge.Truth, "verdict", lambda truth, rival: ({}, "loss: error 1"))
        truth = judge.Truth.of(SMALL)
        inputs = SMALL.inputs()
        assert cpu._prepared(RIVALS["cpp"], SMALL, inputs, truth) == {"wrong": "loss: error 1"}
        assert isinstance(cpu._prepared(EAGER, SMALL, inputs, truth), cpu.Ready)

    def test_what_needs_too_much_memory_is_told(self) -> None:
        huge = Case(IMAGENET21K_RESNET50_MOBILENETV2, "class")
        found = cpu._prepared(EAGER, huge, SMALL.inputs(), judge.Truth.of(SMALL))
        assert isinstance(found, dict)
        assert found["out_of_memory"]["needed"] > 1e13
        assert memory.needed(huge, CPP) == 0


class TestClock:
    def test_quantiles(self) -> None:
        found = quantiles([float(value) for value in range(101)])
        assert (found["count"], found["least"], found["p5"], found["median"], found["p95"]) == (101, 0, 5, 50, 95)
        assert quantiles([2.0])["p75"] == 2.0

    def test_actions_take_turns(self) -> None:
        calls: list[str] = []
        samples = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0.0)
        assert calls[:4] == ["a", "b", "a", "b"]
        assert len(samples["a"]) == len(samples["b"]) == len(calls) // 2 - 1

    def test_exponent(self) -> None:
        assert exponent({size: 3.0 * size**1.5 for size in (10, 20, 80)}) == pytest.approx(1.5)

    def test_exponents_are_fitted_at_the_large_end(self) -> None:
        points = {size: max(1.0, size / 100) for size in (1, 10, 100, 200, 400, 800)}
        assert tables.fitted_exponent(points) == pytest.approx(1.0)
        assert tables.fitted_exponent({1: 1.0}) is None


def figures(median: float, spread: float = 0.01) -> dict[str, Any]:
    samples = [median * (1 + spread * step / 10) for step in range(-10, 11)]
    return {"both": quantiles(samples), "forward": quantiles(samples)}


def document(ours: float, eager: float = 1.0, label: str = "L") -> results.Document:
    entry = {"label": label, "rivals": {"eager": figures(eager), "cpp": figures(ours), "released": {"absent": "x"}}}
    return {"entries": [entry]}


class TestCompare:
    def test_a_slower_machine_is_no_regression(self) -> None:
        text, is_good = compare.report(document(0.1, 1.0), document(0.2, 2.0), 1.1, "eager")
        assert is_good
        assert "2 figures, 0 past 1.1" in text

    def test_a_slower_backend_is(self) -> None:
        text, is_good = compare.report(document(0.1), document(0.13), 1.1, "eager")
        assert not is_good
        assert "SLOWER" in text
        assert not compare.report(document(0.1, 1.0), document(0.2, 2.0), 1.1, None)[1]

    def test_noise_excuses(self) -> None:
        noisy = document(0.115)
        noisy["entries"][0]["rivals"]["cpp"] = figures(0.115, spread=0.5)
        assert compare.report(document(0.1), noisy, 1.1, "eager")[1]
        assert not compare.report(document(0.1), document(0.115), 1.1, "eager")[1]

    def test_nothing_in_common(self) -> None:
        with pytest.raises(ValueError, match="no figure in common"):
            compare.report(document(1.0), document(1.0, label="M"), 1.1, "eager")

    def test_noise_of_a_median(self) -> None:
        assert median_noise(quantiles([1.0] * 9)) == 0.0

    def test_the_command(self, tmp_path: Path) -> None:
        for name, seconds in (("a", 0.1), ("b", 0.2)):
            results.write(tmp_path / f"{name}.json", document(seconds))
        assert command.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 0
        assert command.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1


class TestCheck:
    def test_limits(self) -> None:
        entry: dict[str, Any] = {**document(1.0, 1.0)["entries"][0], "case": {"form": "spatial"}}
        assert "1.00x eager, limit" in check.failures(entry)[0]
        entry["rivals"]["cpp"] = figures(1e-3)
        assert check.failures(entry) == []
        entry["rivals"]["cpp"] = {"wrong": "loss"}
        assert "no figure" in check.failures(entry)[0]


class TestFiles:
    def test_another_format_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "old.json"
        path.write_text("{}")
        with pytest.raises(ValueError, match="expected a result file of format 2, got format None"):
            results.read(path)

    def test_the_newest_full_file(self, tmp_path: Path) -> None:
        files = {"cpu-a": ("2026-01-01", "full"), "cpu-b": ("2026-02-01", "full"), "cpu-c": ("2026-03-01", "small")}
        for name, (date, chosen) in files.items():
            results.write(tmp_path / f"{name}.json", {"date": date, "settings": {"grid": chosen}})
        assert results.newest("cpu", tmp_path) == tmp_path / "cpu-b.json"
        assert results.newest("gpu", tmp_path) is None

    def test_names_hold_device_and_commit(self) -> None:
        assert results.path_for({"cpu": "AMD EPYC", "commit": "0123456789abc"}).name == "cpu-amd-epyc-0123456789.json"
        gpu_machine = {"cpu": "x", "gpu": "NVIDIA H100", "commit": "0123456789abc"}
        assert results.path_for(gpu_machine).name == "gpu-nvidia-h100-0123456789.json"

    def test_an_update_keeps_the_other_entries(self, tmp_path: Path) -> None:
        path, machine = tmp_path / "cpu.json", {"cpu": "x", "backends": ("cpp",), "commit": "a"}
        entries = [{"label": "L", "value": 1}, {"label": "M", "value": 1}]
        results.write(path, {"machine": machine, "settings": {"grid": "full"}, "entries": entries})
        new: results.Document = {"machine": {**machine, "commit": "b"}, "settings": {}, "entries": []}
        document = results.updated(path, new)
        results.add(document, {"label": "L", "value": 2})
        assert [entry["value"] for entry in document["entries"]] == [2, 1]
        assert (document["machine"]["commit"], document["settings"]["grid"]) == ("b", "full")
        with pytest.raises(ValueError, match="cpu was 'x', here it is 'y'"):
            results.updated(path, {**new, "machine": {"cpu": "y"}})

    def test_text_between_markers_is_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "page.md"
        path.write_text("a <!-- x: begin -->old<!-- x: end --> b")
        pages.insert(path, "x", "new")
        assert path.read_text() == "a <!-- x: begin -->\nnew\n<!-- x: end --> b"
        with pytest.raises(ValueError, match="must hold the markers"):
            pages.insert(path, "y", "new")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> results.Document:
    path = tmp_path_factory.mktemp("run") / "small.json"
    arguments = ["run", "--grid", "small", "--only", "^CIFAR.*spatial", "--seconds", "0", "--threads", "1"]
    assert command.main([*arguments, "--compiled", "^$", "--output", str(path)]) == 0
    return results.read(path)


@NEEDS_CPP
class TestRun:
    """A run of one small case, to its pages."""

    def test_every_rival_has_its_figures(self, measured: results.Document) -> None:
        (entry,) = measured["entries"]
        assert set(entry["rivals"]) == {"eager", "released", "cpp"}
        for rival in entry["rivals"].values():
            assert rival["both"]["median"] > 0
            assert rival["extra_peak"] > 0
            assert rival["operations"] > 0
            assert max(rival["errors"].values()) < 1e-4
        assert entry["rivals"]["cpp"]["operations"] < entry["rivals"]["eager"]["operations"]
        assert "cpp: " in show.text(entry)

    def test_pages(self, measured: results.Document, tmp_path: Path) -> None:
        (tmp_path / "docs").mkdir()
        for name in ("README.md", "docs/benchmarks.md"):
            (tmp_path / name).write_text("<!-- cpu-benchmarks: begin --><!-- cpu-benchmarks: end -->")
        written = list(pages.write([measured], tmp_path))
        assert [path.name for path in written] == ["README.md", "benchmarks.md"]
        summary = (tmp_path / "README.md").read_text()
        assert "| spatial, CIFAR-100, K 100 |" in summary
        assert "docs/benchmarks.md" in summary
        details = (tmp_path / "docs" / "benchmarks.md").read_text()
        assert "| spatial | CIFAR-100 ResNet32x4→MobileNetV2: B 64, 256x8x8→1280x2x2, K 100 |" in details
        assert "first found right" in details


class TestObjectiveSteps:
    def test_every_way_computes(self) -> None:
        for entrant in objective_steps.entrants():
            step = objective_steps.objective_step(SMALL.workload, entrant.loss(SMALL.workload.classes))
            step()

    @pytest.mark.parametrize("method", ["sd-kd", "icd-kd"])
    def test_the_released_way_is_the_released_objective(self, method: str) -> None:
        from icd_kernels import NetworkOutput, make_objective

        inputs = SMALL.inputs()
        logits = [torch.randn(2, 100), torch.randn(2, 100)]
        student = NetworkOutput(logits[0], inputs.student_features, (inputs.student_weight, inputs.student_bias))
        teacher = NetworkOutput(logits[1], inputs.teacher_features, (inputs.teacher_weight, inputs.teacher_bias))
        target = torch.tensor([3, 5])
        expected = make_objective(method, num_classes=100, released=True)(student, teacher, target).total
        actual = objective_steps.Entrant(method, "released").loss(100)(student, teacher, target)
        torch.testing.assert_close(actual, expected)

    def test_maps_of_large_images_are_those_of_cub(self) -> None:
        images = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            teacher = objective_steps.untrained("resnet32x4", 224, 5).eval()(images).features
            student = objective_steps.untrained("mobilenetv2", 224, 5).eval()(images).features
        assert teacher is not None
        assert student is not None
        assert (teacher.shape[1:], student.shape[1:]) == ((256, 28, 28), (1280, 7, 7))


class TestGpu:
    @pytest.mark.parametrize(("set_bytes", "count"), [(2**20, 16), (20 * 2**20, 5), (2**34, 2)])
    def test_inputs_rotate_beyond_the_cache(self, set_bytes: int, count: int) -> None:
        assert gpu.rotations(set_bytes, 50 * 2**20) == count

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
    def test_says_what_is_missing(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["run", "--device", "cuda"]) == 1
        assert "torch sees no GPU; nothing was run" in capsys.readouterr().err

    def test_an_entry_reads(self) -> None:
        rivals = {
            "triton": {**figures(3e-5), "host_seconds": 1e-4},
            "eager": {"out_of_memory": "tried to allocate 20 GiB"},
        }
        lines = show.text({"label": "L", "floor_seconds": 2e-5, "rivals": rivals}).splitlines()
        assert lines[0] == "L: floor 20 µs"
        assert lines[1].strip().startswith("triton: 30 µs (29.9 µs to 30.1 µs, n 21), 1.5x floor")
        assert lines[2].endswith("out of memory: tried to allocate 20 GiB")


class TestTenMinutes:
    """The order of a run on a GPU and its end, with parts that take no GPU."""

    def run(self, parts: list[ten_minutes.Part], seconds: float = 100.0) -> list[dict[str, Any]]:
        written: list[dict[str, Any]] = []
        clock = iter(range(0, 10_000, 10))
        ten_minutes.run(parts, seconds, written.append, lambda: float(next(clock)))
        return written

    def part(self, name: str, count: int) -> ten_minutes.Part:
        return ten_minutes.Part(name, lambda: ({"number": number} for number in range(count)))

    def test_results_are_written_as_they_come(self) -> None:
        first, second, third = self.run([self.part("a", 2), self.part("b", 1)])
        assert [first["part"], second["part"], third["part"]] == ["a", "a", "b"]
        assert [first["number"], second["number"], third["number"]] == [0, 1, 0]

    def test_it_stops_itself_and_names_what_it_did_not_reach(self) -> None:
        written = self.run([self.part("a", 99), self.part("b", 1), self.part("c", 1)])
        assert len(written) < 12
        assert written[-3:] == [
            {"part": "a", "cut_short": True},
            {"part": "b", "not_reached": True},
            {"part": "c", "not_reached": True},
        ]

    def test_a_part_that_fails_does_not_take_the_others_with_it(self) -> None:
        def failing() -> Iterator[dict[str, Any]]:
            yield {"number": 0}
            raise RuntimeError("no kernel image")

        first, second, third = self.run([ten_minutes.Part("a", failing), self.part("b", 1)])
        assert first["number"] == 0
        assert second == {"part": "a", "failed": "RuntimeError: no kernel image"}
        assert third["part"] == "b"

    def test_right_results_come_before_times(self) -> None:
        names = [part.name for part in ten_minutes.PARTS]
        assert names == ["correctness", "stress", "constants", "trace", "knobs", "table"]

    def test_a_trace_says_when_tasks_ran(self) -> None:
        if TRITON.missing is not None:
            pytest.skip(f"backend 'triton' is missing: {TRITON.missing}")
        from benchmarks.gpu_trace import KINDS, Trace

        drawn = torch.tensor([5000, 5000, 6000, 7000, 9000, 9500])
        lasting = torch.tensor([1000, 3000, 500, 2500, 400, 800])
        trace = Trace((2, 1, 1, 1, 1), torch.stack([drawn, drawn + lasting, torch.arange(6)], 1))
        found = trace.summary()
        assert tuple(found) == KINDS
        assert found["pool teacher"] == {
            "tasks": 2, "first_drawn": 0.0, "last_ended": 3.0, "median": 1.0, "longest": 3.0
        }  # fmt: skip
        assert found["Gram"]["last_ended"] == 5.3
        assert trace.rows()[-1] == [4500, 800, 5]

    def test_every_knob_is_a_constant_of_the_configurations(self) -> None:
        if TRITON.missing is not None:
            pytest.skip(f"backend 'triton' is missing: {TRITON.missing}")
        from icd_kernels.backends.triton import configs

        for name, value in ten_minutes.settings():
            own = getattr(configs, name)
            assert own != value
            with ten_minutes.changed(name, value):
                assert getattr(configs, name) == value
            assert getattr(configs, name) == own

    def test_without_a_gpu_nothing_runs(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr("sys.argv", ["ten_minutes"])
        assert ten_minutes.main() == 1
        assert "no GPU" in capsys.readouterr().err


@pytest.mark.skipif(cpp.CPP.missing is not None, reason=f"backend 'cpp' is missing: {cpp.CPP.missing}")
@pytest.mark.parametrize("form", ["spatial", "class"])
def test_stages_are_a_steps(form: str) -> None:
    """Every stage runs on a small workload, pools what the loss pools, and has a floor."""
    workload = CUB_RESNET32X4_MOBILENETV2.with_batch(2)
    lines = stages.table(workload, form, 0.01).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [
        "pool teacher", "pool student", "project teacher", "project student", "Gram, with its gradient",
        "gradient by pooled features", "gradient by the weight", "unpool", "the whole step",
    ]  # fmt: skip
    assert all(float(line.split(" | ")[-1].strip("| ")) > 0 for line in lines[2:])
