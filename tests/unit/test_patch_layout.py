"""Vision encoders: where their patches lie among their tokens, and pictures padded to a square."""

import pytest
import torch
from PIL import Image
from tiny_models import PICTURE, TEXT_SIZES, clip_processor, new_vision, save_llm, save_vision
from transformers import (
    AutoProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    LlavaForConditionalGeneration,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from tgalign.compose import compose
from tgalign.errors import UserError
from tgalign.patch_layout import PatchLayout, patch_layout, square_pad_processor

SQUARE = {"height": PICTURE, "width": PICTURE}
SIGLIP = SiglipImageProcessor(size=SQUARE)
DINO = BitImageProcessor(size={"shortest_edge": PICTURE}, crop_size=SQUARE)
# model_type, options, image processor, tokens before the patches, image tokens of four patches.
ENCODERS = [
    ("clip_vision_model", {}, clip_processor(), 1, 4),
    ("siglip_vision_model", {}, SIGLIP, 0, 4),
    ("dinov2", {"mlp_ratio": 2, "image_size": 3 * PICTURE}, DINO, 1, 4),  # trained on larger ones
    ("dinov2_with_registers", {"mlp_ratio": 2, "num_register_tokens": 3}, DINO, 4, 7),
    ("dinov3_vit", {"num_register_tokens": 2}, DINO, 3, 6),
    ("vit", {}, clip_processor(), 1, 4),
]


@pytest.fixture(scope="module")
def llm_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("llm")
    save_llm(path)
    return path


@pytest.mark.parametrize(
    ("kind", "options", "processor", "extra", "tokens"), ENCODERS, ids=[it[0] for it in ENCODERS]
)
def test_encoders_compose(kind, options, processor, extra, tokens, llm_path, tmp_path):
    tower = save_vision(tmp_path / "vision", kind, processor, **options)
    found = patch_layout(tower, processor, -2)
    assert found == PatchLayout(PICTURE, PICTURE // 2, extra, -2)
    out = compose(llm_path, tmp_path / "vision", tmp_path / "out")
    model = LlavaForConditionalGeneration.from_pretrained(out).eval()
    llava_processor = AutoProcessor.from_pretrained(out)
    assert model.config.image_seq_length == tokens
    assert model.config.vision_feature_select_strategy == ("default" if extra else "full")
    pictures = [Image.new("RGB", (40 + i, 90 - i), (50 * i, 9, 200)) for i in range(3)]
    texts = ["<image>\nw1", "w2 <image>", "<image>"]
    batch = llava_processor(text=texts, images=pictures, padding=True, return_tensors="pt")
    shown_B = (batch["input_ids"] == model.config.image_token_id).sum(dim=1)
    assert shown_B.tolist() == [tokens] * 3
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()
        # The features are the encoder's own, at that layer, without its first extra token.
        pixels = batch["pixel_values"]
        states_BTD = tower(pixels, output_hidden_states=True).hidden_states[-2]
        features = model.model.multi_modal_projector(states_BTD[:, 1:] if extra else states_BTD)
        ours = torch.stack(list(model.get_image_features(pixels).pooler_output))
    torch.testing.assert_close(ours, features)


def test_a_whole_siglip_gives_its_vision_part(llm_path, tmp_path):
    torch.manual_seed(0)
    tower = new_vision("siglip_vision_model").config.to_dict()
    siglip = SiglipModel(SiglipConfig(vision_config=tower, text_config=TEXT_SIZES))
    siglip.save_pretrained(tmp_path / "siglip")
    SIGLIP.save_pretrained(tmp_path / "siglip")
    out = compose(llm_path, tmp_path / "siglip", tmp_path / "out", vision_feature_layer=-1)
    model = LlavaForConditionalGeneration.from_pretrained(out)
    assert model.config.vision_feature_layer == -1
    theirs, ours = siglip.vision_model.state_dict(), model.model.vision_tower.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("kind", "options", "fault"),
    [
        ("siglip2_vision_model", {"num_patches": 4}, "variable resolution.*model_type siglip"),
        ("vit_mae", {}, "does not give one token per patch"),  # drops and shuffles patches
    ],
)
def test_encoders_that_stock_llava_cannot_read_are_refused(
    kind, options, fault, llm_path, tmp_path
):
    save_vision(tmp_path / "vision", kind, **options)
    with pytest.raises(UserError, match=fault):
        compose(llm_path, tmp_path / "vision", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encoder_without_patches_is_refused(llm_path, tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    ResNetModel(config).save_pretrained(tmp_path / "vision")
    clip_processor().save_pretrained(tmp_path / "vision")
    with pytest.raises(UserError, match="the 'resnet' encoder has no square patches"):
        compose(llm_path, tmp_path / "vision", tmp_path / "out")


def test_another_size_than_the_encoder_s_is_refused():
    small = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    with pytest.raises(UserError, match=r"cannot read 16×16 pixels.*Input image size"):
        patch_layout(new_vision(), small, -2)


def test_pictures_of_any_shape_are_refused_without_padding(llm_path, tmp_path):
    loose = CLIPImageProcessor(size={"shortest_edge": PICTURE}, do_center_crop=False)
    save_vision(tmp_path / "vision", image_processor=loose)
    with pytest.raises(UserError, match="expected squares of one size"):
        compose(llm_path, tmp_path / "vision", tmp_path / "out", square_pad=False)
    compose(llm_path, tmp_path / "vision", tmp_path / "out")  # padded, they are squares


@pytest.mark.parametrize("layer", [0, 1, -5])
def test_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(UserError, match=f"vision_feature_layer is {layer}; expected -1"):
        patch_layout(new_vision(), clip_processor(), layer)


class Columns(torch.nn.Module):
    """A CLIP whose patches come column by column, as stock LLaVA would never know."""

    def __init__(self):
        super().__init__()
        self.inner = new_vision()
        self.config, self.dtype = self.inner.config, self.inner.dtype

    def forward(self, pixels, **options):
        return self.inner(pixels.transpose(2, 3), **options)


def test_patches_in_another_order_are_refused():
    with pytest.raises(UserError, match="row by row"):
        patch_layout(Columns(), clip_processor(), -2)


@pytest.mark.parametrize("own", [clip_processor(), SIGLIP, DINO], ids=["clip", "siglip", "dino"])
@pytest.mark.parametrize(("width", "height"), [(60, 30), (30, 60)])
def test_pictures_are_padded_to_a_square_of_the_mean_colour(own, width, height):
    padded = square_pad_processor(own)
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    pixels = padded(picture, return_tensors="pt")["pixel_values"][0]
    white = own(Image.new("RGB", (9, 9), (255, 255, 255)), return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == white.shape == (3, PICTURE, PICTURE)
    if width < height:
        pixels = pixels.transpose(1, 2)
    quarter = PICTURE // 4
    middle = pixels[:, quarter + 2 : -quarter - 2]
    torch.testing.assert_close(middle, white[:, quarter + 2 : -quarter - 2])
    for edge in (pixels[:, : quarter - 2], pixels[:, -quarter + 2 :]):
        assert edge.abs().max() < 0.03  # the mean, up to a 255th


def test_without_padding_the_encoder_s_own_processor_stays(llm_path, tmp_path):
    save_vision(tmp_path / "vision")
    out = compose(llm_path, tmp_path / "vision", tmp_path / "out", square_pad=False)
    wide = Image.new("RGB", (90, 30))
    wide.paste((255, 0, 0), (0, 0, 30, 30))
    ours = AutoProcessor.from_pretrained(out).image_processor(wide, return_tensors="pt")
    theirs = clip_processor()(wide, return_tensors="pt")
    assert ours["pixel_values"].equal(theirs["pixel_values"])
