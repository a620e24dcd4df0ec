//! Pictures that control what is drawn, each through a ControlNet.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::image_inputs::InputImage;
use super::request_faults::Faults;
use super::{Limits, ModelInfo};

/// A ControlNet that is here, and whether it fits a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlNetInfo {
    /// The name clients write.
    pub name: String,
    /// Why it does not fit; `None` where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misfit: Option<String>,
}

/// What a client asked of one control, after its picture was looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ControlDraft {
    /// A ControlNet's name.
    pub model: Option<String>,
    /// What it is shown.
    pub image: Option<InputImage>,
    /// How much of what it says is added.
    pub scale: Option<f64>,
    /// Share of the steps before the first that it controls, 0 to 1.
    pub start: Option<f64>,
    /// Share of the steps up to the last that it controls, 0 to 1.
    pub end: Option<f64>,
    /// What was given could not be read, which is told elsewhere: nothing is said to lack.
    pub is_faulty: bool,
}

impl ControlDraft {
    /// Their names.
    pub const FIELDS: [&str; 5] = ["model", "image", "scale", "start", "end"];
}

/// One control, defaults resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControlInput {
    model: String,
    image: InputImage,
    scale: f64,
    start: f64,
    end: f64,
}

/// Far more than anything is drawn well with.
const MAX_SCALE: f64 = 10.0;

impl ControlInput {
    /// The ControlNet.
    pub fn model(&self) -> &str {
        &self.model
    }
    /// What it is shown.
    pub fn image(&self) -> &InputImage {
        &self.image
    }
    /// How much of what it says is added, 0 to 10.
    pub fn scale(&self) -> f64 {
        self.scale
    }
    /// Shares of the steps before the first that it controls, and up to the last.
    pub fn shares(&self) -> (f64, f64) {
        (self.start, self.end)
    }
    /// Which of so many evaluations of the model it controls: those that lie wholly within the shares asked for, as diffusers
    /// counts its timesteps. Samplers of several evaluations a step have more of them than steps.
    pub fn evaluations(&self, of: usize) -> Range<usize> {
        if self.scale == 0.0 {
            return 0..0;
        }
        let share = |at: usize| at as f64 / of as f64;
        let is_within = |at: &usize| share(*at) >= self.start && share(at + 1) <= self.end;
        let first = (0..of).find(is_within).unwrap_or(0);
        first..first + (first..of).take_while(is_within).count()
    }
}

impl Faults {
    pub(super) fn controls(
        &mut self,
        drafts: Vec<ControlDraft>,
        model: &ModelInfo,
        limits: &Limits,
    ) -> Vec<ControlInput> {
        let most = limits.max_controls as usize;
        if drafts.len() > most {
            let message = format!("has {} controls; at most {most} are allowed", drafts.len());
            self.add("controls", drafts.len(), message);
        }
        let each = drafts.into_iter().enumerate();
        each.filter_map(|(at, draft)| self.control(&format!("controls[{at}]"), draft, model)).collect()
    }

    /// `None` where it lacks what has no default, which is told.
    fn control(&mut self, at: &str, draft: ControlDraft, model: &ModelInfo) -> Option<ControlInput> {
        let field = |name: &str| format!("{at}.{name}");
        let scale = self.real(&field("scale"), draft.scale, 1.0, 0.0, MAX_SCALE);
        let start = self.real(&field("start"), draft.start, 0.0, 0.0, 1.0);
        let end = self.real(&field("end"), draft.end, 1.0, 0.0, 1.0);
        if end <= start {
            self.add(&field("end"), end, format!("must be above `{}`, which is {start}", field("start")));
        }
        if draft.image.is_none() && !draft.is_faulty {
            self.add(&field("image"), Value::Null, "is required: the picture that the ControlNet is shown");
        }
        if draft.model.is_none() && draft.is_faulty {
            return None;
        }
        let named = self.control_model(&field("model"), draft.model, model);
        Some(ControlInput { model: named?, image: draft.image?, scale, start, end })
    }

    fn control_model(&mut self, field: &str, name: Option<String>, model: &ModelInfo) -> Option<String> {
        let fitting = || model.controlnets.iter().filter(|net| net.misfit.is_none());
        let all: Vec<String> = fitting().map(|net| format!("`{}`", net.name)).collect();
        let here = match all.is_empty() {
            true => format!("there is no ControlNet here that fits model `{}`", model.id),
            false => format!("model `{}` takes {}", model.id, all.join(", ")),
        };
        let Some(name) = name else {
            self.add(field, Value::Null, format!("is required: a ControlNet's name; {here}"));
            return None;
        };
        match model.controlnets.iter().find(|net| net.name == name) {
            Some(net) if net.misfit.is_none() => return Some(name),
            Some(net) => {
                let why = net.misfit.clone().unwrap_or_default();
                self.add(field, name, format!("does not fit model `{}`: {why}; {here}", model.id));
            }
            None => self.add(field, name, format!("is no ControlNet that is here; {here}")),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::InputName;

    fn control(scale: f64, start: f64, end: f64) -> ControlInput {
        let image = InputImage { job: None, input: InputName::Control(0), sha256: String::new(), width: 1, height: 1 };
        ControlInput { model: "edges".to_owned(), image, scale, start, end }
    }

    /// diffusers' `controlnet_keep`: `1.0 - float(i / len(timesteps) < s or (i + 1) / len(timesteps) > e)`.
    #[test]
    fn a_control_is_kept_where_the_reference_keeps_it() {
        for of in [1usize, 2, 3, 7, 10, 11, 30] {
            for start in 0..20 {
                for end in start..=20 {
                    let (start, end) = (f64::from(start) / 20.0, f64::from(end) / 20.0);
                    let range = control(1.0, start, end).evaluations(of);
                    let n = of as f64;
                    let kept = |i: usize| !((i as f64 / n) < start || (i as f64 + 1.0) / n > end);
                    let expected: Vec<usize> = (0..of).filter(|i| kept(*i)).collect();
                    assert_eq!(range.clone().collect::<Vec<_>>(), expected, "{start} {end} of {of}");
                }
            }
        }
        assert!(control(0.0, 0.0, 1.0).evaluations(5).is_empty(), "what adds nothing is not asked");
    }
}
