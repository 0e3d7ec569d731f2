"""The sixteen traps that public implementations fell into: for each, what would have caught it.

The numbers are those of the project's list of traps. Where another file has the test already, a
comment names it.
"""

from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import flow_timesteps, kernel_of, program, random_trajectories

from eigencache import kernel as kernels
from eigencache.kernel import Kernel
from eigencache.methods import METHODS, make_plan
from eigencache.plan import Plan
from eigencache.predictors import Kriging
from eigencache.schedules import Steps

ROOT = Path(__file__).parents[2]
TIMESTEPS = flow_timesteps(12)
RUNS = random_trajectories(TIMESTEPS, runs=4, roughness=0.1)


# ---- 1. A kernel of cosines of the token mean loses the norms, yet the weights meet raw features.
# The matrices themselves: test_kernel.py, test_second_moment_is_the_mean_product_per_number.


def test_1_what_only_grows_is_forecast_exactly_by_the_second_moment_and_not_by_cosines():
    growth = np.linspace(1, 4, 12)
    runs = [growth[:, None] * run[0] for run in RUNS]  # one direction a run, at every step
    errors = {}
    for normalisation in ("second-moment", "cosine"):
        kernel = kernel_of(runs, TIMESTEPS, normalisation=normalisation)
        plan = make_plan(Steps([0, 2, 5]), Kriging(3, 1e-9), TIMESTEPS, kernel)
        errors[normalisation] = np.abs(plan.weights[8] @ growth - growth[8])
    assert errors["second-moment"] < 1e-5
    assert errors["cosine"] > 0.5


@pytest.mark.parametrize("name", ["EigenCache", "EigenCache-design", "L2P"])
def test_1_our_methods_want_the_second_moment_of_the_full_feature(name):
    use = METHODS[name].parts(9).use
    assert (use.features, use.normalisation) == ("full", "second-moment")


# ---- 2. Weight tables of contiguous anchors that never match the spaced ones met at run time.
# That the runtime takes each row: test_runtime.py,
# test_skipped_outputs_are_the_weighted_sums_of_full_ones.


@pytest.mark.parametrize("name", METHODS)
def test_2_every_row_of_a_plan_is_over_the_full_steps_that_the_sampler_meets(name):
    method = METHODS[name]
    parts = method.parts(5)
    kept = {"tap": method.tap}
    if parts.use:
        kept |= {"features": parts.use.features, "normalisation": parts.use.normalisation}
    plan = method.open_loop(5, TIMESTEPS, kernel_of(RUNS, TIMESTEPS, **kept))
    window = None if parts.aim else parts.predictor.window  # an aim draws on all full steps
    for weights in plan.weights if plan.weights.ndim == 3 else [plan.weights]:
        for step in np.flatnonzero(~plan.full):
            past = [a for a in plan.full_steps if a < step]
            used = set(np.flatnonzero(weights[step]))
            assert used <= set(past if window is None else past[-window:])
            assert past[-1] in used or plan.streams  # a gate computes one of two streams


# ---- 3. A truncated matrix stored beside the full one, which always wins.
# test_methods.py, test_the_plan_is_made_from_the_kernel_as_it_is_used; here at the end of it:


def test_3_a_plan_of_rank_one_forecasts_as_if_features_had_one_direction():
    kernel = kernel_of(RUNS, TIMESTEPS)
    plan = METHODS["EigenCache-design"].plan(4, TIMESTEPS, kernel, rank=1, ordinary=False)
    _, vectors = np.linalg.eigh(kernel.matrix())
    direction = vectors[:, -1]
    for step in np.flatnonzero(~plan.full):
        assert plan.weights[step] @ direction == pytest.approx(direction[step], rel=1e-5)


# ---- 4. Weights of streams that a parser loses at the first ":", so that all are alike.
# test_schedules.py, test_names_with_colons_and_dots_have_the_weights_stated,
# test_a_pattern_of_no_stream_is_named and test_stream_weights_change_what_is_full.

# ---- 5. Greedy and variance schedules that only add to a fixed interval.
# test_schedules.py, test_every_feasible_budget_is_kept_to_the_step and the two by definition;
# test_methods.py, test_every_method_keeps_its_budget.

# ---- 6. Weights cast to bfloat16 and accumulated in it.
# test_runtime.py, test_a_forecast_in_half_precision_is_summed_in_single and
# test_a_bfloat16_model_forecasts_in_single_precision. On the way there:


