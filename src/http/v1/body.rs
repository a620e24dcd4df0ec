//! A body, JSON or a form, to a `RequestDraft`, field by field, so that every fault is told at once: unknown fields, fields
//! given twice, wrong types.

use std::fmt;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::Value;

use super::{form, picture};
use crate::domain::{
    ControlDraft, FieldError, HiresDraft, InputName, LoraDraft, RefinerDraft, RequestDraft, SizeConditioningDraft,
};
use crate::http::errors::{Problem, Result};
use crate::service::{GivenPicture, PictureSource};

const FIELDS: &[&str] = &[
    "model",
    "prompt",
    "negative_prompt",
    "prompt_syntax",
    "clip_skip",
    "loras",
    "width",
    "height",
    "size_conditioning",
    "init_image",
    "strength",
    "mask_image",
    "mask_blur",
    "invert_mask",
    "preserve_unmasked",
    "inpaint_area",
    "only_masked_padding",
    "controls",
    "hires",
    "refiner",
    "denoising_start",
    "denoising_end",
    "steps",
    "guidance_scale",
    "guidance_rescale",
    "guidance_start",
    "guidance_end",
    "sampler",
    "sigma_schedule",
    "eta",
    "seed",
    "noise",
    "num_images",
    "output",
    "priority",
    "start_within",
    "expires_in",
    "reuse",
    "metadata",
];

/// An object's members in order, twice-given ones included.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// What a body says, and the faults of what could not be read; the service adds those of the values.
#[derive(Debug)]
pub(in crate::http) struct Parsed {
    pub(in crate::http) draft: RequestDraft,
    pub(in crate::http) pictures: Vec<GivenPicture>,
    pub(in crate::http) faults: Vec<FieldError>,
}

/// Reads a body.
pub(in crate::http) async fn parse(
    headers: &HeaderMap,
    body: std::result::Result<Bytes, BytesRejection>,
    limit: usize,
) -> Result<Parsed> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let essence = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let is_form = essence == "multipart/form-data";
    if essence != "application/json" && !is_form {
        let detail = format!("Content-Type is `{kind}`; send application/json or multipart/form-data");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
    }
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body has more than {limit} bytes"),
        ),
        status => Problem::new(status, "bad_body", "the body could not be read"),
    })?;
    let mut reader = Reader::default();
    if is_form {
        form::read(kind, body, &mut reader).await?;
    } else {
        reader.object("the body", &body)?;
    }
    let Reader { draft, pictures, faults, .. } = reader;
    Ok(Parsed { draft, pictures, faults })
}

#[derive(Default)]
pub(super) struct Reader {
    draft: RequestDraft,
    pictures: Vec<GivenPicture>,
    seen: Vec<String>,
    faults: Vec<FieldError>,
}

impl Reader {
    /// The members of a JSON object.
    pub(super) fn object(&mut self, what: &str, bytes: &[u8]) -> Result<()> {
        let members: Members = serde_json::from_slice(bytes).map_err(|error| {
            Problem::new(StatusCode::BAD_REQUEST, "invalid_json", format!("{what} is no JSON object: {error}"))
        })?;
        for (name, value) in members.0 {
            self.member(&name, value);
        }
        Ok(())
    }

    fn is_first(&mut self, name: &str, value: &Value) -> bool {
        let is_first = self.seen.iter().all(|seen| seen != name);
        if is_first {
            self.seen.push(name.to_owned());
        } else {
            self.faults.push(FieldError::new(name, value.clone(), "is given twice"));
        }
        is_first
    }

    /// A picture's file.
    pub(super) fn file(&mut self, input: InputName, bytes: Bytes) {
        if self.is_first(&input.field(), &Value::Null) {
            self.pictures.push(GivenPicture { input, source: PictureSource::File(bytes) });
        }
    }

