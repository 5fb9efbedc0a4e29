//! Layers come as plain archives, by gzip or by zstd; the first bytes tell. However small a layer is, what comes out of it is bounded.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// The most bytes of one unpacked layer.
const MAX_LAYER: u64 = 64 << 30;
/// What may come out of any layer, however small it is.
const FREE: u64 = 256 << 20;
/// How much larger than the layer the rest may be. Real layers are below 20; gzip can do 1032, zstd has no limit.
const MAX_RATIO: u64 = 100;

/// The plain archive in a compressed layer of `size` bytes.
///
/// # Errors
/// What reading reports.
pub fn plain<'a, R: Read + 'a>(layer: R, size: u64) -> io::Result<Box<dyn Read + 'a>> {
    let mut layer = BufReader::with_capacity(256 * 1024, layer);
    let first = layer.fill_buf()?;
    let limit = MAX_LAYER.min(FREE.max(size.saturating_mul(MAX_RATIO)));
    let plain: Box<dyn Read + 'a> = match first {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(layer)),
        // A frame, or a frame to skip.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(Zstd { source: layer, decoder: FrameDecoder::new(), in_frame: false })
        }
        _ => Box::new(layer),
    };
    Ok(Box::new(Bounded { inner: plain, left: limit, limit }))
}

/// All frames of a zstd stream, one behind the other (RFC 8878, section 3.1).
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let invalid =
            |error: FrameDecoderError| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        loop {
            if self.in_frame {
                while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                    let blocks = BlockDecodingStrategy::UptoBlocks(1);
                    self.decoder.decode_blocks(&mut self.source, blocks).map_err(invalid)?;
                }
                let read = self.decoder.read(buffer)?;
                if read > 0 || buffer.is_empty() {
                    return Ok(read);
                }
                self.in_frame = false;
            }
            if self.source.fill_buf()?.is_empty() {
                return Ok(0);
            }
            match self.decoder.init(&mut self.source) {
                Ok(()) => self.in_frame = true,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut self.source.by_ref().take(length), &mut io::sink())? < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(invalid(error)),
            }
        }
    }
}

/// A reader that gives up where too much comes out.
struct Bounded<R> {
    inner: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "more than {} MiB come out of it: it looks like a decompression bomb",
                    self.limit >> 20
                ),
            )
        })?;
        Ok(read)
    }
}