def test_6_a_plan_keeps_its_weights_in_double_precision_to_the_file_and_back(tmp_path):
    third = np.zeros((12, 12))
    third[1:, 0] = 1 / 3
    plan = Plan(np.arange(12) == 0, third, TIMESTEPS, "output")
    plan.save(tmp_path / "plan.safetensors")
    assert Plan.load(tmp_path / "plan.safetensors").weights[5, 0] == 1 / 3


# ---- 7. Kernels reloaded and schedules made anew for every image; caches that outlive an image.
# test_runtime.py, test_only_outputs_that_a_later_step_needs_are_alive and
# test_outputs_of_an_interrupted_image_die_with_the_next_call. And there is nothing to reload:


@pytest.mark.slow
def test_7_the_runtime_knows_neither_kernels_nor_schedules():
    code = (
        "import sys, eigencache.runtime; "
        "sys.exit(bool({'eigencache.kernel', 'eigencache.schedules', 'eigencache.methods'} "
        "& set(sys.modules)))"
    )
    assert program("-c", code).returncode == 0


# ---- 8. Three anchors of every stream kept at once.
# test_runtime.py, test_no_more_bytes_are_held_than_later_steps_need. And ours needs one stream:


def test_8_our_methods_keep_features_of_one_stream():
    for name in ("EigenCache", "EigenCache-design"):
        assert METHODS[name].tap == "output"
    plan = METHODS["EigenCache-design"].plan(5, TIMESTEPS, kernel_of(RUNS, TIMESTEPS))
    assert (plan.tap, plan.streams, plan.weights.ndim) == ("output", (), 2)


# ---- 9. Calibration on prompts and seeds of the evaluation.
# test_stages.py, test_a_leak_of_prompts_is_refused; test_experiment.py,
# test_every_evaluation_prompt_is_left_out_of_calibration and
# test_prompt_in_both_files_is_an_error. Of the seeds:


def test_9_calibration_of_the_default_experiment_has_a_seed_of_its_own():
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    assert config["calibration"]["seed"] != config["seed"]


# ---- 10. One seed for a whole batch, so that images depend on its size.
# test_sampling.py, test_images_do_not_depend_on_shards_or_order; test_full_runs.py,
# test_batches_change_nothing_but_rounding; test_stages.py,
# test_image_seeds_differ_between_prompts_and_experiments.

# ---- 11. JPEG and a watermark between the sampler and the metrics.
# test_sampling.py, test_records_state_what_was_done (every image is a PNG), and what is read is
# what was written: test_stages.py, test_an_image_is_loaded_as_channels_rows_columns.

# ---- 12. PSNR of uint8 arrays, which wrap around.
# test_stages.py, test_psnr_is_on_the_true_scale.

# ---- 13. LPIPS of input that is normalised twice.
# LPIPS is not measured. Of the metrics that are, the range is tested: test_stages.py,
# test_psnr_is_on_the_true_scale and test_identical_images_agree_wholly.

# ---- 14. A speed-up of FLOPs, or of time that includes loading.
# test_stages.py, test_speed_up_is_the_median_of_paired_ratios and
# test_images_without_a_timed_pair_do_not_count_for_speed_up.

# ---- 15. No baseline of the same compute.


def test_15_the_default_experiment_has_the_sampler_with_as_few_steps():
    methods = yaml.safe_load((ROOT / "config.yaml").read_text())["methods"]
    assert {"method": "fewer-steps"} in methods.values()


# ---- 16. Options that are read by nobody.
# test_methods.py, test_every_option_changes_the_plan_or_the_kernel_that_is_wanted and
# test_an_unknown_option_lists_the_allowed; of the closed loop, test_closed_loop.py.


def test_16_an_option_of_a_name_that_nobody_has_is_refused_by_every_part():
    for method in METHODS.values():
        with pytest.raises(ValueError, match="unknown options"):
            method.parts(5, cluster_threshold=0.1)


def test_16_the_features_that_a_method_may_want_are_those_that_can_be_calibrated():
    from eigencache.runtime import _taps as taps

    assert set(kernels.FEATURES) == set(taps.FEATURES)
    for features in kernels.FEATURES:
        Kernel({"a": np.eye(12)}, 1, TIMESTEPS, tap="output", features=features)