    /// One field and what stands there.
    pub(super) fn member(&mut self, name: &str, value: Value) {
        if !self.is_first(name, &value) {
            return;
        }
        // null means: not said.
        if value.is_null() && FIELDS.contains(&name) {
            return;
        }
        if let Some(input) = InputName::of_field(name) {
            return self.picture(input, value);
        }
        match name {
            "strength" => self.draft.image_inputs.strength = self.real(name, value),
            "mask_blur" => self.draft.image_inputs.mask_blur = self.real(name, value),
            "invert_mask" => self.draft.image_inputs.invert_mask = self.truth(name, value),
            "preserve_unmasked" => self.draft.image_inputs.preserve_unmasked = self.truth(name, value),
            "inpaint_area" => self.draft.image_inputs.inpaint_area = self.text(name, value),
            "only_masked_padding" => self.draft.image_inputs.only_masked_padding = self.integer(name, value),
            "model" => self.draft.model = self.text(name, value),
            "prompt" => self.draft.prompt = self.text(name, value),
            "negative_prompt" => self.draft.negative_prompt = self.text(name, value),
            "prompt_syntax" => self.draft.prompt_syntax = self.text(name, value),
            "clip_skip" => self.draft.clip_skip = self.integer(name, value),
            "width" => self.draft.width = self.integer(name, value),
            "height" => self.draft.height = self.integer(name, value),
            "steps" => self.draft.steps = self.integer(name, value),
            "guidance_scale" => self.draft.guidance_scale = self.real(name, value),
            "guidance_rescale" => self.draft.guidance_rescale = self.real(name, value),
            "guidance_start" => self.draft.guidance_start = self.real(name, value),
            "guidance_end" => self.draft.guidance_end = self.real(name, value),
            "denoising_start" => self.draft.denoising_start = self.real(name, value),
            "denoising_end" => self.draft.denoising_end = self.real(name, value),
            "sampler" => self.draft.sampler = self.text(name, value),
            "sigma_schedule" => self.draft.sigma_schedule = self.text(name, value),
            "eta" => self.draft.eta = self.real(name, value),
            "seed" => self.draft.seed = self.wide(name, value),
            "noise" => self.draft.noise = self.text(name, value),
            "num_images" => self.draft.num_images = self.integer(name, value),
            "priority" => self.draft.priority = self.text(name, value),
            "start_within" => self.draft.start_within = self.integer(name, value),
            "expires_in" => self.draft.expires_in = self.integer(name, value),
            "reuse" => self.draft.reuse = self.truth(name, value),
            "metadata" => match value {
                Value::Object(map) => self.draft.metadata = Some(map),
                other => self.wrong(name, other, "an object"),
            },
            "loras" => match value {
                Value::Array(loras) => loras.into_iter().enumerate().for_each(|(at, lora)| self.lora(at, lora)),
                other => self.wrong(name, other, "a list of objects with `name` and `scale`"),
            },
            "size_conditioning" => match value {
                Value::Object(map) => map.into_iter().for_each(|(name, value)| self.size_conditioning(&name, value)),
                other => self.wrong(name, other, "an object with sizes such as `target_width`"),
            },
            "hires" => match value {
                Value::Object(map) => {
                    self.draft.hires.get_or_insert_default();
                    map.into_iter().for_each(|(name, value)| self.hires(&name, value));
                }
                other => self.wrong(name, other, "an object with `scale`, `upscaler`, `strength` and `steps`"),
            },
            "controls" => match value {
                Value::Array(controls) => {
                    controls.into_iter().enumerate().for_each(|(at, each)| self.control(at, each))
                }
                other => self.wrong(name, other, "a list of objects with `model`, `image`, `scale`, `start` and `end`"),
            },
            "refiner" => match value {
                Value::Object(map) => {
                    self.draft.refiner.get_or_insert_default();
                    map.into_iter().for_each(|(name, value)| self.refiner(&name, value));
                }
                other => self.wrong(name, other, "an object with `model`, `switch_at` and `steps`"),
            },
            "output" => match value {
                Value::Object(map) => map.into_iter().for_each(|(name, value)| self.output(&name, value)),
                other => self.wrong(name, other, "an object with `format` and `quality`"),
            },
            unknown => self.unknown(unknown, value),
        }
    }

