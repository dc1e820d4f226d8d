//! GPT-2's spelling of bytes: each of the 256 bytes is one printable character, so that any text is a string of letters
//! without spaces. Printable Latin-1 characters spell themselves, the other 68 bytes are U+0100 to U+0143 in order.

const FIRST_SUBSTITUTE: u32 = 0x100;

/// The letter that spells `byte` in vocabularies of kind gpt2.
pub const fn letter(byte: u8) -> char {
    LETTERS[byte as usize]
}

/// The byte that `letter` spells.
pub(super) fn byte(letter: char) -> Option<u8> {
    let code = letter as u32;
    if code >= FIRST_SUBSTITUTE {
        return SUBSTITUTED.get((code - FIRST_SUBSTITUTE) as usize).copied();
    }
    let byte = code as u8; // under 0x100
    spells_itself(byte).then_some(byte)
}

/// The bytes that `text` spells; `None` if a character of it spells none.
pub(super) fn bytes(text: &str) -> Option<Vec<u8>> {
    text.chars().map(byte).collect()
}

const fn spells_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The bytes that do not spell themselves, in order.
const SUBSTITUTED: [u8; 68] = {
    let mut bytes = [0; 68];
    let (mut byte, mut count) = (0, 0);
    while byte < 256 {
        if !spells_itself(byte as u8) {
            bytes[count] = byte as u8;
            count += 1;
        }
        byte += 1;
    }
    bytes
};

const LETTERS: [char; 256] = {
    let mut letters = ['\0'; 256];
    let mut byte = 0;
    while byte < 256 {
        letters[byte] = byte as u8 as char; // Latin-1 is the first 256 code points
        byte += 1;
    }
    let mut count = 0;
    while count < SUBSTITUTED.len() {
        letters[SUBSTITUTED[count] as usize] = match char::from_u32(FIRST_SUBSTITUTE + count as u32) {
            Some(letter) => letter,
            None => panic!("U+0100 to U+0143 are characters"),
        };
        count += 1;
    }
    letters
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_letter_of_its_own() {
        for value in 0..=255 {
            assert_eq!(byte(letter(value)), Some(value));
        }
        let spelled = (0..0x20_0000).filter_map(char::from_u32).filter(|&c| byte(c).is_some()).count();
        assert_eq!(spelled, 256);
    }

    #[test]
    fn letters_are_those_that_vocabularies_use() {
        assert_eq!(letter(b' '), 'Ġ');
        assert_eq!(letter(b'\n'), 'Ċ');
        assert_eq!(letter(b'a'), 'a');
        assert_eq!(letter(0xAD), 'Ń'); // the last one
        assert_eq!(bytes("Ã©").unwrap(), "é".as_bytes());
        assert_eq!(bytes("a b"), None);
    }
}
