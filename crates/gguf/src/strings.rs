//! An array of strings in two allocations: vocabularies have hundreds of thousands of short ones.

/// Strings of any bytes; GGUF does not demand UTF-8.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Strings {
    bytes: Vec<u8>,
    /// Where each string ends in `bytes`.
    ends: Vec<u32>,
}

impl Strings {
    /// No strings.
    pub fn new() -> Strings {
        Strings::default()
    }

    /// Adds a string.
    ///
    /// # Panics
    ///
    /// If all strings together exceed `u32::MAX` bytes. (A file's header is far smaller.)
    pub fn push(&mut self, string: &[u8]) {
        let end = u32::try_from(self.bytes.len() + string.len()).expect("strings of one array under 4 GiB");
        self.bytes.extend_from_slice(string);
        self.ends.push(end);
    }

    /// How many strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// String number `index`.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Some(&self.bytes[start..end])
    }

    /// The strings in order.
    pub fn iter(&self) -> Iter<'_> {
        Iter { strings: self, next: 0 }
    }

    /// Bytes of all strings together.
    pub fn total_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn reserve(&mut self, count: usize) {
        self.ends.reserve_exact(count);
    }

    pub(crate) fn shrink_to_fit(&mut self) {
        self.bytes.shrink_to_fit();
    }
}

/// Iterator over [`Strings`].
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    strings: &'a Strings,
    next: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let string = self.strings.get(self.next)?;
        self.next += 1;
        Some(string)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.strings.len() - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'a> IntoIterator for &'a Strings {
    type Item = &'a [u8];
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl<S: AsRef<[u8]>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(iter: I) -> Strings {
        let mut strings = Strings::new();
        for string in iter {
            strings.push(string.as_ref());
        }
        strings
    }
}

impl std::fmt::Debug for Strings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter().map(String::from_utf8_lossy)).finish()
    }
}
