"""HPS v2.1: OpenCLIP weights under transformers' names give OpenCLIP's scores."""

from collections import OrderedDict
from pathlib import Path

import pytest
import tiny_clip
import torch
from PIL import Image
from tiny_clip import CONTEXT, PROMPTS, SIZE, WIDTH
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoTokenizer

from rewards.clip_model import ImageProcessor
from rewards.hps import letterbox, plain
from rewards.open_clip_weights import convert
from rewards.pil_images import pil_images
from rewards.registry import RewardSettings, build

NOTHING = [{} for _ in PROMPTS]


class Block(nn.Module):
    """A block with OpenCLIP's names."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        layers = [("c_fc", nn.Linear(width, hidden)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(hidden, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, hidden) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 20, 4, 4, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(20))
        self.positional_embedding = nn.Parameter(torch.empty(17, 20))
        self.ln_pre, self.ln_post = nn.LayerNorm(20), nn.LayerNorm(20)
        self.transformer = Tower(20, 28)
        self.proj = nn.Parameter(torch.empty(20, WIDTH))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """OpenCLIP's ViT model from its description, without transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = Visual()
        self.token_embedding = nn.Embedding(514, 16)
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT, 16))
        self.transformer = Tower(16, 24)
        self.ln_final = nn.LayerNorm(16)
        self.text_projection = nn.Parameter(torch.empty(16, WIDTH))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        for weight in self.parameters():
            if weight.ndim:
                nn.init.normal_(weight, std=0.3)

    def encode_text(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.positional_embedding
        mask = torch.full((CONTEXT, CONTEXT), -torch.inf, dtype=x.dtype).triu(1)
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration, a processor, and weights in OpenCLIP's form; no weights of transformers."""
    folder = tmp_path_factory.mktemp("hps")
    tiny_clip.config().save_pretrained(folder)
    tiny_clip.save_processor(folder)
    torch.manual_seed(1)
    torch.save({"state_dict": OpenClip().state_dict()}, folder / "hps.pt")
    return folder


def scores(folder: Path, images: Tensor, **settings: object) -> Tensor:
    options = {"weights": str(folder / "hps.pt"), "processor": str(folder)}
    return build("hpsv2", RewardSettings(options=options, **settings))(images, PROMPTS, NOTHING)


@pytest.mark.parametrize(("height", "width"), [(24, 24), (16, 16), (24, 17), (13, 32)])
def test_scores_equal_open_clip_in_fp64(folder: Path, height: int, width: int) -> None:
    images = tiny_clip.images(height=height, width=width)
    model = OpenClip()
    model.load_state_dict(torch.load(folder / "hps.pt")["state_dict"])
    model = model.double().eval()
    squares = [letterbox(image, SIZE) for image in pil_images(images)]
    pixels = ImageProcessor.from_pretrained(folder)(images=squares, return_tensors="pt")["pixel_values"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # OpenCLIP pads with zeros.
    tokens = torch.zeros(len(PROMPTS), CONTEXT, dtype=torch.long)
    for row, prompt in zip(tokens, PROMPTS, strict=True):
        ids = tokenizer(prompt, truncation=True)["input_ids"]
        row[: len(ids)] = torch.tensor(ids)
    with torch.no_grad():
        embeddings = normalize(model.visual(pixels.double()), dim=-1), normalize(model.encode_text(tokens), dim=-1)
    expected = (embeddings[0] * embeddings[1]).sum(-1)
    assert expected.std() > 0.01
    torch.testing.assert_close(scores(folder, images).double(), expected, rtol=0, atol=1e-6)


def test_batches_and_checkpoints_without_the_outer_dictionary_give_the_same(folder: Path, tmp_path: Path) -> None:
    images = tiny_clip.images()
    expected = scores(folder, images)
    torch.testing.assert_close(scores(folder, images, batch_size=2), expected, rtol=0, atol=1e-6)
    state = torch.load(folder / "hps.pt")["state_dict"]
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, folder / "bare.pt")
    options = {"weights": str(folder / "bare.pt"), "processor": str(folder)}
    assert torch.equal(build("hpsv2", RewardSettings(options=options))(images, PROMPTS, NOTHING), expected)


def test_weights_stored_in_half_precision_compute_in_the_dtype_of_the_settings(folder: Path) -> None:
    images, state = tiny_clip.images(), torch.load(folder / "hps.pt")["state_dict"]
    results = []
    for name, dtype in (("half.pt", torch.float16), ("rounded.pt", torch.float32)):
        torch.save({"state_dict": {key: tensor.half().to(dtype) for key, tensor in state.items()}}, folder / name)
        options = {"weights": str(folder / name), "processor": str(folder)}
        results.append(build("hpsv2", RewardSettings(options=options))(images, PROMPTS, NOTHING))
    assert torch.equal(*results)


def test_the_logit_scale_does_not_enter(folder: Path) -> None:
    assert scores(folder, tiny_clip.images()).abs().max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("ln_final.bias"), "missing_keys text_model.final_layer_norm.bias"),
        (lambda state: state.update({"visual.proj": torch.ones(20, 7)}), "mismatched_keys .*visual_projection"),
        (lambda state: state.update({"visual.head.weight": torch.ones(1)}), "'visual.head.weight' is not a tensor"),
        (
            lambda state: state.update({"transformer.resblocks.2.ln_1.bias": torch.ones(16)}),
            "unexpected_keys text_model.encoder.layers.2.layer_norm1.bias",
        ),
    ],
)
def test_weights_of_another_model_are_refused(folder: Path, change: object, message: str) -> None:
    state = dict(torch.load(folder / "hps.pt")["state_dict"])
    change(state)
    torch.save({"state_dict": state}, folder / "other.pt")
    options = {"weights": str(folder / "other.pt"), "processor": str(folder)}
    with pytest.raises(ValueError, match=message):
        build("hpsv2", RewardSettings(options=options))


