"""pinhole's networks, as ordinary diffusers and transformers classes."""

from diffusers import DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import tokens

TEXT_WIDTH = 128

# v-prediction (Salimans & Ho 2022): the same DDPM objective up to a weight of each noise level, and steadier at few steps.
SCHEDULE = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                prediction_type="v_prediction", clip_sample=False, steps_offset=1, timestep_spacing="leading")


def unet():
    """32x32x4 latents at 128x128. The outermost level is convolutions alone; words enter from 16x16 cells inwards."""
    return UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, block_out_channels=(32, 64, 112, 128), layers_per_block=1,
        norm_num_groups=8, cross_attention_dim=TEXT_WIDTH, attention_head_dim=4,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",))


def text_encoder():
    vocab, _ = tokens.vocabulary()
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, projection_dim=TEXT_WIDTH,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=tokens.LENGTH, hidden_act="quick_gelu",
        bos_token_id=vocab[tokens.START], eos_token_id=vocab[tokens.END], pad_token_id=vocab[tokens.END]))


def noise_schedule():
    return DDPMScheduler(**SCHEDULE)
