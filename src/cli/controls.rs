//! The flag of `generate` about pictures that control what is drawn.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::pictures::read;
use crate::config::Settings;
use crate::domain::{ControlDraft, GenerationRequest, InputName};
use crate::images::{self, Canvas, ControlPicture, InputLimits, RgbImage};

/// ControlNets and their pictures.
#[derive(Debug, Args)]
pub(super) struct Controls {
    /// A ControlNet of the folder `models.controlnets` and the picture it is shown, with `,scale=0 to 10` and the share of the
    /// steps it controls, `,start=0 to 1` and `,end=0 to 1`, where they are not 1, 0 and 1. May be said several times.
    #[arg(long = "control", value_name = "NAME=FILE[,scale=S][,start=S][,end=S]")]
    controls: Vec<ControlFlag>,
}

#[derive(Clone, Debug)]
struct ControlFlag {
    file: PathBuf,
    draft: ControlDraft,
}

impl FromStr for ControlFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once('=').ok_or("it is NAME=FILE, such as canny=edges.png")?;
        let mut draft = ControlDraft { model: Some(name.to_owned()), ..ControlDraft::default() };
        let mut file = rest;
        // From the end: a file's name may have commas.
        while let Some((before, option)) = file.rsplit_once(',') {
            let Some((key, value)) = option.split_once('=') else { break };
            let place = match key {
                "scale" => &mut draft.scale,
                "start" => &mut draft.start,
                "end" => &mut draft.end,
                _ => break,
            };
            *place = Some(value.parse().map_err(|_| format!("`{key}` is `{value}`, which is no number"))?);
            file = before;
        }
        if file.is_empty() {
            return Err("it names no file".to_owned());
        }
        Ok(Self { file: PathBuf::from(file), draft })
    }
}

/// The pictures, read.
#[derive(Default)]
pub(super) struct ReadControls(Vec<(RgbImage, ControlDraft)>);

impl Controls {
    /// Reads the files.
    pub(super) fn read(&self, settings: &Settings) -> Result<ReadControls, String> {
        let limits = InputLimits::of(&settings.limits);
        let read = |(at, flag): (usize, &ControlFlag)| {
            let input = InputName::Control(u8::try_from(at).unwrap_or(u8::MAX));
            let (picture, image) = read(&flag.file, "--control", input, |bytes| images::read_rgb(bytes, limits))?;
            Ok((picture, ControlDraft { image: Some(image), ..flag.draft.clone() }))
        };
        Ok(ReadControls(self.controls.iter().enumerate().map(read).collect::<Result<_, String>>()?))
    }
}

impl ReadControls {
    /// What is asked of them.
    pub(super) fn drafts(&self) -> Vec<ControlDraft> {
        self.0.iter().map(|(_, draft)| draft.clone()).collect()
    }

    /// What a checked request is controlled by.
    pub(super) fn pictures(&self, request: &GenerationRequest, canvas: Option<&Canvas>) -> Vec<ControlPicture> {
        self.0.iter().map(|(picture, _)| ControlPicture::new(picture, request, canvas)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_a_name_a_file_and_numbers() {
        let flag: ControlFlag = "canny=a, b=1.png,scale=0.5,end=0.7".parse().expect("a flag");
        assert_eq!(flag.file, PathBuf::from("a, b=1.png"));
        let ControlDraft { model, scale, start, end, .. } = flag.draft;
        assert_eq!((model.as_deref(), scale, start, end), (Some("canny"), Some(0.5), None, Some(0.7)));
        for (text, told) in [("canny", "NAME=FILE"), ("canny=", "no file"), ("canny=a.png,scale=x", "no number")] {
            assert!(text.parse::<ControlFlag>().expect_err("refused").contains(told), "{text}");
        }
    }
}
