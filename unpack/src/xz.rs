//! XZ, by `xz4rust`: LZMA2 behind the filters that the format has, each check but SHA-256.
//!
//! The dictionary is taken from the heap, as large as the file asks for; the caller has seen to it that there is as much.

use alloc::boxed::Box;
use alloc::vec;

use xz4rust::{XzDecoder, XzError, XzNextBlockResult};

use crate::Error;
use crate::payload::{Format, xz_dictionary};

/// Decodes one stream; bytes that came out.
pub fn decode(content: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let size = xz_dictionary(content).and_then(|size| usize::try_from(size).ok());
    let mut dictionary = vec![0; size.ok_or(Error::BadHeader(Format::Xz))?];
    let mut decoder = Box::new(XzDecoder::with_fixed_size_dict(&mut dictionary));
    let (mut read, mut written) = (0usize, 0usize);
    loop {
        let input = content.get(read..).unwrap_or(&[]);
        let output = out.get_mut(written..).unwrap_or(&mut []);
        let step = decoder.decode(input, output).map_err(explain)?;
        let (consumed, produced) = (step.input_consumed(), step.output_produced());
        read = read.saturating_add(consumed);
        written = written.saturating_add(produced);
        match step {
            XzNextBlockResult::EndOfStream(..) => return Ok(written),
            // It has all there is, and room only for what is right.
            XzNextBlockResult::NeedMoreData(0, 0) if read < content.len() => {
                return Err(Error::WrongLength(Format::Xz));
            }
            XzNextBlockResult::NeedMoreData(0, 0) => return Err(Error::Corrupt(Format::Xz)),
            XzNextBlockResult::NeedMoreData(..) => {}
        }
    }
}

fn explain(error: XzError) -> Error {
    match error {
        XzError::DictionaryTooLarge(_)
        | XzError::UnsupportedCheckType(_)
        | XzError::UnsupportedBcjFilter(_)
        | XzError::UnsupportedBlockHeaderOption
        | XzError::UnsupportedStreamHeaderOption => Error::BadHeader(Format::Xz),
        _ => Error::Corrupt(Format::Xz),
    }
}