    fn picture(&mut self, input: InputName, value: Value) {
        match picture::source(&value) {
            Ok(source) => self.pictures.push(GivenPicture { input, source }),
            Err(message) => {
                self.draft.image_inputs.is_faulty |= !matches!(input, InputName::Control(_));
                self.faults.push(FieldError::new(input.field(), value, message));
            }
        }
    }

    fn lora(&mut self, at: usize, value: Value) {
        let Value::Object(map) = value else {
            return self.wrong(&format!("loras[{at}]"), value, "an object with `name` and `scale`");
        };
        let mut draft = LoraDraft::default();
        for (name, value) in map {
            let field = format!("loras[{at}].{name}");
            match name.as_str() {
                "name" => draft.name = self.text(&field, value),
                "scale" => draft.scale = self.real(&field, value),
                "text_encoder_scale" => draft.text_encoder_scale = self.real(&field, value),
                "hash" => draft.hash = self.text(&field, value),
                _ => {
                    let message = format!("is unknown; one of `loras` has {}", LoraDraft::FIELDS.join(", "));
                    self.faults.push(FieldError::new(field, value, message));
                }
            }
        }
        self.draft.loras.push(draft);
    }

    fn size_conditioning(&mut self, name: &str, value: Value) {
        let field = format!("size_conditioning.{name}");
        if SizeConditioningDraft::FIELDS.contains(&name) {
            let value = self.integer(&field, value);
            let sizes = self.draft.size_conditioning.get_or_insert_default();
            if let Some(size) = sizes.field(name) {
                *size = value;
            }
        } else {
            let message = format!("is unknown; `size_conditioning` has {}", SizeConditioningDraft::FIELDS.join(", "));
            self.faults.push(FieldError::new(field, value, message));
        }
    }

    fn control(&mut self, at: usize, value: Value) {
        let mut control = ControlDraft::default();
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    let field = format!("controls[{at}].{name}");
                    match name.as_str() {
                        "model" => control.model = self.text(&field, value),
                        // Far more than any limit allows are told by their number.
                        "image" if at > u8::MAX.into() || value.is_null() => {}
                        "image" => self.member(&field, value),
                        "scale" => control.scale = self.real(&field, value),
                        "start" => control.start = self.real(&field, value),
                        "end" => control.end = self.real(&field, value),
                        _ => {
                            let message = format!("is unknown; a control has {}", ControlDraft::FIELDS.join(", "));
                            self.faults.push(FieldError::new(field, value, message));
                        }
                    }
                }
            }
            other => {
                control.is_faulty = true;
                self.wrong(&format!("controls[{at}]"), other, "an object with `model` and `image`");
            }
        }
        self.draft.controls.push(control);
    }

    fn hires(&mut self, name: &str, value: Value) {
        let field = format!("hires.{name}");
        let mut hires = self.draft.hires.take().unwrap_or_default();
        match name {
            "scale" => hires.scale = self.real(&field, value),
            "upscaler" => hires.upscaler = self.text(&field, value),
            "strength" => hires.strength = self.real(&field, value),
            "steps" => hires.steps = self.integer(&field, value),
            _ => {
                let message = format!("is unknown; `hires` has {}", HiresDraft::FIELDS.join(", "));
                self.faults.push(FieldError::new(field, value, message));
            }
        }
        self.draft.hires = Some(hires);
    }

    fn refiner(&mut self, name: &str, value: Value) {
        let field = format!("refiner.{name}");
        let mut refiner = self.draft.refiner.take().unwrap_or_default();
        match name {
            "model" => refiner.model = self.text(&field, value),
            "switch_at" => refiner.switch_at = self.real(&field, value),
            "steps" => refiner.steps = self.integer(&field, value),
            _ => {
                let message = format!("is unknown; `refiner` has {}", RefinerDraft::FIELDS.join(", "));
                self.faults.push(FieldError::new(field, value, message));
            }
        }
        self.draft.refiner = Some(refiner);
    }

    fn output(&mut self, name: &str, value: Value) {
        match name {
            "format" => self.draft.output_format = self.text("output.format", value),
            "quality" => self.draft.output_quality = self.integer("output.quality", value),
            other => self.faults.push(FieldError::new(
                format!("output.{other}"),
                value,
                "is unknown; `output` has `format` and `quality`",
            )),
        }
    }

    fn unknown(&mut self, name: &str, value: Value) {
        let nearest = FIELDS.iter().map(|field| (distance(field, name), *field)).min();
        let hint = match nearest {
            Some((far, field)) if far <= 3 && far < name.len() => format!("; did you mean `{field}`?"),
            _ => String::new(),
        };
        self.faults.push(FieldError::new(
            name.chars().take(64).collect::<String>(),
            value,
            format!("is unknown{hint}"),
        ));
    }

    fn wrong(&mut self, name: &str, value: Value, expected: &str) {
        self.faults.push(FieldError::new(name, value, format!("must be {expected}")));
    }

    fn text(&mut self, name: &str, value: Value) -> Option<String> {
        match value {
            Value::String(text) => return Some(text),
            Value::Null => {}
            other => self.wrong(name, other, "text"),
        }
        None
    }

    fn truth(&mut self, name: &str, value: Value) -> Option<bool> {
        match value {
            Value::Bool(truth) => return Some(truth),
            Value::Null => {}
            other => self.wrong(name, other, "true or false"),
        }
        None
    }

    fn wide(&mut self, name: &str, value: Value) -> Option<i128> {
        let number = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
        // 20.0 is an integer written by a language that knows only one kind of number.
        let whole = || value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9e15).map(|x| x as i128);
        let number = number.or_else(whole);
        if number.is_none() && !value.is_null() {
            self.wrong(name, value, "an integer");
        }
        number
    }

    fn integer(&mut self, name: &str, value: Value) -> Option<i64> {
        // Far out of every range either way: the check that follows names the range.
        self.wide(name, value).map(|number| number.clamp(i64::MIN.into(), i64::MAX.into()) as i64)
    }

    fn real(&mut self, name: &str, value: Value) -> Option<f64> {
        let number = value.as_f64();
        if number.is_none() && !value.is_null() {
            self.wrong(name, value, "a number");
        }
        number
    }
}

