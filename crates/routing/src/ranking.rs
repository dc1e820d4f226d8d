//! Ranking experts by score: highest first, ties by the lower id, -0 and 0 equal (METHOD.md, "One token in one layer", 2).
//!
//! An expert whose score is minus infinity is no candidate and never comes up.

use std::cmp::Ordering;

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

/// Scores looked at together: a group without a winner costs one comparison that vectorises.
const GROUP: usize = 8;

/// Writes the best `count` candidates to `best`, strongest first (fewer if there are fewer candidates).
///
/// Ids ascend and only a strictly higher score displaces, so that ties fall to the lower id by themselves.
pub(crate) fn best(scores: &[f32], count: usize, best: &mut Vec<Ranked>) {
    best.clear();
    if count == 0 {
        return;
    }
    let mut bar = f32::NEG_INFINITY;
    for (group, chunk) in scores.chunks(GROUP).enumerate() {
        if chunk.iter().fold(false, |any, &score| any | (score > bar)) {
            for (lane, &score) in chunk.iter().enumerate() {
                if score > bar {
                    insert(best, count, Ranked { score, expert: (group * GROUP + lane) as u32 });
                    if best.len() == count {
                        bar = best[count - 1].score;
                    }
                }
            }
        }
    }
}

/// Puts `new` behind all that score at least as much, dropping the last if `best` is full.
fn insert(best: &mut Vec<Ranked>, count: usize, new: Ranked) {
    if best.len() < count {
        best.push(new);
    }
    let mut at = best.len() - 1;
    while at > 0 && best[at - 1].score < new.score {
        best[at] = best[at - 1];
        at -= 1;
    }
    best[at] = new;
}

/// Writes the best `count` candidates to `ranked` like [`best`], for counts near the number of experts.
pub(crate) fn rank(scores: &[f32], count: usize, ranked: &mut Vec<Ranked>) {
    ranked.clear();
    let all = scores.iter().zip(0..).map(|(&score, expert)| Ranked { score, expert });
    ranked.extend(all.filter(|one| one.score > f32::NEG_INFINITY));
    if count < ranked.len() {
        ranked.select_nth_unstable_by(count, |a, b| by_rank(*a, *b));
        ranked.truncate(count);
    }
    ranked.sort_unstable_by(|a, b| by_rank(*a, *b));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn partial_selection_equals_a_full_sort(
            // Few distinct values, so that ties, signed zeros and holes are common.
            scores in prop::collection::vec(prop::sample::select(vec![-1.0, -0.0, 0.0, 0.5, 2.0, f32::NEG_INFINITY]), 1..70),
            count in 0_usize..80,
        ) {
            let mut sorted: Vec<(usize, f32)> =
                scores.iter().copied().enumerate().filter(|(_, score)| score.is_finite()).collect();
            sorted.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
            let expected: Vec<u32> = sorted.iter().take(count).map(|(expert, _)| *expert as u32).collect();
            let mut found = Vec::new();
            for select in [best, rank] {
                select(&scores, count, &mut found);
                prop_assert_eq!(found.iter().map(|one| one.expert).collect::<Vec<_>>(), expected.clone());
                prop_assert!(found.iter().all(|one| one.score == scores[one.expert as usize]));
            }
        }
    }
}
