//! A picture in JSON: base64, a data URL, or the name of a stored one.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use crate::domain::{InputName, JobId};
use crate::service::PictureSource;

const FORMS: &str = "must be a picture's file as base64 or as a data URL, `{\"job\": ID, \"image\": INDEX}` for a picture that a job drew, or `{\"job\": ID, \"input\": NAME}` for one that came with its request";
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Where the picture is.
///
/// # Errors
/// What is wrong, as a sentence without its subject.
pub(super) fn source(value: &Value) -> Result<PictureSource, String> {
    match value {
        Value::String(text) => bytes(text).map(|bytes| PictureSource::File(bytes.into())),
        Value::Object(members) => stored(members),
        _ => Err(FORMS.to_owned()),
    }
}

fn bytes(text: &str) -> Result<Vec<u8>, String> {
    let text = text.trim();
    let starts = |prefix: &str| text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    if ["http:", "https:", "ftp:", "file:"].into_iter().any(starts) {
        return Err("is a URL, and nothing is fetched from elsewhere; send the file itself, as base64, as a data URL or in a form".to_owned());
    }
    let encoded = if starts("data:") {
        let (head, rest) = text.split_once(',').ok_or("is a data URL without a comma")?;
        if !head.to_ascii_lowercase().ends_with(";base64") {
            return Err("is a data URL that is not `;base64`".to_owned());
        }
        rest
    } else {
        text
    };
    // Mail and shells break long lines.
    let is_broken = encoded.bytes().any(|byte| byte.is_ascii_whitespace());
    let joined = is_broken.then(|| encoded.split_ascii_whitespace().collect::<String>());
    let encoded = joined.as_deref().unwrap_or(encoded);
    let engine = if encoded.bytes().any(|byte| matches!(byte, b'-' | b'_')) { &URL_SAFE } else { &STANDARD };
    engine.decode(encoded).map_err(|error| format!("is no base64 ({error}); {FORMS}"))
}

/// `{job, image}`, or `{job, input}` and what a job's `request` says of it besides.
fn stored(members: &Map<String, Value>) -> Result<PictureSource, String> {
    let known = ["job", "image", "input", "sha256", "width", "height"];
    if let Some(unknown) = members.keys().find(|name| !known.contains(&name.as_str())) {
        let unknown: String = unknown.chars().take(64).collect();
        return Err(format!("has the unknown member `{unknown}`; {FORMS}"));
    }
    let job = members.get("job").and_then(Value::as_str).ok_or_else(|| format!("names no `job`; {FORMS}"))?;
    let job: JobId = job.parse().map_err(|error| format!("names a `job` that is none: {error}"))?;
    match (members.get("image"), members.get("input")) {
        (Some(index), None) => {
            let index = index.as_u64().and_then(|index| u32::try_from(index).ok());
            let index = index.ok_or("has an `image` that is no index; it is a number from 0")?;
            Ok(PictureSource::Drawn { job, index })
        }
        (None, Some(input)) => {
            let input: Option<InputName> = input.as_str().and_then(|name| name.parse().ok());
            let input = input
                .ok_or("has an `input` that is none; it is `init_image`, `mask_image`, or `control_0` and so on")?;
            let sha256 = members.get("sha256").and_then(Value::as_str).map(str::to_owned);
            Ok(PictureSource::Sent { job, input, sha256 })
        }
        _ => Err(FORMS.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const JOB: &str = "01a20dc3-0a9a-74ab-b530-a519827ad0c2";

    fn told(value: Value) -> String {
        source(&value).map_or_else(|message| message, |source| format!("{source:?}"))
    }

    #[test]
    fn a_file_comes_as_base64_in_any_of_its_ways() {
        let plain = told(json!("+/8A"));
        assert!(plain.starts_with("File("), "{plain}");
        let ways = ["-_8A", "+/\r\n8A\n", "data:image/png;base64,+/8A", "DATA:;BASE64,+/8A", " +/8A "];
        for way in ways {
            assert_eq!(told(json!(way)), plain, "{way}");
        }
        assert_eq!(told(json!("AA")), told(json!("AA==")));
    }

    #[test]
    fn a_stored_picture_comes_by_name() {
        assert_eq!(told(json!({"job": JOB, "image": 3})), format!("Drawn({JOB}, 3)"));
        let sent = json!({"job": JOB, "input": "mask_image", "sha256": "00", "width": 4, "height": 4});
        assert_eq!(told(sent), format!("Sent({JOB}, mask_image, Some(\"00\"))"));
    }

    #[test]
    fn what_is_no_picture_is_told_so() {
        let cases = [
            (json!("https://example.org/a.png"), "is a URL"),
            (json!("HTTP://example.org"), "is a URL"),
            (json!("file:///etc/passwd"), "is a URL"),
            (json!("data:image/png,abc"), "not `;base64`"),
            (json!("data:image/png;base64"), "without a comma"),
            (json!("no base64!"), "is no base64"),
            (json!("AAAAA"), "is no base64"),
            (json!(7), "must be"),
            (json!([]), "must be"),
            (json!({}), "names no `job`"),
            (json!({"job": 7}), "names no `job`"),
            (json!({"job": "x", "image": 0}), "names a `job` that is none"),
            (json!({"job": JOB}), "must be"),
            (json!({"job": JOB, "image": 0, "input": "init_image"}), "must be"),
            (json!({"job": JOB, "image": -1}), "no index"),
            (json!({"job": JOB, "image": 1.5}), "no index"),
            (json!({"job": JOB, "input": "control"}), "`input` that is none"),
            (json!({"url": "x"}), "unknown member `url`"),
        ];
        for (value, expected) in cases {
            let message = told(value.clone());
            assert!(message.contains(expected), "{value}: {message}");
        }
    }
}
