//! LoRAs that a request asks for: by their names, with scales; as a field, or in A1111's words within the prompt.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::request_faults::Faults;
use super::{Limits, PromptSyntax};

/// A LoRA that there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoraInfo {
    /// How requests call it: its file's name without the ending.
    pub name: String,
    /// Of its file.
    pub size_bytes: u64,
    /// The first 12 digits of the SHA-256 of its tensors' data (A1111's short hash, "AutoV3"); known once it was used.
    pub hash: Option<String>,
}

/// What a client asked of one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoraDraft {
    /// Which.
    pub name: Option<String>,
    /// What it adds to the U-Net is multiplied by this.
    pub scale: Option<f64>,
    /// What it adds to the text encoders is; `scale` when absent.
    pub text_encoder_scale: Option<f64>,
    /// The file must be of this hash.
    pub hash: Option<String>,
}

impl LoraDraft {
    /// The names of its fields on the wire.
    pub const FIELDS: [&'static str; 4] = ["name", "scale", "text_encoder_scale", "hash"];
}

/// A LoRA and how strongly it works.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Its file's name without the ending.
    pub name: String,
    /// What it adds to the U-Net is multiplied by this.
    pub scale: f64,
    /// What it adds to the text encoders is.
    pub text_encoder_scale: f64,
    /// The first 12 digits of the SHA-256 of its tensors' data; not known before the file was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
}

/// The largest scale either way.
const MAX_SCALE: f64 = 10.0;
/// So many names are told where one is unknown.
const NAMES_TOLD: usize = 20;

impl Faults {
    /// Those of the field, then those that the prompt names in A1111's syntax; and the prompt without them.
    pub(super) fn loras(
        &mut self,
        drafts: Vec<LoraDraft>,
        (prompt, syntax): (String, PromptSyntax),
        limits: &Limits,
    ) -> (Vec<Lora>, String) {
        let mut loras: Vec<Lora> = Vec::new();
        for (at, draft) in drafts.into_iter().enumerate() {
            let field = |name: &str| format!("loras[{at}].{name}");
            let Some(name) = draft.name else {
                self.add(&field("name"), Value::Null, "is required: which LoRA");
                continue;
            };
            let scale = self.real(&field("scale"), draft.scale, 1.0, -MAX_SCALE, MAX_SCALE);
            let te = self.real(&field("text_encoder_scale"), draft.text_encoder_scale, scale, -MAX_SCALE, MAX_SCALE);
            let is_hash =
                |hash: &String| hash.len() == 12 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if let Some(hash) = draft.hash.as_ref().filter(|hash| !is_hash(hash)) {
                self.add(&field("hash"), hash.as_str(), "must be 12 lower-case hexadecimal digits");
            }
            self.lora(
                &field("name"),
                Lora { name, scale, text_encoder_scale: te, hash: draft.hash },
                &mut loras,
                limits,
            );
        }
        let mut prompt = prompt;
        if syntax == PromptSyntax::A1111 {
            let (text, tags) = tags(&prompt);
            for tag in tags {
                match tag {
                    Ok(lora) => self.lora("prompt", lora, &mut loras, limits),
                    Err((tag, message)) => self.add("prompt", tag, message),
                }
            }
            prompt = text;
        }
        if loras.len() > limits.max_loras as usize {
            let message = format!("are {}; at most {} are allowed", loras.len(), limits.max_loras);
            self.add("loras", Value::Null, message);
        }
        (loras, prompt)
    }

    fn lora(&mut self, field: &str, lora: Lora, loras: &mut Vec<Lora>, limits: &Limits) {
        if !limits.loras.contains(&lora.name) {
            self.add(field, lora.name.as_str(), unknown(&limits.loras));
        } else if loras.iter().any(|known| known.name == lora.name) {
            self.add(field, lora.name.as_str(), "is given twice; add its scales up");
        }
        loras.push(lora);
    }
}

fn unknown(known: &[String]) -> String {
    if known.is_empty() {
        return "is no LoRA here: there are none (`models.loras` names a folder of them)".to_owned();
    }
    let names: Vec<String> = known.iter().take(NAMES_TOLD).map(|name| format!("`{name}`")).collect();
    let more = match known.len().saturating_sub(NAMES_TOLD) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("is no LoRA here; there are {}{more} (GET /v1/loras)", names.join(", "))
}

type Tag = Result<Lora, (String, String)>;

