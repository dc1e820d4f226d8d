//! Ranking experts by score: highest first, ties by the lower id, -0 and 0 equal (METHOD.md, "One token in one layer", 2).
//!
//! An expert whose score is minus infinity is no candidate and never comes up. Loops run over fixed lanes, so that the compiler
//! may use SIMD: what they compute does not depend on the order.

use std::cmp::Ordering;

/// Scores looked at side by side.
const LANES: usize = 16;

/// One expert with the score it is ranked by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ranked {
    pub(crate) score: f32,
    pub(crate) expert: u32,
}

/// `Less` if `a` ranks before `b`.
pub(crate) fn by_rank(a: Ranked, b: Ranked) -> Ordering {
    b.score.partial_cmp(&a.score).expect("scores are checked to be finite").then(a.expert.cmp(&b.expert))
}

/// The lowest and the highest score; `None` if one is not finite.
pub(crate) fn extremes(scores: &[f32]) -> Option<(f32, f32)> {
    let mut lowest = [f32::INFINITY; LANES];
    let mut highest = [f32::NEG_INFINITY; LANES];
    // A finite number times 0 is 0, anything else NaN, and NaN stays.
    let mut zero = [0.0; LANES];
    let mut look = |scores: &[f32]| {
        for (lane, &score) in scores.iter().enumerate() {
            lowest[lane] = lower(lowest[lane], score);
            highest[lane] = higher(highest[lane], score);
            zero[lane] += score * 0.0;
        }
    };
    let (chunks, rest) = scores.as_chunks::<LANES>();
    chunks.iter().for_each(|chunk| look(chunk));
    look(rest);
    let finite = zero.iter().sum::<f32>() == 0.0;
    finite.then(|| (across(lowest, lower), across(highest, higher)))
}

/// Writes the best `count` candidates to `best`, strongest first (fewer if there are fewer candidates).
///
/// Lane l sees experts l, l + 16, l + 32 and so on. The `count`-th highest of the lanes' maxima is a bar that at least `count`
/// experts reach and few others do; only those are sorted. Insertion into a list of the best so far would mispredict a branch
/// for each of K·(1 + ln(N/K)) experts.
pub(crate) fn best(scores: &[f32], count: usize, best: &mut Vec<Ranked>) {
    best.clear();
    if count == 0 {
        return;
    }
    let bar = bar(scores, count);
    let (chunks, rest) = scores.as_chunks::<LANES>();
    for (at, chunk) in chunks.iter().enumerate() {
        insert(scores, at * LANES, reaching(chunk, bar), count, best);
    }
    insert(scores, chunks.len() * LANES, reaching(rest, bar), count, best);
}

/// Writes the best `count` candidates to `ranked` like [`best`], also where that is most of them.
pub(crate) fn rank(scores: &[f32], count: usize, keys: &mut Vec<u64>, ranked: &mut Vec<Ranked>) {
    if count <= LANES {
        return best(scores, count, ranked);
    }
    write_keys(scores, keys);
    if count < keys.len() {
        keys.select_nth_unstable(count);
        keys.truncate(count);
    }
    keys.sort_unstable();
    ranked.clear();
    ranked.extend(keys.iter().map(|&key| Ranked { score: scores[key as u32 as usize], expert: key as u32 }));
}

/// The candidate at place `place` (from 0) of the ranking; there must be more candidates than that.
pub(crate) fn at_place(scores: &[f32], place: usize, keys: &mut Vec<u64>) -> u32 {
    write_keys(scores, keys);
    *keys.select_nth_unstable(place).1 as u32
}

/// A score that at least `count` candidates reach; minus infinity if there are not so many.
fn bar(scores: &[f32], count: usize) -> f32 {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let mut look = |scores: &[f32]| {
        for (lane, &score) in scores.iter().enumerate() {
            maxima[lane] = higher(maxima[lane], score);
        }
    };
    let (chunks, rest) = scores.as_chunks::<LANES>();
    chunks.iter().for_each(|chunk| look(chunk));
    look(rest);
    // Equal maxima go together, which can only lower the bar.
    let mut bar = across(maxima, higher);
    for _ in 1..count.min(LANES + 1) {
        for maximum in &mut maxima {
            *maximum = if *maximum == bar { f32::NEG_INFINITY } else { *maximum };
        }
        bar = across(maxima, higher);
    }
    bar
}

