//! `except`: a policy in all layers but a few, which keep the model's own choice. For every policy, since what a changed choice costs differs by
//! layer: on the demo model the first one carries most of the price. `moce tune` looks for such layers.

use std::fmt;

use super::{Rule, Token};
use crate::spec::Spec;
use crate::{Error, Policy};

/// A policy and where it does not act.
#[derive(Debug, Clone, PartialEq)]
pub struct Except {
    policy: Box<Policy>,
    layers: Vec<usize>,
}

impl Except {
    /// `policy` in every layer but these (0-based, among the MoE layers, in any order).
    pub(super) fn new(policy: Policy, mut layers: Vec<usize>) -> Self {
        layers.sort_unstable();
        layers.dedup();
        Self { policy: Box::new(policy), layers }
    }

    /// The same with these layers left out, too.
    pub(super) fn and(self, mut layers: Vec<usize>) -> Self {
        layers.extend(self.layers);
        Self::new(*self.policy, layers)
    }

    /// What acts in the other layers.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The layers that keep the model's own choice, ascending.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// Reads the layers, such as `0:1:29`.
    pub(super) fn parse(spec: &Spec<'_>, text: &str) -> Result<Vec<usize>, Error> {
        let number = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse().ok())?;
        let layers: Option<Vec<usize>> = text.split(':').map(number).collect();
        layers.ok_or_else(|| spec.error("except", text, "layers, from 0, with colons between"))
    }
}

impl Rule for Except {
    fn validate(&self, experts: usize, experts_per_token: usize) -> Result<(), Error> {
        self.policy.validate(experts, experts_per_token)
    }

    fn resolved(&self, experts: usize, experts_per_token: usize) -> Policy {
        let policy = Box::new(self.policy.rule().resolved(experts, experts_per_token));
        Policy::Except(Self { policy, layers: self.layers.clone() })
    }

    fn check_layers(&self, layers: usize) -> Result<(), Error> {
        if let Some(&layer) = self.layers.last().filter(|&&layer| layer >= layers) {
            let (option, given) = ("routing: except".to_owned(), layer.to_string());
            return Err(Error::Spec { option, given, allowed: format!("MoE layers below {layers}") });
        }
        self.policy.check_layers(layers)
    }

    fn choose(&self, token: &mut Token<'_>, chosen: &mut Vec<u32>) {
        match self.layers.binary_search(&token.layer) {
            Ok(_) => Policy::Original.choose(token, chosen),
            Err(_) => self.policy.choose(token, chosen),
        }
    }
}

impl fmt::Display for Except {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = self.policy.to_string();
        let separator = if policy.contains(':') { ',' } else { ':' };
        write!(f, "{policy}{separator}except=")?;
        for (index, layer) in self.layers.iter().enumerate() {
            write!(f, "{}{layer}", if index == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}
