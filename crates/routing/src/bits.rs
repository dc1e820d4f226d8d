//! A set of expert ids as bits: which experts the token at hand chose. Comes out in ascending order without sorting.

/// Ids below the size given at the start.
#[derive(Debug, Clone)]
pub(crate) struct Bits {
    words: Vec<u64>,
}

impl Bits {
    /// An empty set for ids below `experts`.
    pub(crate) fn new(experts: usize) -> Self {
        Self { words: vec![0; experts.div_ceil(64)] }
    }

    pub(crate) fn insert(&mut self, expert: u32) {
        self.words[expert as usize / 64] |= 1 << (expert % 64);
    }

    pub(crate) fn contains(&self, expert: u32) -> bool {
        self.words[expert as usize / 64] >> (expert % 64) & 1 == 1
    }

    pub(crate) fn clear(&mut self) {
        self.words.fill(0);
    }

    /// The ids, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(at, &word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                (left != 0).then(|| {
                    let expert = (at * 64) as u32 + left.trailing_zeros();
                    left &= left - 1;
                    expert
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_out_in_order_and_once() {
        let mut bits = Bits::new(130);
        for expert in [129, 64, 0, 63, 64] {
            bits.insert(expert);
        }
        assert_eq!(bits.iter().collect::<Vec<_>>(), [0, 63, 64, 129]);
        assert!(bits.contains(63) && !bits.contains(62) && !bits.contains(128));
        bits.clear();
        assert_eq!(bits.iter().count(), 0);
    }
}
