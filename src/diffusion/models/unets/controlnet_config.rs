//! A ControlNet's `config.json` as diffusers 0.42 writes it (`ControlNetModel.__init__`): that of the half of a U-Net, and what
//! the picture needs.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Mid, UNet2DConditionConfig};
use crate::diffusion::models::{Error, Result, require};

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Raw {
    conditioning_channels: usize,
    controlnet_conditioning_channel_order: String,
    conditioning_embedding_out_channels: Vec<usize>,
    global_pool_conditions: bool,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            conditioning_channels: 3,
            controlnet_conditioning_channel_order: "rgb".to_owned(),
            conditioning_embedding_out_channels: vec![16, 32, 96, 256],
            global_pool_conditions: false,
        }
    }
}

/// A configuration that [`super::ControlNetModel`] can honour.
#[derive(Clone, Debug)]
pub struct ControlNetConfig {
    pub(super) unet: UNet2DConditionConfig,
    pub(super) conditioning_channels: usize,
    pub(super) embedding_channels: Vec<usize>,
    pub(super) is_bgr: bool,
    pub(super) pools: bool,
}

impl ControlNetConfig {
    /// Reads config.json.
    ///
    /// # Errors
    /// A key whose value this network cannot honour, with what it supports.
    pub fn parse(json: &Value) -> Result<Self> {
        let unreadable =
            |value: String| Error::Unsupported { key: "controlnet", value, supported: "ControlNetModel's keys" };
        let raw = Raw::deserialize(json).map_err(|error| unreadable(error.to_string()))?;
        let given = json.as_object().cloned().ok_or_else(|| unreadable("no object".to_owned()))?;
        let unet = UNet2DConditionConfig::parse(Value::Object(as_unet(given)))?;
        require(unet.mid != Mid::None, "mid_block_type", Value::Null, "UNetMidBlock2DCrossAttn, UNetMidBlock2D")?;
        let order = raw.controlnet_conditioning_channel_order;
        let key = "controlnet_conditioning_channel_order";
        require(matches!(order.as_str(), "rgb" | "bgr"), key, &order, "rgb, bgr")?;
        require(raw.conditioning_channels == 3, "conditioning_channels", raw.conditioning_channels, "3: RGB pictures")?;
        let embedding_channels = raw.conditioning_embedding_out_channels;
        let (key, supported) = ("conditioning_embedding_out_channels", "1 to 8 numbers of channels above 0");
        let is_some = (1..=8).contains(&embedding_channels.len()) && !embedding_channels.contains(&0);
        require(is_some, key, &embedding_channels, supported)?;
        Ok(Self {
            unet,
            conditioning_channels: raw.conditioning_channels,
            embedding_channels,
            is_bgr: order == "bgr",
            pools: raw.global_pool_conditions,
        })
    }

    /// Whether only the means of what it says are added, to the rows of the prompt alone (`global_pool_conditions`).
    pub fn pools(&self) -> bool {
        self.pools
    }

    /// Picture pixels a latent pixel, each way.
    pub fn factor(&self) -> usize {
        1 << (self.embedding_channels.len() - 1)
    }

    /// Why it cannot control this U-Net, of whose latents a pixel is `factor` of the picture's each way; `None` where it can.
    pub fn misfit(&self, unet: &UNet2DConditionConfig, latent_channels: usize, factor: usize) -> Option<String> {
        let channels =
            |config: &UNet2DConditionConfig| config.levels.iter().map(|level| level.channels).collect::<Vec<_>>();
        let layers =
            |config: &UNet2DConditionConfig| config.levels.iter().map(|level| level.layers).collect::<Vec<_>>();
        let differ = |key: &str, own: String, other: String| {
            (own != other).then(|| format!("its {key} is {own}, the model's {other}"))
        };
        let own = &self.unet;
        let each = [
            differ("cross_attention_dim", own.context_width().to_string(), unet.context_width().to_string()),
            differ("block_out_channels", format!("{:?}", channels(own)), format!("{:?}", channels(unet))),
            differ("layers_per_block", format!("{:?}", layers(own)), format!("{:?}", layers(unet))),
            differ("in_channels", own.in_channels.to_string(), latent_channels.to_string()),
            differ("picture's pixels a latent pixel", self.factor().to_string(), factor.to_string()),
            own.added.filter(|_| own.added != unet.added).map(|_| "it is told other sizes than the model".to_owned()),
            (unet.mid == Mid::None).then(|| "the model has no mid_block".to_owned()),
        ];
        let each: Vec<String> = each.into_iter().flatten().collect();
        (!each.is_empty()).then(|| each.join("; "))
    }
}

/// The half that goes up, which it has not, is one that fits; and `num_attention_heads`, which a U-Net's configuration must
/// not have, says here what `attention_head_dim` says there.
fn as_unet(mut config: Map<String, Value>) -> Map<String, Value> {
    if let Some(down) = config.get("down_block_types").and_then(Value::as_array) {
        let up = |name: &Value| Value::from(name.as_str().unwrap_or_default().replace("DownBlock", "UpBlock"));
        let up: Vec<Value> = down.iter().rev().map(up).collect();
        config.insert("up_block_types".to_owned(), up.into());
    }
    if let Some(heads) = config.remove("num_attention_heads").filter(|heads| !heads.is_null()) {
        config.insert("attention_head_dim".to_owned(), heads);
    }
    config
}
