"""LAION's improved aesthetic predictor."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPModel

from .batches import score_in_batches
from .clip_model import Clip
from .clip_scores import CLIP_LARGE
from .interface import Metadata, Reward
from .options import options_of
from .registry import RewardSettings

# sac+logos+ava1-l14-linearMSE.pth of github.com/christophschuhmann/improved-aesthetic-predictor, on the hub.
HEAD = ("trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth")


def aesthetic(settings: RewardSettings) -> Reward:
    """LAION aesthetic predictor v2, sac+logos+ava1-l14-linearMSE: MLP(CLIP(image) / |CLIP(image)|).

    A regression of human ratings from 1 to 10; generated images score about 4.5 to 7 (SD3.5-M with guidance: 5.36).
    There is no paper: see github.com/christophschuhmann/improved-aesthetic-predictor, and LAION-5B (arXiv 2210.08402)
    for its use. The prompt is not read. The head has five linear layers without nonlinearities and computes in
    float32 whatever ``settings.dtype`` is.

    Options: ``model``, hub id or folder of OpenAI's CLIP ViT-L/14, ``processor``, by default the same, and ``head``, a
    .safetensors or .pth file, by default downloaded from the hub. The reward takes images [B, 3, H, W] in [0, 1] and
    returns [B]. ``ValueError`` for an image outside [0, 1], and, when built, for a head of other layers or another
    width.
    """
    options = options_of(settings, model=CLIP_LARGE, processor="", head="")
    clip = Clip(CLIPModel.from_pretrained(options["model"]), options["processor"] or options["model"], settings)
    head = load_head(options["head"] or hf_hub_download(*HEAD), clip.model.config.projection_dim).to(clip.device)

    def score(images: list[Image.Image], prompts: list[str]) -> Tensor:
        return head(clip.embed_images(images)).squeeze(-1)

    def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        return score_in_batches(score, images, prompts, settings.batch_size)

    return reward


def load_head(path: str | Path, width: int) -> nn.Sequential:
    """The predictor's MLP on embeddings [B, ``width``], to [B, 1]; read without unpickling code.

    Raises ``ValueError`` if the file holds other layers or another width.
    """
    path = Path(path)
    state: Mapping[str, Tensor]
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    sizes = (width, 1024, 128, 64, 16, 1)
    linear = [nn.Linear(i, o) for i, o in pairwise(sizes)]
    # The dropouts do nothing here; they keep the numbers of the layers.
    head = nn.Sequential(linear[0], nn.Dropout(), linear[1], nn.Dropout(), linear[2], nn.Dropout(), *linear[3:])
    try:
        head.load_state_dict({name.removeprefix("layers."): tensor for name, tensor in state.items()})
    except RuntimeError as error:
        raise ValueError(f"{path} is not an aesthetic head for embeddings of width {width}: {error}") from error
    return head.float().eval().requires_grad_(False)
