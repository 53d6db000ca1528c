"""Options, presets, ramp, targets and weights: what each does, and the error a wrong one gets, by its name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import CRD_OPTIONS, EVERY_METHOD, LOGIT_METHODS, example, map_and_head, objective_of
from torch.testing import assert_close

from icd_kernels import ICDLoss, NetworkOutput, icd_loss, make_objective, sdd_loss
from icd_kernels.objectives import METHODS, Objective

ICD_METHODS = [method for method in METHODS if method.startswith("icd-")]
LOCAL_METHODS = [method for method in METHODS if "-" in method]


def run(objective: Objective, **options: Any) -> Any:
    batch = example(torch.float32)
    torch.manual_seed(3)
    return objective(*batch[:3], **{"epoch": 20, "indices": batch.indices, **options})


RELEASED: dict[str, dict[str, Any]] = {
    "sp": {"ce_weight": 1.0, "base_weight": 3000.0},
    "crd": {"base_weight": 0.8, "temperature": 0.07, "momentum": 0.5, "num_negatives": 12},
    "ldrld": {"temperature": 4.0, "top_k": 7, "alpha": 10.5, "beta": 7.0},
    "kd": {"ce_weight": 0.1, "base_weight": 0.9, "temperature": 4.0, "ramp_epochs": 0.0},
    "dkd": {"temperature": 4.0, "alpha": 1.0, "beta": 2.0, "ramp_epochs": 20.0, "ce_weight": 1.0},
    "nkd": {"temperature": 1.0, "gamma": 1.5, "ramp_epochs": 20.0},
    "sd-nkd": {"temperature": 4.0, "gamma": 2.0, "ramp_epochs": 20.0, "complementary_weight": 2.0},
    "sd-kd": {"ce_weight": 0.1, "base_weight": 0.9, "scales": (1, 2, 4), "pyramid": "adaptive"},
    "icd-dkd": {"icd_weight": 2.0, "gram": "spatial", "normalize": "l2", "icd_temperature": 2.0, "beta": 2.0},
    "icd-nkd": {"icd_weight": 2.0, "scale_weights": (1 / 6, 2 / 6, 3 / 6), "gamma": 2.0, "local_base": True},
}


class TestSettings:
    @pytest.mark.parametrize("method", RELEASED)
    def test_defaults_are_the_released_ones(self, method: str) -> None:
        settings = objective_of(method).settings()
        expected = RELEASED[method]
        assert {name: settings[name] for name in expected} == expected

    @pytest.mark.parametrize("method", EVERY_METHOD)
    def test_are_plain_and_the_callers_own(self, method: str) -> None:
        objective = objective_of(method)
        settings = objective.settings()
        assert settings["method"] == method
        for value in settings.values():
            assert isinstance(value, (str, int, float, tuple))
        settings.clear()
        assert objective.settings()
        assert "ce_weight=" in repr(objective)

    def test_crds_default_negatives_shrink_to_the_data_set(self) -> None:
        small = {**CRD_OPTIONS, "num_negatives": 16384}
        assert objective_of("crd", **small).settings()["num_negatives"] == 39
        labels = [0] * 25 + [1] * 15
        assert objective_of("crd", **small, labels=labels).settings()["num_negatives"] == 15


class TestRamp:
    @pytest.mark.parametrize(("epoch", "ramp"), [(0, 0.0), (5, 0.25), (20, 1.0), (240, 1.0)])
    def test_of_the_base_alone(self, epoch: int, ramp: float) -> None:
        out = run(objective_of("icd-nkd"), epoch=epoch)
        parts = out.components
        assert_close(out.total.detach(), parts["ce"] + ramp * parts["sd-nkd"] + 2.0 * parts["icd"])

    @pytest.mark.parametrize("method", ["dkd", "nkd", "sd-nkd", "icd-dkd"])
    def test_needs_the_epoch(self, method: str) -> None:
        """Without it the base would be off, and training would go on without the method."""
        with pytest.raises(TypeError, match=rf"epoch must be given: method '{method}' ramps up over 20 epochs"):
            run(objective_of(method), epoch=None)

    def test_is_no_matter_where_there_is_none(self) -> None:
        for method in ("kd", "icd-kd"):
            assert torch.equal(run(objective_of(method), epoch=None).total, run(objective_of(method), epoch=7).total)

    def test_can_be_set_and_left_out(self) -> None:
        for ramp_epochs, ramp in ((10, 0.5), (0, 1.0)):
            out = run(objective_of("dkd", ramp_epochs=ramp_epochs), epoch=5)
            assert_close(out.total.detach(), out.components["ce"] + ramp * out.components["dkd"])


class TestICD:
    @pytest.mark.parametrize("preset", ["paper", "balanced", "released"])
    @pytest.mark.parametrize("method", ICD_METHODS)
    def test_presets_are_those_of_the_loss(self, method: str, preset: str) -> None:
        batch = example(torch.float32)
        classes = objective_of(method).settings()["num_classes"]
        weight = {"paper": 0.3 / classes, "balanced": 30 / classes, "released": 2.0}[preset]
        loss = getattr(ICDLoss, preset)(*[classes] * (preset == "balanced"), weight=weight)
        (student_map, *student_head), (teacher_map, *teacher_head) = map(map_and_head, batch[:2])
        expected = loss(student_map, student_head, teacher_map, teacher_head)
        objective = objective_of(method, preset=preset)
        assert_close(run(objective).components["icd"] * objective.settings()["icd_weight"], expected.detach())

    @pytest.mark.parametrize("gram", ["class", "spatial", "sample"])
    def test_local_or_global_base(self, gram: str) -> None:
        """The same iCD, from shared local logits or fused; the base is that of the other method."""
        local, fused = (run(objective_of("icd-kd", gram=gram, local_base=local)) for local in (True, False))
        assert_close(local.components["icd"], fused.components["icd"])
        assert_close(local.components["sd-kd"], run(objective_of("sd-kd")).components["sd-kd"])
        assert_close(fused.components["kd"], run(objective_of("kd")).components["kd"])

    def test_one_pooling_and_projection_for_each_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []
        original = torch.nn.functional.adaptive_avg_pool2d

        def counted(*arguments: Any) -> Any:
            calls.append(arguments[1])
            return original(*arguments)

        monkeypatch.setattr(torch.nn.functional, "adaptive_avg_pool2d", counted)
        run(objective_of("icd-kd"))
        assert sorted(calls) == [1, 1, 2, 2, 4, 4]

    def test_options_reach_the_loss(self) -> None:
        batch = example(torch.float32)
        (student_map, *student_head), (teacher_map, *teacher_head) = map(map_and_head, batch[:2])
        options: dict[str, Any] = {
            "scales": (1, 3),
            "normalize": "zscore",
            "gram": "sample",
            "scale_weights": (0.5, 2.0),
        }
        expected = icd_loss(
            student_map, student_head[0], teacher_map, teacher_head[0], student_head[1], teacher_head[1],
            **options, temperature=3.0, pyramid="nested",
        )  # fmt: skip
        out = run(objective_of("icd-dkd", **options, icd_temperature=3.0, pyramid="nested", icd_weight=5.0))
        assert_close(out.components["icd"], expected.detach())
        assert_close(
            out.total.detach(), sum(out.components[name] for name in ("ce", "sd-dkd")) + 5.0 * expected.detach()
        )


class TestReleased:
    @pytest.mark.parametrize(("scales", "weights"), [((1, 2), (1 / 3, 2 / 3, 0.0)), ((1, 2, 4), None)])
    def test_pools_from_four_by_four(self, scales: tuple[int, ...], weights: tuple[float, ...] | None) -> None:
        batch = example(torch.float32)
        loss = ICDLoss.released(scale_weights=weights, weight=1.0)
        (student_map, *student_head), (teacher_map, *teacher_head) = map(map_and_head, batch[:2])
        expected = loss(student_map, student_head, teacher_map, teacher_head)
        for local_base in (True, False):
            out = run(objective_of("icd-kd", released=True, scales=scales, local_base=local_base))
            assert_close(out.components["icd"], expected.detach())

    def test_temperature_of_icd_only_multiplies(self) -> None:
        plain, hot = (run(objective_of("icd-kd", released=True, **o)) for o in ({}, {"icd_temperature": 3.0}))
        assert_close(hot.components["icd"], 9 * plain.components["icd"])

    @pytest.mark.parametrize("method", ["nkd", "sd-nkd", "icd-nkd"])
    def test_nkd_keeps_the_true_class(self, method: str) -> None:
        name = method.replace("icd", "sd")
        same = {} if method == "nkd" else {"pyramid": "adaptive"}
        right, released = (run(objective_of(method, released=flag, **same)).components[name] for flag in (False, True))
        assert not torch.isclose(right, released)

    def test_is_the_op_by_op_rival(self) -> None:
        from benchmarks import released_eager

        batch = example(torch.float32)
        (student_map, student_weight, student_bias), (teacher_map, teacher_weight, teacher_bias) = map(
            map_and_head, batch[:2]
        )
        expected = released_eager.icd_kd(
            student_map, student_weight, teacher_map, teacher_weight, student_bias, teacher_bias,
            batch.student.logits, batch.target,
        )  # fmt: skip
        assert_close(run(objective_of("icd-kd", released=True)).total, expected)


class TestTargets:
    @pytest.mark.parametrize("method", EVERY_METHOD)
    def test_probabilities_of_one_class_are_that_class(self, method: str) -> None:
        batch = example(torch.float32)
        hard = run(objective_of(method))
        torch.manual_seed(3)
        one_hot = torch.nn.functional.one_hot(batch.target, 9).to(torch.float16)
        soft = objective_of(method)
        torch.manual_seed(3)
        assert_close(soft(*batch[:2], one_hot, epoch=20, indices=batch.indices).total, hard.total)

    @pytest.mark.parametrize("method", LOGIT_METHODS)
    def test_mixed_images_count_as_their_likelier_class(self, method: str) -> None:
        batch = example(torch.float32)
        one_hot = torch.nn.functional.one_hot(batch.target, 9).float()
        mixed = 0.7 * one_hot + 0.3 * one_hot.roll(1, 0)
        out = objective_of(method)(*batch[:2], mixed, epoch=20)
        hard = run(objective_of(method))
        assert_close({**out.components, "ce": 0}, {**hard.components, "ce": 0})
        assert_close(out.components["ce"], torch.nn.functional.cross_entropy(batch.student.logits, mixed).detach())

    def test_label_smoothing_is_of_cross_entropy_alone(self) -> None:
        batch = example(torch.float32)
        smooth, plain = (run(objective_of("icd-dkd", label_smoothing=value)).components for value in (0.1, 0.0))
        expected = torch.nn.functional.cross_entropy(batch.student.logits, batch.target, label_smoothing=0.1)
        assert_close(smooth, {**plain, "ce": expected.detach()})


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("method", EVERY_METHOD)
def test_sample_weights(method: str, reduction: str) -> None:
    """Each image's terms times its weight, then the reduction: the mean divides by B."""
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 3.0])
    per_image = run(objective_of(method, reduction="none")).total
    got = run(objective_of(method, reduction=reduction), sample_weight=weights)
    expected = per_image * weights
    if reduction != "none":
        expected = getattr(expected, reduction)()
    assert_close(got.total, expected)
    ones = run(objective_of(method, reduction=reduction), sample_weight=torch.ones(6))
    assert_close(ones.total, run(objective_of(method, reduction=reduction)).total)


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_components_are_detached(method: str) -> None:
    out = run(objective_of(method))
    assert out.total.requires_grad
    assert not any(term.requires_grad for term in out.components.values())


