//! A queue of expert ids with constant-time append, removal anywhere and membership: recency lists and FIFO queues.
//!
//! Not a cache: it knows no capacity. Invariant: every id is linked at most once; nothing is allocated after `new`.

/// A doubly linked list threaded through arrays; slot `experts` is the sentinel before the first and after the last.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    next: Vec<u32>,
    previous: Vec<u32>,
    member: Vec<bool>,
    len: usize,
}

impl Order {
    /// An empty queue for ids below `experts`.
    pub(crate) fn new(experts: usize) -> Self {
        let sentinel = u32::try_from(experts).expect("layer shapes limit the number of experts");
        Self {
            next: vec![sentinel; experts + 1],
            previous: vec![sentinel; experts + 1],
            member: vec![false; experts],
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn contains(&self, expert: u32) -> bool {
        self.member[expert as usize]
    }

    /// One flag per expert id: is it in the queue?
    pub(crate) fn members(&self) -> &[bool] {
        &self.member
    }

    /// From the first (least recent, oldest) to the last.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let sentinel = self.sentinel();
        let mut at = sentinel;
        std::iter::from_fn(move || {
            at = self.next[at as usize];
            (at != sentinel).then_some(at)
        })
    }

    /// Appends `expert`, which must not be a member.
    pub(crate) fn push_back(&mut self, expert: u32) {
        debug_assert!(!self.contains(expert), "expert {expert} is already queued");
        let sentinel = self.sentinel();
        let last = self.previous[sentinel as usize];
        self.next[last as usize] = expert;
        self.previous[expert as usize] = last;
        self.next[expert as usize] = sentinel;
        self.previous[sentinel as usize] = expert;
        self.member[expert as usize] = true;
        self.len += 1;
    }

    /// Takes `expert` out; it must be a member.
    pub(crate) fn remove(&mut self, expert: u32) {
        debug_assert!(self.contains(expert), "expert {expert} is not queued");
        let (before, after) = (self.previous[expert as usize], self.next[expert as usize]);
        self.next[before as usize] = after;
        self.previous[after as usize] = before;
        self.member[expert as usize] = false;
        self.len -= 1;
    }

    pub(crate) fn clear(&mut self) {
        let sentinel = self.sentinel();
        self.next[sentinel as usize] = sentinel;
        self.previous[sentinel as usize] = sentinel;
        self.member.fill(false);
        self.len = 0;
    }

    fn sentinel(&self) -> u32 {
        self.member.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_insertion_order_through_removals() {
        let mut order = Order::new(5);
        for expert in [3, 0, 4, 1] {
            order.push_back(expert);
        }
        order.remove(0);
        order.remove(3);
        order.push_back(3);
        assert_eq!(order.iter().collect::<Vec<_>>(), [4, 1, 3]);
        assert_eq!(order.members(), [false, true, false, true, true]);
        order.remove(3);
        order.push_back(2);
        assert_eq!(order.iter().collect::<Vec<_>>(), [4, 1, 2]);
        assert_eq!(order.len(), 3);
        order.clear();
        assert_eq!(order.iter().count(), 0);
        order.push_back(0);
        assert_eq!(order.iter().collect::<Vec<_>>(), [0]);
    }
}