/// One bit for each score that reaches the bar.
fn reaching(scores: &[f32], bar: f32) -> u32 {
    scores.iter().enumerate().fold(0, |bits, (lane, &score)| bits | u32::from(score >= bar) << lane)
}

/// Inserts the experts of `bits`, by ascending id, into the `count` best: behind all that score at least as much.
fn insert(scores: &[f32], first: usize, mut bits: u32, count: usize, best: &mut Vec<Ranked>) {
    while bits != 0 {
        let expert = first + bits.trailing_zeros() as usize;
        bits &= bits - 1;
        let new = Ranked { score: scores[expert], expert: expert as u32 };
        if new.score == f32::NEG_INFINITY {
            continue;
        }
        if best.len() < count {
            best.push(new);
        } else if best[count - 1].score >= new.score {
            continue;
        }
        let mut at = best.len() - 1;
        while at > 0 && best[at - 1].score < new.score {
            best[at] = best[at - 1];
            at -= 1;
        }
        best[at] = new;
    }
}

/// One number for each candidate that sorts by rank: the score's bits so that a higher score is a lower number, then the id.
fn write_keys(scores: &[f32], keys: &mut Vec<u64>) {
    keys.clear();
    for (&score, expert) in scores.iter().zip(0_u32..) {
        if score > f32::NEG_INFINITY {
            let bits = (score + 0.0).to_bits(); // -0 + 0 = 0
            let descending = if bits >> 31 == 0 { !bits & !(1 << 31) } else { bits };
            keys.push(u64::from(descending) << 32 | u64::from(expert));
        }
    }
}

fn lower(a: f32, b: f32) -> f32 {
    if b < a { b } else { a }
}

fn higher(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Folds the lanes as a tree.
fn across(mut lanes: [f32; LANES], fold: fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = fold(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few distinct values, so that ties, signed zeros and holes are common, or many.
    fn scores() -> impl Strategy<Value = Vec<f32>> {
        let few = prop::sample::select(vec![-1.0, -0.0, 0.0, 0.5, 2.0, f32::NEG_INFINITY]);
        prop_oneof![prop::collection::vec(few, 1..150), prop::collection::vec(-9.0_f32..9.0, 1..150)]
    }

    proptest! {
        #[test]
        fn partial_selections_equal_a_full_sort(scores in scores(), count in 0_usize..160) {
            let mut sorted: Vec<(usize, f32)> =
                scores.iter().copied().enumerate().filter(|(_, score)| score.is_finite()).collect();
            sorted.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
            let expected: Vec<u32> = sorted.iter().map(|(expert, _)| *expert as u32).collect();
            let first = &expected[..count.min(expected.len())];
            let (mut found, mut keys) = (Vec::new(), Vec::new());
            best(&scores, count, &mut found);
            prop_assert_eq!(found.iter().map(|one| one.expert).collect::<Vec<_>>(), first);
            rank(&scores, count, &mut keys, &mut found);
            prop_assert_eq!(found.iter().map(|one| one.expert).collect::<Vec<_>>(), first);
            prop_assert!(found.iter().all(|one| one.score == scores[one.expert as usize]));
            if let Some(&expert) = expected.get(count) {
                prop_assert_eq!(at_place(&scores, count, &mut keys), expert);
            }
        }

        #[test]
        fn extremes_are_those_of_a_plain_scan(scores in scores(), bad in prop::option::of((0_usize..150, 0_usize..3))) {
            let mut scores: Vec<f32> = scores.into_iter().filter(|score| score.is_finite()).chain([0.25]).collect();
            let lowest = scores.iter().copied().fold(f32::INFINITY, f32::min);
            let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(extremes(&scores), Some((lowest, highest)));
            if let Some((at, which)) = bad {
                let at = at % scores.len();
                scores[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][which];
                prop_assert_eq!(extremes(&scores), None);
            }
        }
    }
}
