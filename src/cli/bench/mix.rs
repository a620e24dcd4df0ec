//! What the jobs ask for: bodies in turn.

use serde_json::{Map, Value};

use super::MixArgs;

/// Bodies of `POST /v1/jobs`, sent in turn.
pub(super) struct Mix {
    bodies: Vec<Map<String, Value>>,
    seed: u64,
}

/// `128x96`: width and height.
pub(super) fn size(text: &str) -> Result<(u32, u32), String> {
    let sides = text.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    sides.ok_or_else(|| "must be WIDTHxHEIGHT, such as 128x128".to_owned())
}

impl Mix {
    pub(super) fn new(args: MixArgs, seed: u64) -> Result<Self, String> {
        let bodies = match &args.bodies {
            Some(path) => {
                let told = |error: &dyn std::fmt::Display| format!("--bodies {}: {error}", path.display());
                let text = std::fs::read_to_string(path).map_err(|error| told(&error))?;
                parse(&text).map_err(|error| told(&error))?
            }
            None => combinations(args),
        };
        Ok(Self { bodies, seed })
    }

    /// Of the job of this number. One without a `seed` gets one of its own, so that the same load draws the same pictures.
    pub(super) fn body(&self, number: u64) -> Value {
        let mut body = self.bodies[(number % self.bodies.len() as u64) as usize].clone();
        let seed = self.seed.wrapping_mul(1_000_003).wrapping_add(number) & i64::MAX as u64;
        body.entry("seed").or_insert_with(|| seed.into());
        // A load that was sent before is to be drawn again.
        body.entry("reuse").or_insert(false.into());
        Value::Object(body)
    }
}

fn parse(text: &str) -> Result<Vec<Map<String, Value>>, String> {
    let all = match serde_json::from_str(text).map_err(|error| error.to_string())? {
        Value::Array(all) if !all.is_empty() => all,
        one @ Value::Object(_) => vec![one],
        _ => return Err("must hold an object, or an array with at least one".to_owned()),
    };
    let object = |(number, value)| match value {
        Value::Object(object) => Ok(object),
        other => Err(format!("body {number} is {other}; must be an object")),
    };
    all.into_iter().enumerate().map(object).collect()
}

/// Every combination of what was given several times. What was not given is left out: the server's default.
fn combinations(args: MixArgs) -> Vec<Map<String, Value>> {
    let mut common = Map::new();
    let single = [
        ("guidance_scale", args.guidance_scale.map(Value::from)),
        ("num_images", args.num_images.map(Value::from)),
        ("model", args.model.map(Value::from)),
    ];
    common.extend(single.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    let side = |name: &str, side: u32| (name.to_owned(), Value::from(side));
    let field = |name: &'static str| move |value: Value| vec![(name.to_owned(), value)];
    let axes: [Vec<Vec<(String, Value)>>; 4] = [
        args.prompts.into_iter().map(Value::from).map(field("prompt")).collect(),
        args.sizes.iter().map(|(width, height)| vec![side("width", *width), side("height", *height)]).collect(),
        args.steps.into_iter().map(Value::from).map(field("steps")).collect(),
        args.samplers.into_iter().map(Value::from).map(field("sampler")).collect(),
    ];
    let mut bodies = vec![common];
    for axis in axes.into_iter().filter(|axis| !axis.is_empty()) {
        let with = |body: &Map<String, Value>, fields: &Vec<(String, Value)>| {
            let mut body = body.clone();
            body.extend(fields.iter().cloned());
            body
        };
        bodies = bodies.iter().flat_map(|body| axis.iter().map(move |fields| with(body, fields))).collect();
    }
    bodies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_given_several_times_are_combined_in_turn() {
        let args = MixArgs {
            prompts: vec!["a cat".to_owned()],
            sizes: vec![(128, 128), (96, 160)],
            steps: vec![10, 20],
            samplers: Vec::new(),
            guidance_scale: Some(1.0),
            num_images: None,
            model: None,
            bodies: None,
        };
        let mix = Mix::new(args, 7).unwrap();
        let asked: Vec<(u64, u64)> = (0..5)
            .map(|number| mix.body(number))
            .map(|body| (body["height"].as_u64().unwrap(), body["steps"].as_u64().unwrap()))
            .collect();
        assert_eq!(asked, [(128, 10), (128, 20), (160, 10), (160, 20), (128, 10)]);
        let body = mix.body(4);
        assert_eq!(body["guidance_scale"], 1.0);
        assert!(body.get("num_images").is_none() && body.get("sampler").is_none(), "left to the server: {body}");
        assert_eq!(body["reuse"], false);
        assert_ne!(body["seed"], mix.body(0)["seed"], "each job draws a picture of its own");
    }

    #[test]
    fn a_file_holds_one_body_or_several() {
        assert_eq!(parse(r#"{"prompt": "a"}"#).unwrap().len(), 1);
        assert_eq!(parse(r#"[{"prompt": "a"}, {"prompt": "b", "seed": 3}]"#).unwrap()[1]["seed"], 3);
        for bad in ["[]", "7", "[7]", "{"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_two_numbers() {
        assert_eq!(size("128x96"), Ok((128, 96)));
        for bad in ["128", "x", "12x-1", "1x2x3"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
