"""TRL-style reward functions: a matrix [samples, rewards] with None or NaN for "does not apply", and reward weights.

    python examples/integrations/trl_reward_matrix.py

What changes in such a trainer, on a language model as small as can be:

      matrix = torch.stack([torch.tensor(call(f)) for f in reward_functions], 1)     # [samples, rewards], NaN
    - rewards = (matrix * weights).nansum(1)
    - advantages = (rewards - group_mean(rewards)) / (group_std(rewards) + 1e-4)      # [samples]
    + advantages = marble_opt.group_advantages(matrix.T, prompt_ids)                  # [rewards, samples], NaN stays
    - optimizer = torch.optim.AdamW(params, lr=lr)
    + optimizer = marble_opt.Marble(torch.optim.AdamW(params, lr=lr), rewards=names, weights=dict(zip(names, weights)))
    - loss = -torch.min(ratio * advantages, ratio.clamp(1 - eps, 1 + eps) * advantages).mean()
    - loss.backward()
    + optimizer.backward(marble_opt.losses.clipped_policy_gradient(
    +     logits, log_prob, old_log_prob, advantages, clip_range=eps))

Summed, "does not apply" counts as 0, which is a bad score for one reward and a good one for another. Here such a sample
has no part in that reward, and a reward that applies to nobody in the batch sits the step out. The ratio is that of the
whole completion (TRL: importance_sampling_level="sequence"). Weights are a prior: progress in proportion to them.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

import marble_opt
from tiny_flow import seeded

VOCABULARY, LENGTH, SAMPLES, CLIP = 8, 6, 6, 0.2
PROMPTS = ("count 3", "sum 1 2", "say a", "say c")

RewardFunction = Callable[[Sequence[str], Sequence[list[int]]], Sequence[float | None]]


def short(prompts: Sequence[str], completions: Sequence[list[int]]) -> list[float | None]:
    """Few different tokens."""
    return [-float(len(set(completion))) for completion in completions]


def varied(prompts: Sequence[str], completions: Sequence[list[int]]) -> list[float | None]:
    """No token twice in a row: disagrees with ``short``."""
    return [sum(float(a != b) for a, b in pairwise(c)) for c in completions]


def correct(prompts: Sequence[str], completions: Sequence[list[int]]) -> list[float | None]:
    """Holds for "say" prompts only: how often the letter was said."""
    return [
        float(completion.count(ord(prompt[-1]) - ord("a"))) if prompt.startswith("say") else None
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


REWARDS: dict[str, tuple[RewardFunction, float]] = {
    "short": (short, 1.0),
    "varied": (varied, 1.0),
    "correct": (correct, 2.0),
}


class Policy(nn.Module):
    """Next-token logits from the prompt and the token before."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts, self.tokens = nn.Embedding(len(PROMPTS), 16), nn.Embedding(VOCABULARY + 1, 16)
        self.head = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, VOCABULARY))

    def forward(self, prompt_ids: Tensor, tokens: Tensor) -> Tensor:
        """Logits [B, LENGTH, VOCABULARY] for tokens [B, LENGTH]."""
        start = torch.full_like(tokens[:, :1], VOCABULARY)
        before = self.tokens(torch.cat([start, tokens[:, :-1]], 1))
        out: Tensor = self.head(before + self.prompts(prompt_ids).unsqueeze(1))
        return out


@torch.no_grad()
def generate(policy: Policy, prompt_ids: Tensor, generator: torch.Generator) -> Tensor:
    """Sampled completions [B, LENGTH]."""
    tokens = torch.zeros(len(prompt_ids), LENGTH, dtype=torch.long)
    for position in range(LENGTH):
        odds = policy(prompt_ids, tokens)[:, position].softmax(-1)
        tokens[:, position] = torch.multinomial(odds, 1, generator=generator).squeeze(1)
    return tokens


def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean over the tokens of a completion, [B]."""
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1).mean(1)


def reward_matrix(
    functions: Sequence[RewardFunction], prompts: Sequence[str], completions: Sequence[list[int]]
) -> Tensor:
    """[samples, rewards]; None becomes NaN."""
    columns = [function(prompts, completions) for function in functions]
    return torch.tensor([[float("nan") if x is None else x for x in column] for column in columns]).T


def train(steps: int = 30, inner: int = 2) -> tuple[Policy, marble_opt.Marble, list[Tensor]]:
    """``steps`` rollouts with ``inner`` optimizer steps each; also returns the mean scores per rollout."""
    torch.manual_seed(0)
    policy, means = Policy(), []
    functions, weights = zip(*REWARDS.values(), strict=True)
    optimizer = marble_opt.Marble(
        torch.optim.AdamW(policy.parameters(), lr=5e-3),
        rewards=tuple(REWARDS),
        weights=dict(zip(REWARDS, weights, strict=True)),
        model=policy,
    )
    for step in range(steps):
        prompt_ids = torch.arange(len(PROMPTS)).repeat_interleave(SAMPLES)
        tokens = generate(policy, prompt_ids, seeded(step))
        matrix = reward_matrix(functions, [PROMPTS[i] for i in prompt_ids], tokens.tolist())
        means.append(matrix.nanmean(0))
        advantages = marble_opt.group_advantages(matrix.T, prompt_ids)
        with torch.no_grad():
            old = log_probability(policy(prompt_ids, tokens), tokens)
        for _ in range(inner):
            logits = policy(prompt_ids, tokens)
            loss = marble_opt.losses.clipped_policy_gradient(
                logits, log_probability(logits, tokens), old, advantages, clip_range=CLIP
            )
            optimizer.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    return policy, optimizer, means


def main() -> None:
    """Train and print the mean scores at the start and at the end."""
    _, _, means = train()
    for name, first, last in zip(REWARDS, means[0].tolist(), means[-1].tolist(), strict=True):
        print(f"{name:<8} {first:>6.2f} -> {last:>6.2f}")


if __name__ == "__main__":
    main()
