//! A request in the words of a client.

use serde_json::Value;

use super::GenerationRequest;
use crate::domain::{HiresDraft, ImageFormat, RefinerDraft};

/// What a client may say that decides nothing of its pictures.
const BESIDE_PICTURES: [&str; 5] = ["priority", "start_within", "expires_in", "reuse", "metadata"];

impl GenerationRequest {
    /// As a client would send it: every field a client may say, every default resolved.
    pub fn to_body(&self) -> Value {
        let mut body = serde_json::to_value(self).expect("plain data. This is a bug in domain.");
        if let Some(fields) = body.as_object_mut() {
            fields.remove("guidance_embedded");
            let known: [(&str, &[&str]); 2] = [("hires", &HiresDraft::FIELDS), ("refiner", &RefinerDraft::FIELDS)];
            for (part, known) in known {
                if let Some(part) = fields.get_mut(part).and_then(Value::as_object_mut) {
                    part.retain(|name, _| known.contains(&name.as_str()));
                }
            }
        }
        // Quality means nothing for a PNG and is refused there.
        if self.output.format == ImageFormat::Png
            && let Some(output) = body["output"].as_object_mut()
        {
            output.remove("quality");
        }
        body
    }

    /// The part of [`to_body`](Self::to_body) that decides its pictures, to the byte: not who waits for them, nor for how long.
    /// Pictures that came with it are told by their hash, whichever job they came with.
    pub fn to_drawing(&self) -> Value {
        let mut body = self.to_body();
        if let Some(fields) = body.as_object_mut() {
            fields.retain(|name, _| !BESIDE_PICTURES.contains(&name.as_str()));
        }
        let forget =
            |picture: Option<&mut Value>| picture.and_then(Value::as_object_mut).map(|picture| picture.remove("job"));
        for name in ["init_image", "mask_image"] {
            forget(body.get_mut(name));
        }
        for control in body.get_mut("controls").and_then(Value::as_array_mut).into_iter().flatten() {
            forget(control.get_mut("image"));
        }
        body
    }
}
