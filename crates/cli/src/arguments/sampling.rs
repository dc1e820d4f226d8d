//! How tokens are picked, on the command line.

use super::whole;
use clap::Args;
use moce_engine::SamplerOptions;

/// How tokens are picked; the defaults are llama.cpp's.
#[derive(Debug, Args)]
#[command(next_help_heading = Sampling::HEADING)]
pub(crate) struct Sampling {
    /// Temperature; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.8, value_parser = parse_non_negative)]
    pub(crate) temp: f32,
    /// Only the likeliest K tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 40, value_parser = whole(0..=usize::MAX))]
    pub(crate) top_k: usize,
    /// The likeliest tokens that together have probability P; 1 for all
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = parse_probability)]
    pub(crate) top_p: f32,
    /// Only tokens at least P times as likely as the likeliest; 0 for all
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = parse_probability)]
    pub(crate) min_p: f32,
    /// Make tokens of the last 64 less likely; 1 for not at all
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = parse_positive)]
    pub(crate) repeat_penalty: f32,
    /// Seed of the random numbers [default: a new one each time, printed at the end]
    #[arg(long, value_name = "N", value_parser = whole(0..=u64::MAX))]
    pub(crate) seed: Option<u64>,
}

impl Sampling {
    /// What these options stand under in a command's help.
    pub(crate) const HEADING: &str = "Sampling";

    /// The sampler's options; `seed` stands in where none was given.
    pub(crate) fn sampler_options(&self, seed: u64) -> SamplerOptions {
        SamplerOptions {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            seed: self.seed.unwrap_or(seed),
            ..SamplerOptions::default()
        }
    }
}

fn parse_real(text: &str, allowed: &str, within: impl FnOnce(f32) -> bool) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if number.is_finite() && within(number) => Ok(number),
        _ => Err(format!("expected a number {allowed}")),
    }
}

fn parse_non_negative(text: &str) -> Result<f32, String> {
    parse_real(text, "of at least 0", |x| x >= 0.0)
}

pub(crate) fn parse_positive(text: &str) -> Result<f32, String> {
    parse_real(text, "above 0", |x| x > 0.0)
}

fn parse_probability(text: &str) -> Result<f32, String> {
    parse_real(text, "from 0 to 1", |x| (0.0..=1.0).contains(&x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_strictly() {
        assert!(parse_probability("1.5").is_err() && parse_probability("nan").is_err());
        assert_eq!(parse_probability("0.5"), Ok(0.5));
        assert!(parse_positive("0").is_err() && parse_non_negative("-1").is_err());
    }
}
