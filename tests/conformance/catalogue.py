"""All checks by name."""

import importlib.util
from collections.abc import Callable

import copies
import interface
import robustness
from bases import BASES, runs_here
from protocol import Wrapper

Check = Callable[[Wrapper], None]

CHECKS: dict[str, Check] = {
    "is an optimizer, shares param_groups": interface.is_an_optimizer,
    "add_param_group": interface.adds_parameter_groups,
    "learning rates of groups": interface.keeps_learning_rates_of_groups,
    **{f"scheduler {name}": interface.scheduler(name) for name in interface.SCHEDULERS},
    "gradient accumulation, one loss": interface.accumulates,
    "gradient accumulation, two losses": interface.accumulated_equals_the_whole_batch,
    "zero_grad": interface.clears_gradients,
    "hooks": interface.runs_hooks,
    "step(closure)": interface.takes_a_closure,
    "step(closure), LBFGS": interface.wraps_lbfgs,
    "torch.compile": interface.trains_a_compiled_model,
    "state on another device": copies.loads_onto_another_device,
    "deepcopy": copies.deep_copies,
    "pickle": copies.pickles,
    "refused state": copies.a_refused_state_changes_nothing,
    "absent loss": robustness.absent_losses_sit_out,
    "zero gradient": robustness.zero_gradients_do_not_stop_training,
    "NaN in one loss": robustness.nan_costs_its_own_loss_only,
    "NaN in all losses": robustness.nan_everywhere_moves_nothing,
    "gradients times 1e-8": robustness.small_gradients_keep_their_weights,
    "bf16 parameters": robustness.trains_in_bf16,
    "autocast": robustness.autocast,
    "GradScaler, unscale, clip": robustness.scaled_steps_equal_plain_steps,
    "GradScaler, one loss overflows": robustness.an_overflow_costs_its_own_loss_only,
    "GradScaler, all overflow": robustness.an_overflow_of_all_lowers_the_scale,
    "GradScaler, no loss applies": robustness.an_empty_batch_survives_the_scaler,
    **{f"base {name}": interface.follows(base) for name, base in BASES.items() if runs_here(base)},
    # torch's NAdam alone does not resume bit for bit: loading casts its mu_product to the parameters' type.
    **{f"resume {name}": copies.resumes(base) for name, base in BASES.items() if runs_here(base) and name != "NAdam"},
}
if importlib.util.find_spec("schedulefree") is not None:
    CHECKS["schedule-free train() and eval()"] = copies.reaches_the_modes_of_schedule_free
