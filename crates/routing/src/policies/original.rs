//! `original`: the model's own choice, the K best by score. The only lossless policy.

use super::Token;

pub(super) fn choose(token: &Token<'_>, chosen: &mut Vec<u32>) {
    chosen.extend(token.own.iter().map(|own| own.expert));
}
