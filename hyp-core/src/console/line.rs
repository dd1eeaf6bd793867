//! Who says what on the one serial line.
//!
//! Each line starts with its speaker's prefix. When a speaker has left a line open (a prompt) and another one speaks, the open
//! line is ended first; so lines are never mixed, and a prompt still appears at once.
//!
//! A carriage return goes back to where the speaker's own part of the line begins: after the prefix, which is written anew. Before a newline it
//! means nothing (terminals' drivers put one there).

use core::fmt::Write;

use crate::address::DomainId;

/// Who writes.
// Numbered from 1 so that "nobody" is all zeros, as in `paging::Unfinished`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Speaker {
    /// Penumbra's own log.
    Hypervisor = 1,
    /// A domain.
    Domain(DomainId) = 2,
}

/// Whose line is open.
pub struct SerialLine {
    open: Option<Speaker>,
    /// Whether a carriage return was the last that came of the open line.
    returned: bool,
}

impl Default for SerialLine {
    fn default() -> Self {
        Self::new()
    }
}

impl SerialLine {
    /// At the start of a line.
    pub const fn new() -> Self {
        Self { open: None, returned: false }
    }

    /// Writes what `speaker` says through `out`, with prefixes where lines begin.
    pub fn write(&mut self, speaker: Speaker, bytes: &[u8], out: &mut dyn FnMut(&[u8])) {
        if bytes.is_empty() {
            return;
        }
        if self.open.is_some_and(|open| open != speaker) {
            out(b"\n");
            (self.open, self.returned) = (None, false);
        }
        for piece in bytes.split_inclusive(|byte| matches!(*byte, b'\n' | b'\r')) {
            self.write_piece(speaker, piece, out);
        }
    }

    /// Writes a piece of which only the last byte can be the end of a line, or a carriage return.
    fn write_piece(&mut self, speaker: Speaker, piece: &[u8], out: &mut dyn FnMut(&[u8])) {
        let shown = piece.strip_suffix(b"\r").unwrap_or(piece);
        if !shown.is_empty() {
            if self.returned && shown != b"\n" {
                out(b"\r");
            }
            if self.open.is_none() || self.returned && shown != b"\n" {
                prefix(speaker, out);
            }
            out(shown);
            self.open = if shown.ends_with(b"\n") { None } else { Some(speaker) };
            self.returned = false;
        }
        self.returned |= shown.len() != piece.len() && self.open.is_some();
    }
}

/// Bytes of a domain's line that wait for its end.
const LINE_SIZE: usize = 256;

/// Collects a domain's bytes until a line is whole, or too long.
pub struct LineBuffer {
    bytes: [u8; LINE_SIZE],
    length: usize,
}

impl Default for LineBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl LineBuffer {
    /// Nothing waits.
    pub const fn new() -> Self {
        Self { bytes: [0; LINE_SIZE], length: 0 }
    }

    /// Adds bytes; `out` gets each line that is whole now. Only printable characters, tabs and the ends of lines come through: a
    /// carriage return or an escape sequence could make a line look like somebody else's.
    pub fn push(&mut self, bytes: &[u8], out: &mut dyn FnMut(&[u8])) {
        for byte in bytes.iter().filter(|byte| **byte != b'\r') {
            let shown = if matches!(*byte, b' '..=b'~' | b'\t' | b'\n') { *byte } else { b'?' };
            if let Some(slot) = self.bytes.get_mut(self.length) {
                *slot = shown;
                self.length = self.length.saturating_add(1);
            }
            if *byte == b'\n' || self.length >= LINE_SIZE {
                self.flush(out);
            }
        }
    }

    /// Passes on what waits.
    pub fn flush(&mut self, out: &mut dyn FnMut(&[u8])) {
        if let Some(line) = self.bytes.get(..self.length) {
            out(line);
        }
        self.length = 0;
    }
}

fn prefix(speaker: Speaker, out: &mut dyn FnMut(&[u8])) {
    struct Adapter<'a>(&'a mut dyn FnMut(&[u8]));
    impl Write for Adapter<'_> {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            (self.0)(text.as_bytes());
            Ok(())
        }
    }
    let mut out = Adapter(out);
    // The adapter never fails.
    let _ = match speaker {
        Speaker::Hypervisor => out.write_str("(PEN) "),
        Speaker::Domain(domain) => write!(out, "({domain:?}) "),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_waits_for_its_end_but_not_for_ever() {
        let mut pieces = Vec::new();
        let mut buffer = LineBuffer::new();
        let mut push = |bytes: &[u8]| buffer.push(bytes, &mut |line| pieces.push(line.to_vec()));
        push(b"on");
        push(b"e\ntwo");
        push(&[b'x'; LINE_SIZE]);
        assert_eq!(pieces.len(), 2);
        assert_eq!((&pieces[0][..], pieces[1].len()), (&b"one\n"[..], LINE_SIZE));
    }

    #[test]
    fn no_domain_can_forge_another_ones_line() {
        let mut text = Vec::new();
        let mut line = SerialLine::new();
        let mut buffer = LineBuffer::new();
        buffer.push(b"x\r(PEN) d0 \x1b[2Kis gone\tor so\r\n", &mut |piece| {
            line.write(Speaker::Domain(DomainId::new(1)), piece, &mut |out| text.extend_from_slice(out));
        });
        assert_eq!(core::str::from_utf8(&text).unwrap(), "(d1) x(PEN) d0 ?[2Kis gone\tor so\n");
    }

    #[test]
    fn a_carriage_return_leaves_the_prefix_alone() {
        let mut text = Vec::new();
        let mut line = SerialLine::new();
        let speaker = Speaker::Domain(DomainId::new(0));
        let mut say = |bytes: &[u8]| line.write(speaker, bytes, &mut |out| text.extend_from_slice(out));
        say(b"one\r\ntwo\r");
        say(b"\n\r\r\n\rprompt> ");
        say(b"ab\r\r");
        say(b"prompt> a\x08\r\nforged\r(PEN) x\n");
        let expected =
            "(d0) one\n(d0) two\n(d0) \n(d0) prompt> ab\r(d0) prompt> a\x08\n(d0) forged\r(d0) (PEN) x\n";
        assert_eq!(core::str::from_utf8(&text).unwrap(), expected);
    }

    #[test]
    fn an_interrupted_line_is_ended_and_begun_anew() {
        let mut text = Vec::new();
        let mut line = SerialLine::new();
        let mut say =
            |speaker, bytes: &[u8]| line.write(speaker, bytes, &mut |out| text.extend_from_slice(out));
        let (one, two) = (Speaker::Domain(DomainId::new(1)), Speaker::Hypervisor);
        say(one, b"a\nprompt> ");
        say(two, b"news\n");
        say(one, b"");
        say(one, b"typed");
        say(one, b"\n");
        assert_eq!(core::str::from_utf8(&text).unwrap(), "(d1) a\n(d1) prompt> \n(PEN) news\n(d1) typed\n");
    }
}