class TestErrors:
    @pytest.mark.parametrize(
        ("method", "options", "error", "message"),
        [
            ("md", {}, ValueError, "method must be one of .*'md'"),
            ("kd", {"num_classes": 1}, ValueError, "num_classes must be 2 or more, got 1"),
            ("kd", {"alpha": 1.0}, TypeError, "'kd' has no option 'alpha'; it has .*temperature"),
            ("sd-kd", {"preset": "paper"}, TypeError, "preset and local_base are options of iCD, not of 'sd-kd'"),
            (
                "icd-kd",
                {"preset": "paper", "released": True},
                ValueError,
                "preset must be 'released' or None .*'paper'",
            ),
            ("icd-kd", {"preset": "other"}, ValueError, "preset must be one of .*'other'"),
            ("kd", {"temperature": 0}, ValueError, "temperature must be finite and above 0, got 0"),
            ("icd-kd", {"icd_temperature": -1.0}, ValueError, "icd_temperature must be finite and above 0, got -1"),
            ("icd-kd", {"icd_weight": "2"}, TypeError, "icd_weight must be a number, got str"),
            ("dkd", {"beta": -1}, ValueError, "beta must be finite and 0 or more, got -1"),
            ("sd-kd", {"complementary_weight": None}, TypeError, "complementary_weight must be a number"),
            ("sd-kd", {"scales": (2, 4)}, ValueError, r"scales must begin with 1 .*\(2, 4\)"),
            (
                "sd-kd",
                {"scales": (1, 4), "released": True},
                ValueError,
                r"scales must be \(1,\).*released=True.*\(1, 4\)",
            ),
            ("icd-kd", {"gram": "outer"}, ValueError, "gram must be one of .*'outer'"),
            ("sd-kd", {"pyramid": "flat"}, ValueError, "pyramid must be one of .*'flat'"),
            ("kd", {"label_smoothing": 1.5}, ValueError, "label_smoothing must be between 0 and 1, got 1.5"),
            ("kd", {"reduction": "batchmean"}, ValueError, "reduction must be one of .*'batchmean'"),
            ("kd", {"released": 1}, TypeError, "released must be True or False, got int"),
            ("ldrld", {"top_k": 1}, ValueError, "top_k must be 2 or more, got 1"),
            ("crd", {"dataset_size": None}, ValueError, "'crd' needs the option dataset_size"),
            ("crd", {"student_channels": 2.0}, TypeError, "student_channels must be an int, got float"),
            ("crd", {"momentum": 1.5}, ValueError, "momentum must be between 0 and 1, got 1.5"),
            ("crd", {"labels": [0, 1]}, ValueError, r"labels must be 40 class indices.*\(2,\)"),
            ("crd", {"labels": [0] * 40}, ValueError, "labels must have at least 2 classes, got 1"),
        ],
    )
    def test_of_options(self, method: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            objective_of(method, **options)

    @pytest.mark.parametrize("name", ["student", "teacher"])
    def test_what_is_missing(self, name: str) -> None:
        batch = example(torch.float32)
        for method in ("sp", "crd", *LOCAL_METHODS):
            with pytest.raises(ValueError, match=rf"{name}\.features must be the penultimate map .* got None"):
                run_with(method, **{name: getattr(batch, name)._replace(features=None)})
        for method in LOCAL_METHODS:
            with pytest.raises(ValueError, match=rf"{name}\.head must be the classifier .* got None"):
                run_with(method, **{name: getattr(batch, name)._replace(head=None)})

    @pytest.mark.parametrize("method", ["kd", "dkd", "nkd", "ldrld"])
    def test_logits_are_enough_for_global_methods(self, method: str) -> None:
        batch = example(torch.float32)
        student, teacher = (NetworkOutput(network.logits) for network in batch[:2])
        assert_close(run_with(method, student=student, teacher=teacher).total, run(objective_of(method)).total)

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"student": torch.ones(6, 9)}, TypeError, "student must be an icd_kernels.NetworkOutput, got Tensor"),
            (
                {"teacher": NetworkOutput(torch.ones(6, 8))},
                ValueError,
                r"teacher.logits must have shape \(B, 9\).*\(6, 8\)",
            ),
            (
                {"teacher": NetworkOutput(torch.ones(5, 9))},
                ValueError,
                r"teacher.logits must have the batch size.*\(5, 9\)",
            ),
            (
                {"student": NetworkOutput(torch.ones(6, 9, dtype=torch.int64))},
                TypeError,
                "student.logits .*torch.int64",
            ),
            ({"target": torch.zeros(5, dtype=torch.int64)}, ValueError, r"target of class indices.*\(6,\), got \(5,\)"),
            ({"target": torch.zeros(6, dtype=torch.int32)}, TypeError, "target must hold .*int64.*got torch.int32"),
            ({"target": torch.zeros(6, 8)}, ValueError, r"target of probabilities .*\(6, 9\), got \(6, 8\)"),
            ({"target": [0] * 6}, TypeError, "target must be a torch.Tensor .*list"),
            ({"epoch": -1}, ValueError, "epoch must be finite and 0 or more, got -1"),
            ({"epoch": "3"}, TypeError, "epoch must be a number, got str"),
            ({"sample_weight": torch.ones(5)}, ValueError, r"sample_weight must have shape \(6,\), got \(5,\)"),
            ({"sample_weight": torch.ones(6).long()}, TypeError, "sample_weight must be a floating .*int64"),
        ],
    )
    def test_of_arguments(self, changes: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            run_with("kd", **changes)

    def test_of_maps(self) -> None:
        batch = example(torch.float32)
        features, weight, bias = map_and_head(batch.student)
        for changes, message in (
            ({"features": features[:3]}, r"student.features must have shape \(6, C, H, W\).*\(3, 5, 6, 7\)"),
            ({"features": features[0]}, r"student.features must have shape \(6, C, H, W\).*\(5, 6, 7\)"),
            ({"head": (weight[:, :3], bias)}, "student_weight must have one column for each of the 5 channels"),
            ({"head": (weight[:4], bias[:4])}, "student.head must have a row for each of the 9 classes"),
            ({"head": (weight,)}, r"student.head must be a pair \(weight, bias\), got 1 items"),
        ):
            with pytest.raises(ValueError, match=message):
                run_with("icd-kd", student=batch.student._replace(**changes))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"base": "md"}, ValueError, "base must be one of .*'md'"),
            ({"gamma": float("inf"), "base": "nkd"}, ValueError, "gamma must be finite"),
            ({"complementary_weight": True}, TypeError, "complementary_weight must be a number, got bool"),
            ({"reduction": "all"}, ValueError, "reduction must be one of"),
            ({"teacher_logits": torch.ones(2, 3, 4)}, ValueError, "teacher_logits must have the number of regions"),
            ({"student_logits": torch.ones(2, 1, 5)}, ValueError, "student_logits must have at least 2 classes"),
            ({"student_logits": torch.ones(2, 3)}, ValueError, r"student_logits must have shape \(B, K, N\)"),
        ],
    )
    def test_of_sdd_loss(self, options: dict[str, Any], error: type[Exception], message: str) -> None:
        arguments = {"student_logits": torch.ones(2, 3, 5), "teacher_logits": torch.ones(2, 3, 5)}
        with pytest.raises(error, match=message):
            sdd_loss(**{**arguments, "target": torch.tensor([0, 1]), **options})


def run_with(method: str, **changes: Any) -> Any:
    batch = example(torch.float32)
    arguments = {**batch._asdict(), "epoch": 20, **changes}
    student, teacher, target = (arguments.pop(name) for name in ("student", "teacher", "target"))
    return objective_of(method)(student, teacher, target, **arguments)


def test_num_classes_is_needed() -> None:
    with pytest.raises(TypeError, match="num_classes"):
        make_objective("kd")  # type: ignore[call-arg]


@pytest.mark.parametrize(("is_on_host", "reads"), [(True, 3), (False, 1)])
def test_values_on_a_device_are_read_once(monkeypatch: pytest.MonkeyPatch, is_on_host: bool, reads: int) -> None:
    """Reading them is a wait for the device: a batch on the host is checked every time, on a GPU the first alone."""
    import icd_kernels.objectives.objective as module

    read: list[int] = []
    monkeypatch.setattr(module, "is_on_host", lambda logits: is_on_host)
    monkeypatch.setattr(module, "check_target_values", lambda *arguments: read.append(1))
    objective = objective_of("kd")
    for _ in range(3):
        run(objective)
    assert len(read) == reads
