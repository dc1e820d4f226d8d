//! `cache-prior`, the paper's method (arXiv 2412.00099): cached and protected experts get a bonus of λ·Δ on their scores, and
//! the K best by the lifted scores run.
//!
//! The bonus is rounded to f32 once, and so is each lifted score; ties fall to the better original rank.

use std::fmt;

use super::{Rule, Token, parameter_error, protected, validate_protected};
use crate::ranking::{Ranked, best, by_rank};
use crate::spec::{Spec, ratio};
use crate::{Error, Policy};

/// Parameters of `cache-prior`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CachePrior {
    /// The strength of the bonus in units of Δ.
    pub lambda: Lambda,
    /// How many of the strongest always run: 0 to N, in effect at most K; by default 1 if N <= 16, else 2.
    pub j: Option<usize>,
}

/// λ: 0 is original routing, 0.05 to 0.25 the useful range.
#[derive(Debug, Clone, PartialEq)]
pub enum Lambda {
    /// The same in every layer.
    Uniform(f64),
    /// One per MoE layer, in order.
    PerLayer(Vec<f64>),
}

impl Default for Lambda {
    fn default() -> Self {
        Self::Uniform(0.1)
    }
}

impl Lambda {
    /// Reads `0.15`, `15%`, or one number per layer with colons between: `0.1:0.2:0.15`.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers: Vec<f64> = text.split(':').map(ratio).collect::<Option<_>>()?;
        Some(if numbers.len() == 1 { Self::Uniform(numbers.remove(0)) } else { Self::PerLayer(numbers) })
    }

    /// Reads one number per layer from the text of a file: white space between, `#` starts a comment.
    ///
    /// # Errors
    /// [`Error::Spec`] names the first thing that is no number.
    pub fn from_list(text: &str) -> Result<Self, Error> {
        let words = text.lines().flat_map(|line| line.split('#').next().unwrap_or("").split_whitespace());
        let number = |word: &str| {
            let (option, given) = ("routing cache-prior: lambda".to_owned(), word.to_owned());
            ratio(word).ok_or(Error::Spec { option, given, allowed: "a number of 0 or more per line".to_owned() })
        };
        words.map(number).collect::<Result<_, _>>().map(Self::PerLayer)
    }

    /// Every λ times `share`.
    #[must_use]
    pub fn scaled(&self, share: f64) -> Self {
        match self {
            Self::Uniform(lambda) => Self::Uniform(lambda * share),
            Self::PerLayer(lambdas) => Self::PerLayer(lambdas.iter().map(|lambda| lambda * share).collect()),
        }
    }

    fn at(&self, layer: usize) -> f64 {
        match self {
            Self::Uniform(lambda) => *lambda,
            Self::PerLayer(lambdas) => lambdas[layer],
        }
    }

    fn values(&self) -> &[f64] {
        match self {
            Self::Uniform(lambda) => std::slice::from_ref(lambda),
            Self::PerLayer(lambdas) => lambdas,
        }
    }
}

impl CachePrior {
    /// `read_file` gives the text of the file that a λ which is no number names.
    pub(super) fn parse(
        spec: &mut Spec<'_>,
        read_file: &mut dyn FnMut(&str) -> Result<String, String>,
    ) -> Result<Self, Error> {
        let allowed = "a number of 0 or more, or a file with one per MoE layer";
        let lambda = match spec.text("lambda") {
            None => Lambda::default(),
            Some(text) => match Lambda::parse(text) {
                Some(lambda) => lambda,
                None => {
                    let list = read_file(text)
                        .map_err(|problem| spec.error("lambda", text, &format!("{allowed} ({problem})")))?;
                    Lambda::from_list(&list)?
                }
            },
        };
        let j = spec.whole("j", "a whole number from 0 to the layer's experts")?;
        spec.finish("lambda, j, except")?;
        Ok(Self { lambda, j })
    }
}

impl Rule for CachePrior {
    fn validate(&self, experts: usize, experts_per_token: usize) -> Result<(), Error> {
        if let Some(lambda) = self.lambda.values().iter().find(|lambda| !(lambda.is_finite() && **lambda >= 0.0)) {
            let (given, allowed) = (lambda.to_string(), "0 or more".to_owned());
            return Err(parameter_error("cache-prior: lambda", given, allowed, experts, experts_per_token));
        }
        validate_protected("cache-prior: j", self.j, experts, experts_per_token)
    }

    fn resolved(&self, experts: usize, experts_per_token: usize) -> Policy {
        let j = Some(protected(self.j, experts, experts_per_token));
        Policy::CachePrior(Self { lambda: self.lambda.clone(), j })
    }

    fn check_layers(&self, layers: usize) -> Result<(), Error> {
        match &self.lambda {
            Lambda::PerLayer(lambdas) if lambdas.len() != layers => {
                Err(Error::LayerCount { what: "cache-prior: lambda", given: lambdas.len(), expected: layers })
            }
            _ => Ok(()),
        }
    }

    fn choose(&self, token: &mut Token<'_>, chosen: &mut Vec<u32>) {
        let k = token.own.len();
        let bonus = (self.lambda.at(token.layer) * token.range) as f32;
        let scratch = &mut *token.scratch;

        // Adding one bonus and rounding keeps the order among the lifted, so the K best by lifted score are found among the
        // K best lifted and the K best others, each by original rank.
        let lifted = scratch.lifted.iter_mut().zip(&mut scratch.others);
        for ((lifted, other), (&score, &cached)) in lifted.zip(token.scores.iter().zip(token.cached)) {
            *lifted = if cached { score } else { f32::NEG_INFINITY };
            *other = if cached { f32::NEG_INFINITY } else { score };
        }
        let experts = token.scores.len();
        for one in &token.own[..protected(self.j, experts, k)] {
            scratch.lifted[one.expert as usize] = one.score;
            scratch.others[one.expert as usize] = f32::NEG_INFINITY;
        }
        best(&scratch.lifted[..experts], k, &mut scratch.best_lifted);
        best(&scratch.others[..experts], k, &mut scratch.best_others);

        let (mut lifted, mut others) = (scratch.best_lifted.as_slice(), scratch.best_others.as_slice());
        while lifted.len() + others.len() > 0 && scratch.merged.len() < k {
            let take_lifted = match (lifted.first(), others.first()) {
                (Some(warm), Some(cold)) => {
                    let warm_score = warm.score + bonus;
                    warm_score > cold.score || (warm_score == cold.score && by_rank(*warm, *cold).is_lt())
                }
                (warm, _) => warm.is_some(),
            };
            let from = if take_lifted { &mut lifted } else { &mut others };
            scratch.merged.push(from[0]);
            *from = &from[1..];
        }
        scratch.merged.sort_unstable_by(|a, b| by_rank(*a, *b));
        chosen.extend(scratch.merged.drain(..).map(|one: Ranked| one.expert));
    }
}

impl fmt::Display for CachePrior {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cache-prior:lambda=")?;
        for (layer, lambda) in self.lambda.values().iter().enumerate() {
            write!(f, "{}{lambda}", if layer == 0 { "" } else { ":" })?;
        }
        self.j.map_or(Ok(()), |j| write!(f, ",j={j}"))
    }
}
