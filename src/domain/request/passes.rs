//! A request's passes: one over enlarged latents, one by a refiner; and how many steps they take together.

use super::GenerationRequest;
use crate::domain::{ImageInputs, Refiner, SizeConditioning};

impl GenerationRequest {
    /// The second pass as a request of its own, which starts from the enlarged picture.
    pub fn hires_pass(&self) -> Option<Self> {
        let hires = self.hires?;
        let (width, height) = hires.size();
        // A network that was told the first pass's size is told the second's, unless the client said another.
        let told = |size: SizeConditioning| {
            let own = |given: u32, first: u32, second: u32| if given == first { second } else { given };
            SizeConditioning {
                original_width: own(size.original_width, self.width, width),
                original_height: own(size.original_height, self.height, height),
                target_width: own(size.target_width, self.width, width),
                target_height: own(size.target_height, self.height, height),
                ..size
            }
        };
        Some(Self {
            width,
            height,
            size_conditioning: self.size_conditioning.map(told),
            image_inputs: ImageInputs::of_strength(hires.strength),
            steps: hires.steps,
            hires: None,
            ..self.clone()
        })
    }

    /// The refiner's part as a request of its own, which goes on with the latents where the base leaves them. What controls the
    /// base fits the base alone.
    pub fn refiner_pass(&self) -> Option<Self> {
        let refiner = self.refiner.clone()?;
        let sizes = self.size_conditioning.unwrap_or_else(|| SizeConditioning::of(self.width, self.height));
        Some(Self {
            model: refiner.model,
            size_conditioning: refiner.size_conditioning.then_some(sizes),
            guidance_embedded: refiner.guidance_embedded,
            steps: refiner.steps,
            denoising_start: Some(refiner.switch_at),
            refiner: None,
            controls: Vec::new(),
            ..self.clone()
        })
    }

    /// Steps that are taken, at least 1, those of a second pass included. Where a run begins or ends within the schedule it
    /// is a guess, right for evenly spaced steps: where the steps lie is the model's affair.
    pub fn steps_taken(&self) -> u32 {
        self.first_steps() + self.refined_steps() + self.hires.map_or(0, |hires| hires.steps_taken())
    }

    fn refined_steps(&self) -> u32 {
        let steps = |it: &Refiner| steps_between(it.steps, Some(it.switch_at), self.denoising_end).max(1);
        self.refiner.as_ref().map_or(0, steps)
    }

    /// Steps of this model's run.
    fn first_steps(&self) -> u32 {
        let after = self.steps - steps_between(self.steps, None, self.denoising_end());
        let before = match self.denoising_start {
            Some(_) => steps_between(self.steps, None, self.denoising_start),
            None => self.skipped_steps(),
        };
        self.steps.saturating_sub(before + after).max(1)
    }

    /// Pixels times steps of one picture, all passes together.
    pub fn pixel_steps(&self) -> u64 {
        let area = |(width, height): (u32, u32)| u64::from(width) * u64::from(height);
        let second = self.hires.map_or(0, |hires| area(hires.size()) * u64::from(hires.steps_taken()));
        area((self.width, self.height)) * u64::from(self.first_steps() + self.refined_steps()) + second
    }
}

/// Of evenly spaced steps, those between two shares of the training schedule.
fn steps_between(steps: u32, start: Option<f64>, end: Option<f64>) -> u32 {
    let before = |share: f64| (f64::from(steps) * share).round() as u32;
    before(end.unwrap_or(1.0)).saturating_sub(before(start.unwrap_or(0.0)))
}
