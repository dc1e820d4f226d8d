//! Belady's bound: the fewest misses that any eviction could have had on a fixed trace (METHOD.md, "Evictions").
//!
//! Offline, since it looks at the future; not a routing policy, since that would change the trace. Hits are judged against the
//! cache before the token, every requested expert is admitted, then what is needed latest leaves.

use crate::scores::check_ids;
use crate::{Error, LayerShape};

/// Later than any token: never needed again.
const NEVER: u64 = u64::MAX;

/// Misses of each token of a layer under the clairvoyant eviction. `requests` holds the experts of each token, `start` those
/// cached before the first.
///
/// # Errors
/// If an expert id is not below the layer's number of experts, or comes twice in a token or in `start`, or a token or `start`
/// has more experts than the capacity holds (unless that is 0: then every selection is a miss).
pub fn belady<R: AsRef<[u32]>>(shape: LayerShape, start: &[u32], requests: &[R]) -> Result<Vec<u32>, Error> {
    shape.validate(0)?;
    check(shape, start)?;
    // For each request of each token, the next token that asks for the same expert; filled backwards.
    let mut upcoming = vec![NEVER; shape.experts];
    let mut following: Vec<u64> = vec![0; requests.iter().map(|request| request.as_ref().len()).sum()];
    let mut at = following.len();
    for (token, request) in requests.iter().enumerate().rev() {
        check(shape, request.as_ref())?;
        for &expert in request.as_ref().iter().rev() {
            at -= 1;
            following[at] = std::mem::replace(&mut upcoming[expert as usize], token as u64);
        }
    }
    if shape.capacity == 0 {
        return Ok(requests.iter().map(|request| request.as_ref().len() as u32).collect());
    }

    let mut next_use = upcoming;
    let mut cached = vec![false; shape.experts];
    start.iter().for_each(|&expert| cached[expert as usize] = true);
    let mut held = start.len();
    let mut misses = Vec::with_capacity(requests.len());
    for request in requests {
        let mut missed = 0;
        for &expert in request.as_ref() {
            missed += u32::from(!cached[expert as usize]);
            cached[expert as usize] = true;
            next_use[expert as usize] = following[at];
            at += 1;
        }
        held += missed as usize;
        while held > shape.capacity {
            let resident = (0..shape.experts).filter(|&expert| cached[expert]);
            let victim = resident.max_by_key(|&expert| next_use[expert]).expect("more held than the capacity");
            cached[victim] = false;
            held -= 1;
        }
        misses.push(missed);
    }
    Ok(misses)
}

fn check(shape: LayerShape, experts: &[u32]) -> Result<(), Error> {
    const WHAT: &str = "Belady's trace";
    if shape.capacity > 0 && experts.len() > shape.capacity {
        let problem = format!("{} experts for a capacity of {}", experts.len(), shape.capacity);
        return Err(Error::Experts { layer: 0, what: WHAT, problem });
    }
    check_ids(0, WHAT, experts, shape.experts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_needed_soonest() {
        let shape = LayerShape { experts: 5, experts_per_token: 1, capacity: 2 };
        // The newcomer 2 is needed latest, so it leaves with the token that admitted it.
        let trace = [[0], [1], [2], [0], [1], [2]];
        assert_eq!(belady(shape, &[], &trace), Ok(vec![1, 1, 1, 0, 0, 1]));
        assert_eq!(belady(shape, &[1, 3], &trace), Ok(vec![1, 0, 1, 0, 0, 1]));
        assert_eq!(belady(LayerShape { capacity: 0, ..shape }, &[], &[[0], [0]]), Ok(vec![1, 1]));
    }

    #[test]
    fn impossible_traces_are_refused() {
        let shape = LayerShape { experts: 4, experts_per_token: 2, capacity: 2 };
        assert!(belady(shape, &[], &[vec![0, 4]]).is_err());
        assert!(belady(shape, &[], &[vec![1, 1]]).is_err());
        assert!(belady(shape, &[], &[vec![0, 1, 2]]).is_err());
        assert!(belady(shape, &[0, 1, 2], &[vec![0, 1]]).is_err());
    }
}
