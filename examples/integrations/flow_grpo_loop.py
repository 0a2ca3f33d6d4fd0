"""A flow_grpo-style loop: accelerate, `accumulate` per timestep, clipped GRPO loss on an SDE rollout.

    python examples/integrations/flow_grpo_loop.py
    accelerate launch examples/integrations/flow_grpo_loop.py

What changes in such a loop, where advantages were mixed into one number per sample:

    - optimizer = torch.optim.AdamW(params, lr=lr)
    + marble = marble_opt.Marble(torch.optim.AdamW(params, lr=lr), rewards=NAMES, reduction="sum")
    - model, optimizer = accelerator.prepare(model, optimizer)
    + model, optimizer = accelerator.prepare(model, marble)               # keep `marble`: the wrapper hides backward
      for j in timesteps:
          with accelerator.accumulate(model):
    -         loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - eps, 1 + eps)).mean()
    -         accelerator.backward(loss)
    +         loss = marble_opt.losses.clipped_policy_gradient(
    +             prediction, log_prob, old_log_prob, advantages, clip_range=eps, counts=counts)
    +         marble.backward(loss, scaler=accelerator.scaler)
              if accelerator.sync_gradients:
    +             marble.balance()
                  accelerator.clip_grad_norm_(params, 1.0)
              optimizer.step()                                             # every micro-step
              optimizer.zero_grad()

The last two lines run on every micro-step. accelerate's wrapper ignores them until the accumulation is complete, so
they stay. A loop that steps `marble` itself has to guard them, `if accelerator.sync_gradients: marble.step();
marble.zero_grad()`: unguarded, every micro-step would be balanced and applied on its own. `marble.balance()` belongs
under the guard in either case. `accelerator.backward` divides by the number of micro-steps; here `counts`, the samples
of the whole step on all processes, do, hence reduction="sum". Scores are gathered before the advantages are taken.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

import marble_opt
from tiny_flow import REWARDS, SIZE, Velocity, prompt_batch, score, seeded

STEPS, SIGMA, CLIP, MICRO_BATCHES = 4, 0.3, 0.05, 2

Trajectory = list[tuple[Tensor, Tensor, Tensor, Tensor]]


def transition(
    model: nn.Module, x: Tensor, t: Tensor, ids: Tensor, target: Tensor | None = None, noise: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One SDE step x_t → x_{t−1}: the prediction, where it goes (``target``, or drawn with ``noise``), log π [B]."""
    prediction = model(x, t, ids)
    mean = x - prediction / STEPS
    after = target if noise is None else mean + SIGMA * noise
    assert after is not None
    return prediction, after, -(after.detach() - mean).square().mean(1) / (2 * SIGMA**2)


@torch.no_grad()
def roll_out(model: nn.Module, everybody: Tensor, mine: slice, step: int) -> tuple[Trajectory, Tensor]:
    """The trajectory of this process's samples as (x_t, t, x_{t−1}, log π_old) per timestep, and x_0."""
    # Each process draws for all and keeps its share, so that the result does not depend on their number.
    noise = [torch.randn(len(everybody), SIZE, generator=seeded(step, i))[mine] for i in range(STEPS + 1)]
    x, trajectory = noise[0], []
    for i in range(STEPS, 0, -1):
        t = torch.full(x.shape[:1], i / STEPS)
        _, after, log_prob = transition(model, x, t, everybody[mine], noise=noise[i])
        trajectory.append((x, t, after, log_prob))
        x = after
    return trajectory, x


def micro_loss(
    model: nn.Module, moment: tuple[Tensor, ...], part: Tensor, prompt_ids: Tensor, advantages: Tensor, counts: Tensor
) -> marble_opt.SeparableLoss:
    """The loss of one timestep of some of the samples; ``counts`` are those of the whole optimizer step."""
    x, t, after, old_log_prob = (tensor[part] for tensor in moment)
    prediction, _, log_prob = transition(model, x, t, prompt_ids[part], target=after)
    return marble_opt.losses.clipped_policy_gradient(
        prediction, log_prob, old_log_prob, advantages[:, part], clip_range=CLIP, counts=counts
    )


def train(steps: int = 6) -> tuple[nn.Module, marble_opt.Marble]:
    """Optimizer steps of MICRO_BATCHES x STEPS micro-steps."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO_BATCHES * STEPS)
    torch.manual_seed(0)
    bare = Velocity()
    marble = marble_opt.Marble(torch.optim.AdamW(bare.parameters(), lr=1e-2), rewards=REWARDS, reduction="sum")
    model, optimizer = accelerator.prepare(bare, marble)
    everybody, rank, ranks = prompt_batch(), accelerator.process_index, accelerator.num_processes
    mine = slice(rank * len(everybody) // ranks, (rank + 1) * len(everybody) // ranks)
    prompt_ids = everybody[mine]
    for step in range(steps):
        trajectory, x_0 = roll_out(model, everybody, mine, step)
        scores = accelerator.gather(score(x_0, prompt_ids).T.contiguous()).T
        advantages = marble_opt.group_advantages(scores, everybody)
        counts = (~advantages.isnan()).sum(1) * STEPS
        for part in torch.arange(len(prompt_ids)).chunk(MICRO_BATCHES):
            for moment in trajectory:
                with accelerator.accumulate(model):
                    loss = micro_loss(model, moment, part, prompt_ids, advantages[:, mine], counts)
                    marble.backward(loss, scaler=accelerator.scaler)
                    if accelerator.sync_gradients:
                        marble.balance()
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
    return bare, marble


def main() -> None:
    """Train and print the last report."""
    _, marble = train()
    report = marble.report
    assert report is not None
    alpha = {name: round(value, 3) for name, value in zip(REWARDS, report.alpha.tolist(), strict=True)}
    print(f"{report.step + 1} optimizer steps, last weights {alpha}")


if __name__ == "__main__":
    main()
