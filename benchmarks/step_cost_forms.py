"""Our forms and the weighted sums of benchmarks/step_cost.py, and the models that they are measured on."""

from collections.abc import Callable

import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig
from torch import Tensor

import marble_opt

SUM = "weighted sum"
MIXED = "mixed step"

MODELS: dict[str, dict] = {
    "tiny": {
        "config": {"sample_size": 24, "patch_size": 3, "in_channels": 3, "out_channels": 3, "num_layers": 4},
        "width": 128,
        "head": 32,
        "text": (10, 128, 128),
        "batch": 12,
        "rank": 16,
        "rewards": (1, 2, 5, 10, 20),
    },
    "mid": {
        "config": {"sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 8},
        "width": 384,
        "head": 64,
        "text": (16, 384, 384),
        "batch": 6,
        "rank": 8,
        "rewards": (1, 2, 5, 10, 20),
    },
    "sd35": {
        "config": {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
        },
        "width": 1536,
        "head": 64,
        "text": (333, 4096, 2048),
        "batch": 9,
        "rank": 32,
        "rewards": (1, 2, 5, 10, 20),
        "latent": 64,
    },
}
TARGETS = [
    f"attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
]


class Setting:
    """A transformer with LoRA adapters and a fixed batch of rollouts."""

    def __init__(self, name: str, device: str, checkpointing: bool) -> None:
        spec = MODELS[name]
        torch.manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        sequence, text_width, pooled = spec["text"]
        self.model = SD3Transformer2DModel(
            attention_head_dim=spec["head"],
            num_attention_heads=spec["width"] // spec["head"],
            joint_attention_dim=text_width,
            caption_projection_dim=spec["width"],
            pooled_projection_dim=pooled,
            qk_norm="rms_norm",
            **{"pos_embed_max_size": spec["config"]["sample_size"] // spec["config"]["patch_size"], **spec["config"]},
        ).to(device, dtype)
        self.model.requires_grad_(False)
        lora = LoraConfig(r=spec["rank"], lora_alpha=2 * spec["rank"], target_modules=TARGETS)
        self.model.add_adapter(lora)
        if checkpointing:
            self.model.enable_gradient_checkpointing()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in self.parameters:
            # Trained in fp32; away from the start, where LoRA's B is zero and half of the gradients vanish.
            parameter.data = parameter.data.float()
            parameter.data += 0.01 * torch.randn_like(parameter.data)
        size, channels = spec.get("latent", spec["config"]["sample_size"]), spec["config"]["in_channels"]
        self.batch = spec["batch"]
        shape = (self.batch, channels, size, size)
        self.x_0, self.noise = torch.randn(shape, device=device), torch.randn(shape, device=device)
        self.text = torch.randn(self.batch, sequence, text_width, device=device, dtype=dtype)
        self.pooled = torch.randn(self.batch, pooled, device=device, dtype=dtype)
        self.device, self.dtype = device, dtype

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """One forward of the model."""
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            out = self.model(x.to(self.dtype), self.text, self.pooled, t * 1000, return_dict=False)[0]
        return out.float()

    def forwards(self, t: Tensor, reference: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x_t, the current prediction, and those of the old and (if wanted) of the reference policy."""
        time_ = t.view(-1, 1, 1, 1)
        x_t = (1 - time_) * self.x_0 + time_ * self.noise
        with torch.no_grad():
            old = self.velocity(x_t, t) + 1e-3
            anchor = None
            if reference:
                self.model.disable_adapters()
                anchor = self.velocity(x_t, t)
                self.model.enable_adapters()
        return x_t, self.velocity(x_t, t), old, anchor


class Form:
    """One way to make an optimizer step; ``run`` makes one of ``micro_steps`` micro-steps.

    Args:
        setting: model and batch.
        rewards: K.
        options: of :class:`marble_opt.Marble`; ``None``: plain sums and the base optimizer alone.
        anchor: of DiffusionNFT; ``"matching"`` is weighted matching, a loss of one term without shared parts.
        kl: whether there is a KL term.
        kl_every: for sums: take it, and the reference forward, on every n-th micro-step only.
        micro_steps: per optimizer step; the slow forms are measured on fewer.
    """

    def __init__(
        self,
        setting: Setting,
        rewards: int,
        options: dict | None,
        anchor: str = "shared",
        kl: bool = True,
        kl_every: int = 1,
        micro_steps: int = 8,
    ) -> None:
        self.setting, self.kl, self.anchor, self.micro_steps, self.kl_every = setting, kl, anchor, micro_steps, kl_every
        self.base = torch.optim.AdamW(setting.parameters, lr=1e-6)
        self.marble = None
        if options is not None:
            names = [f"r{k}" for k in range(rewards)]
            self.marble = marble_opt.Marble(self.base, names, **options)
            # Rows are compared with ordinary gradients once; the warm-up does that, and repetitions are left out.
            self.marble.watch(setting.model, verify_every=None)
        self.advantages = torch.randn(rewards, setting.batch, device=setting.device)

    def close(self) -> None:
        """Take the hooks off the model, so that other forms do not pay for them."""
        if self.marble is not None:
            self.marble.unwatch()

    def run(self, micro_steps: int | None = None) -> None:
        """One optimizer step."""
        for micro_step in range(micro_steps or self.micro_steps):
            wants = micro_step % self.kl_every == 0 if self.marble is None else self.marble.wants_shared
            loss, kl = self.loss(self.kl and wants)
            if self.marble is not None:
                self.marble.backward(loss, shared=kl)
            else:
                parts = [loss.losses().sum(), loss.shared(), kl]
                torch.stack([part for part in parts if part is not None]).sum().backward()
        (self.marble or self.base).step()
        (self.marble or self.base).zero_grad()

    def loss(self, reference: bool) -> tuple[marble_opt.SeparableLoss, Tensor | None]:
        """One micro-step's loss and its KL term, if the reference policy is wanted."""
        setting = self.setting
        t = torch.linspace(0.1, 0.9, setting.batch, device=setting.device)
        x_t, prediction, old, anchor = setting.forwards(t, reference)
        kl = None if anchor is None else 1e-4 * (prediction - anchor).square().mean()
        if self.anchor == "matching":
            target = setting.noise - setting.x_0
            return marble_opt.losses.weighted_matching(prediction, target, self.advantages), kl
        loss = marble_opt.losses.diffusion_nft(
            prediction, old, x_t, setting.x_0, t, self.advantages, beta=0.1, anchor=self.anchor
        )
        return loss, kl


def forms(setting: Setting, rewards: int) -> dict[str, Callable[[], Form]]:
    """The forms by name; each is made when its turn comes."""
    make = lambda *args, **kwargs: lambda: Form(setting, rewards, *args, **kwargs)  # noqa: E731
    return {
        SUM: make(None),
        "weighted sum, KL every 8": make(None, kl_every=8),
        "weighted sum, no KL (matching)": make(None, anchor="matching", kl=False),
        "probe 1/8": make({"probe": 1 / 8, "micro_steps": 8}),
        MIXED: make({"refresh_every": 10**6}),
        "exact, shared anchor": make({}),
        "exact, paper's anchor": make({}, anchor="per_reward"),
        "exact, no KL (matching)": make({}, anchor="matching", kl=False),
        "exact, shared every 8": make({"shared_every": 8}),
        "K-loop": make({"route": "loop"}, micro_steps=2),
    }
