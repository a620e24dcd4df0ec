//! From a tensor's name in a LoRA file to the network, the layer and the part that it is.
//!
//! The styles: kohya's `lora_unet_down_blocks_0_..._to_q.lora_down.weight` (`lora_te_`, `lora_te1_`, `lora_te2_` for text
//! encoders), with LyCORIS' parts (`hada_w1_a`, `lokr_w1`, ...); PEFT's `unet.down_blocks.0....to_q.lora_A.weight`;
//! diffusers' older `....to_q.lora.down.weight`, `....processor.to_q_lora.down.weight` and `....lora_linear_layer.down.weight`.

/// The network that a layer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoraTarget {
    /// `unet`.
    UNet,
    /// `text_encoder`: the first, or the only one.
    TextEncoder,
    /// `text_encoder_2`.
    TextEncoder2,
}

impl LoraTarget {
    /// diffusers' name of the component.
    pub fn component(self) -> &'static str {
        match self {
            Self::UNet => "unet",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
        }
    }
}

/// What a tensor is to its layer. The names are kohya's and LyCORIS'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoraPart {
    /// (rank, inputs, ...): `lora_down`, PEFT's `lora_A`.
    Down,
    /// (rank, rank, k, k): `lora_mid`, between a `Down` and an `Up` of one pixel (LoCon with Tucker's decomposition).
    Mid,
    /// (outputs, rank, ...): `lora_up`, PEFT's `lora_B`.
    Up,
    /// (outputs,): the bias of PEFT's `lora_B`.
    UpBias,
    /// One number; what is added is times alpha / rank.
    Alpha,
    /// LoHa: (outputs, rank), or (rank, outputs) with `HadaT1`.
    HadaW1A,
    /// LoHa: (rank, inputs k k), or (rank, inputs) with `HadaT1`.
    HadaW1B,
    /// LoHa, as `HadaW1A`.
    HadaW2A,
    /// LoHa, as `HadaW1B`.
    HadaW2B,
    /// LoHa: (rank, rank, k, k).
    HadaT1,
    /// LoHa: (rank, rank, k, k).
    HadaT2,
    /// LoKr: (a, c), where the layer has a b outputs and c d inputs.
    LokrW1,
    /// LoKr: (a, rank), instead of `LokrW1`.
    LokrW1A,
    /// LoKr: (rank, c).
    LokrW1B,
    /// LoKr: (b, d, k, k).
    LokrW2,
    /// LoKr: (b, rank), or (rank, b) with `LokrT2`, instead of `LokrW2`.
    LokrW2A,
    /// LoKr: (rank, d k k), or (rank, d) with `LokrT2`.
    LokrW2B,
    /// LoKr: (rank, rank, k, k).
    LokrT2,
}

const ENDINGS: [(&str, LoraPart); 23] = [
    (".lora_down.weight", LoraPart::Down),
    (".lora_mid.weight", LoraPart::Mid),
    (".lora_up.weight", LoraPart::Up),
    (".lora.down.weight", LoraPart::Down),
    (".lora.up.weight", LoraPart::Up),
    (".lora_linear_layer.down.weight", LoraPart::Down),
    (".lora_linear_layer.up.weight", LoraPart::Up),
    (".lora_A.weight", LoraPart::Down),
    (".lora_B.weight", LoraPart::Up),
    (".lora_B.bias", LoraPart::UpBias),
    (".alpha", LoraPart::Alpha),
    (".hada_w1_a", LoraPart::HadaW1A),
    (".hada_w1_b", LoraPart::HadaW1B),
    (".hada_w2_a", LoraPart::HadaW2A),
    (".hada_w2_b", LoraPart::HadaW2B),
    (".hada_t1", LoraPart::HadaT1),
    (".hada_t2", LoraPart::HadaT2),
    (".lokr_w1", LoraPart::LokrW1),
    (".lokr_w1_a", LoraPart::LokrW1A),
    (".lokr_w1_b", LoraPart::LokrW1B),
    (".lokr_w2", LoraPart::LokrW2),
    (".lokr_w2_a", LoraPart::LokrW2A),
    (".lokr_w2_b", LoraPart::LokrW2B),
];
/// In diffusers' attention processors the projection's name ran into `lora`.
const OLD_ENDINGS: [(&str, LoraPart); 2] = [("_lora.down.weight", LoraPart::Down), ("_lora.up.weight", LoraPart::Up)];
const BEGINNINGS: [(&str, LoraTarget); 8] = [
    ("lora_unet_", LoraTarget::UNet),
    ("lora_te_", LoraTarget::TextEncoder),
    ("lora_te1_", LoraTarget::TextEncoder),
    ("lora_te2_", LoraTarget::TextEncoder2),
    ("unet.", LoraTarget::UNet),
    ("diffusion_model.", LoraTarget::UNet),
    ("text_encoder.", LoraTarget::TextEncoder),
    ("text_encoder_2.", LoraTarget::TextEncoder2),
];

/// A tensor's name, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// Of a layer.
    Part {
        target: LoraTarget,
        /// The layer's name with `_` for `.`, as kohya writes it: names of one network stay different.
        layer: String,
        part: LoraPart,
    },
    /// A textual inversion embedding that came along (`bundle_emb.`).
    Embedding,
}

