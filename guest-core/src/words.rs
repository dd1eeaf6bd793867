//! The command line: words that are separated by spaces, some with a value after `=`.

/// The words of a command line.
#[derive(Clone, Copy)]
pub struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    /// Reads `line`.
    pub const fn new(line: &'a str) -> Self {
        Self(line)
    }

    /// The whole line.
    pub const fn line(self) -> &'a str {
        self.0
    }

    /// Whether `word` stands on the line by itself.
    pub fn has(self, word: &str) -> bool {
        self.0.split_ascii_whitespace().any(|w| w == word)
    }

    /// What follows `name=`, in the last word that begins so.
    pub fn value(self, name: &str) -> Option<&'a str> {
        self.0
            .split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .next_back()
    }
}

/// Reads a number, decimal or with `0x` in front.
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_values_are_found() {
        let words = Words::new(" tour  then=shell then=poweroff device=0x9000 testy");
        assert!(words.has("tour") && !words.has("test") && !words.has("then"));
        assert_eq!(words.value("then"), Some("poweroff"));
        assert_eq!(words.value("test"), None);
        assert_eq!(words.value("device").and_then(number), Some(0x9000));
        assert_eq!(number("0xzz"), None);
    }
}