def test_a_letterbox_keeps_the_picture_whole_and_central() -> None:
    square = letterbox(Image.new("RGB", (40, 17), "white"), 20)  # 20 x 8 of it are picture: rows 6 to 13
    rows = torch.tensor(list(square.convert("L").tobytes())).view(20, 20).float().mean(1)
    assert square.size == (20, 20)
    assert (rows > 0).nonzero().flatten().tolist() == list(range(6, 14))


def test_typographic_quotes_and_entities_are_read_as_open_clip_reads_them() -> None:
    assert plain("an astronaut’s “NASA” &amp; &amp;lt;glove&amp;gt; – ünï") == 'an astronaut\'s "NASA" & <glove> – ünï'


def test_the_real_open_clip_agrees() -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(2)
    text = {"context_length": CONTEXT, "vocab_size": 514, "width": 16, "heads": 2, "layers": 2, "mlp_ratio": 1.5}
    vision = {"image_size": SIZE, "patch_size": 4, "width": 20, "head_width": 10, "layers": 2, "mlp_ratio": 1.4}
    model = open_clip.CLIP(embed_dim=WIDTH, vision_cfg=vision, text_cfg=text).eval()
    for weight in model.parameters():
        if weight.ndim:
            nn.init.normal_(weight, std=0.3)
    converted = tiny_clip.CLIPModel(tiny_clip.config()).eval()
    converted.load_state_dict(convert(model.state_dict()))
    pixels, tokens = torch.randn(3, 3, SIZE, SIZE), torch.randint(0, 513, (3, CONTEXT))
    tokens[:, 9] = 513
    with torch.no_grad():
        result = converted(pixel_values=pixels, input_ids=tokens)
        torch.testing.assert_close(result.image_embeds, model.encode_image(pixels, normalize=True))
        torch.testing.assert_close(result.text_embeds, model.encode_text(tokens, normalize=True))