/// Levenshtein's: how many letters to change, add or drop.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let cost = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], cost);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn read(body: &str) -> Result<Parsed> {
        read_as("application/json; charset=utf-8", body.as_bytes())
    }

    fn read_as(kind: &'static str, body: &[u8]) -> Result<Parsed> {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
        // Nothing is waited for: the body is there.
        let parsed = parse(&headers, Ok(Bytes::copy_from_slice(body)), 1000);
        futures::FutureExt::now_or_never(parsed).expect("at once")
    }

    fn faults(body: &str) -> Vec<(String, String)> {
        read(body).expect("an object").faults.into_iter().map(|fault| (fault.field, fault.message)).collect()
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let told = faults(
            r#"{"prompt": 7, "widht": 128, "steps": "20", "output": {"format": "png", "size": 1}, "seed": 1.5, "zzz": 0, "prompt": "x"}"#,
        );
        let fields: Vec<&str> = told.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(fields, ["prompt", "widht", "steps", "output.size", "seed", "zzz", "prompt"]);
        assert!(told[1].1.contains("did you mean `width`?"), "{}", told[1].1);
        assert_eq!(told[6].1, "is given twice");
    }

    #[test]
    fn numbers_far_out_of_range_reach_the_check_that_names_the_range() {
        let draft =
            read(r#"{"prompt": "x", "steps": 1000000000, "seed": 18446744073709551615, "width": -5, "height": 128.0}"#)
                .expect("read")
                .draft;
        assert_eq!((draft.steps, draft.seed), (Some(1_000_000_000), Some(u64::MAX.into())));
        assert_eq!((draft.width, draft.height), (Some(-5), Some(128)));
    }

    #[test]
    fn what_is_no_object_is_no_body() {
        for body in ["", "[]", "{", "7", "{\"guidance_scale\": NaN}"] {
            assert_eq!(read(body).expect_err("refused").status, 400, "{body}");
        }
    }
}