/// Reads a tensor's name.
///
/// # Errors
/// A name that says something else, as a sentence.
pub(super) fn parse(name: &str) -> Result<Key, String> {
    if name.starts_with("bundle_emb.") {
        return Ok(Key::Embedding);
    }
    if [".dora_scale", ".lora_magnitude_vector"].iter().any(|mark| name.contains(mark)) {
        return Err(
            "is of a DoRA, which scales the model's own weights; LoRA, LoCon, LoHa and LoKr are supported".to_owned()
        );
    }
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let beginning = BEGINNINGS.iter().find(|(beginning, _)| name.starts_with(beginning));
    // Attention processors of old were of the UNet, and did not say so.
    let (rest, target) =
        beginning.map_or((name, LoraTarget::UNet), |(beginning, target)| (&name[beginning.len()..], *target));
    let rest = rest.strip_prefix("base_model.model.").unwrap_or(rest);
    let rest = without_adapter_name(&rest.replace(".processor.", "."));
    let whole = ENDINGS
        .iter()
        .chain(&[(".lokr_t2", LoraPart::LokrT2)])
        .find_map(|(ending, part)| Some((rest.strip_suffix(ending)?.to_owned(), *part)));
    let old =
        || OLD_ENDINGS.iter().find_map(|(ending, part)| Some((projection(rest.strip_suffix(ending)?, target)?, *part)));
    let Some((layer, part)) = whole.or_else(old) else {
        return Err("is of no known kind of LoRA; LoRA, LoCon, LoHa and LoKr are supported, in the names of kohya, LyCORIS, PEFT \
             and diffusers"
            .to_owned());
    };
    Ok(Key::Part { target, layer: flat(&layer), part })
}

/// A layer's name as kohya writes it.
pub(super) fn flat(layer: &str) -> String {
    layer.replace('.', "_")
}

/// PEFT's own dictionaries have the adapter's name within: `lora_A.default.weight`.
fn without_adapter_name(name: &str) -> String {
    for factor in [".lora_A.", ".lora_B."] {
        if let Some((layer, rest)) = name.rsplit_once(factor)
            && let Some((_, kind)) = rest.split_once('.').filter(|(_, kind)| !kind.contains('.'))
        {
            return format!("{layer}{factor}{kind}");
        }
    }
    name.to_owned()
}

/// The layer that an attention processor's projection was for.
fn projection(name: &str, target: LoraTarget) -> Option<String> {
    let (attention, projection) = name.rsplit_once('.')?;
    let projection = match (target, projection) {
        (LoraTarget::UNet, "to_q" | "to_k" | "to_v") => projection,
        (LoraTarget::UNet, "to_out") => "to_out.0",
        (_, "to_q") => "q_proj",
        (_, "to_k") => "k_proj",
        (_, "to_v") => "v_proj",
        (_, "to_out") => "out_proj",
        _ => return None,
    };
    Some(format!("{attention}.{projection}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_layer_in_every_style() {
        let layer = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
        for name in [
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.default.weight",
            "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight",
            "diffusion_model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
        ] {
            let wanted = Key::Part { target: LoraTarget::UNet, layer: layer.to_owned(), part: LoraPart::Down };
            assert_eq!(parse(name), Ok(wanted), "{name}");
        }
    }

    #[test]
    fn parts_and_networks() {
        let part = |name: &str| match parse(name) {
            Ok(Key::Part { target, layer, part }) => (target, layer, part),
            other => panic!("{name}: {other:?}"),
        };
        let layer = "text_model_encoder_layers_0_self_attn_out_proj".to_owned();
        for name in [
            "lora_te2_text_model_encoder_layers_0_self_attn_out_proj.lora_up.weight",
            "text_encoder_2.text_model.encoder.layers.0.self_attn.out_proj.lora_linear_layer.up.weight",
            "text_encoder_2.text_model.encoder.layers.0.self_attn.to_out_lora.up.weight",
        ] {
            assert_eq!(part(name), (LoraTarget::TextEncoder2, layer.clone(), LoraPart::Up), "{name}");
        }
        assert_eq!(part("lora_unet_x.lokr_w2_a").2, LoraPart::LokrW2A);
        assert_eq!(part("lora_unet_x.lokr_t2").2, LoraPart::LokrT2);
        assert_eq!(part("lora_te_x.hada_w1_b"), (LoraTarget::TextEncoder, "x".to_owned(), LoraPart::HadaW1B));
        assert_eq!(part("unet.x.to_out_lora.up.weight").1, "x_to_out_0");
        assert_eq!(parse("bundle_emb.a.string_to_param.*"), Ok(Key::Embedding));
        assert!(parse("lora_unet_x.dora_scale").unwrap_err().contains("DoRA"));
        for odd in
            ["model.diffusion_model.out.2.weight", "lora_unet_x.diff", "", "x_lora.down.weight", "a.b_lora.up.weight"]
        {
            assert!(parse(odd).unwrap_err().contains("no known kind"), "{odd}");
        }
    }
}