/// A1111's `<lora:NAME:SCALE>`, or `<lora:NAME:TEXT_ENCODER_SCALE:UNET_SCALE>` (also as `te=` and `unet=`), wherever it stands;
/// `lyco` says the same. Scales are 1 when absent. What else stands in such brackets is left as words.
fn tags(prompt: &str) -> (String, Vec<Tag>) {
    let (mut text, mut tags, mut rest) = (String::new(), Vec::new(), prompt);
    while let Some(open) = rest.find('<') {
        let inner = rest[open + 1..].split_once('>').map(|(inner, _)| inner);
        let named = inner.and_then(|inner| inner.split_once(':').map(|(kind, arguments)| (inner, kind, arguments)));
        match named {
            Some((inner, "lora" | "lyco", arguments)) => {
                text.push_str(&rest[..open]);
                tags.push(tag(arguments).map_err(|message| (format!("<{inner}>"), message)));
                rest = &rest[open + inner.len() + 2..];
            }
            Some((inner, "hypernet", _)) => {
                text.push_str(&rest[..open]);
                tags.push(Err((format!("<{inner}>"), "names a hypernetwork, which are not supported".to_owned())));
                rest = &rest[open + inner.len() + 2..];
            }
            _ => {
                text.push_str(&rest[..=open]);
                rest = &rest[open + 1..];
            }
        }
    }
    text.push_str(rest);
    (text, tags)
}

fn tag(arguments: &str) -> Result<Lora, String> {
    let mut parts = arguments.split(':');
    let name = parts.next().unwrap_or_default();
    if name.is_empty() {
        return Err("names no LoRA; write `<lora:NAME:SCALE>`".to_owned());
    }
    let (mut places, mut te, mut unet) = (0, None, None);
    for part in parts {
        let (place, number) = match part.split_once('=') {
            Some(("te", number)) => (0, number),
            Some(("unet", number)) => (1, number),
            Some((other, _)) => return Err(format!("has `{other}`, which is not supported; `te` and `unet` are")),
            None => {
                places += 1;
                (places - 1, part)
            }
        };
        let value = number.trim().parse::<f64>().ok().filter(|value| (-MAX_SCALE..=MAX_SCALE).contains(value));
        let value = value
            .ok_or_else(|| format!("has the scale `{number}`; scales are numbers from -{MAX_SCALE} to {MAX_SCALE}"))?;
        match place {
            0 => te = Some(value),
            1 => unet = Some(value),
            _ => return Err("has more than two scales".to_owned()),
        }
    }
    let text_encoder_scale = te.unwrap_or(1.0);
    Ok(Lora { name: name.to_owned(), scale: unet.unwrap_or(text_encoder_scale), text_encoder_scale, hash: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(prompt: &str) -> (String, Vec<(String, f64, f64)>) {
        let (text, tags) = tags(prompt);
        let told = |tag: Tag| tag.map(|lora| (lora.name, lora.scale, lora.text_encoder_scale)).expect("a tag");
        (text, tags.into_iter().map(told).collect())
    }

    fn named(name: &str, scale: f64, te: f64) -> (String, f64, f64) {
        (name.to_owned(), scale, te)
    }

    #[test]
    fn tags_are_taken_out_of_the_text() {
        assert_eq!(read("a house"), ("a house".to_owned(), vec![]));
        assert_eq!(read("a <lora:red:0.7>house"), ("a house".to_owned(), vec![named("red", 0.7, 0.7)]));
        assert_eq!(read("<lora:red>"), (String::new(), vec![named("red", 1.0, 1.0)]));
        assert_eq!(read("<lora:a b.c:0.5:-1><lyco:x:2>").1, [named("a b.c", -1.0, 0.5), named("x", 2.0, 2.0)]);
        assert_eq!(read("<lora:red:te=0.5:unet=0.25>").1, [named("red", 0.25, 0.5)]);
        assert_eq!(read("<lora:red:unet=0>").1, [named("red", 0.0, 1.0)]);
        for words in ["<cat-toy> a<b", "< lora:x:1>", "<foo:bar>", "<lora", "<lora:", "a > b < c", "<<>>"] {
            assert_eq!(read(words), (words.to_owned(), vec![]));
        }
        assert_eq!(read("<<lora:x:1>"), ("<".to_owned(), vec![named("x", 1.0, 1.0)]));
    }

    #[test]
    fn what_a_tag_cannot_say_is_told() {
        for (prompt, part) in [
            ("<lora::1>", "names no LoRA"),
            ("<lora:x:much>", "has the scale `much`"),
            ("<lora:x:NaN>", "has the scale `NaN`"),
            ("<lora:x:11>", "from -10 to 10"),
            ("<lora:x:1:1:1>", "more than two"),
            ("<lora:x:1:dyn=4>", "has `dyn`"),
            ("<hypernet:x:1>", "hypernetwork"),
        ] {
            let (_, tags) = tags(prompt);
            let (tag, message) = tags[0].clone().expect_err("a fault");
            assert!(tag == prompt && message.contains(part), "{tag}: {message}");
        }
    }
}
