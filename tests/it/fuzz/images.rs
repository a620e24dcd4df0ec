//! Picture files with bytes changed, cut, repeated and taken from one another.

use std::cell::Cell;

use darkroom::images::{InputLimits, read_mask, read_rgb};
use proptest::prelude::*;

use super::{runner, within_memory};
use crate::support::drafts::fixtures;

/// One change of a file; places and lengths are shares of the file in 65536ths.
#[derive(Clone, Debug)]
enum Change {
    Set {
        at: u16,
        byte: u8,
    },
    Flip {
        at: u16,
        bit: u8,
    },
    /// Four bytes, as sizes are written.
    Word {
        at: u16,
        word: u32,
        is_little: bool,
    },
    Cut {
        at: u16,
    },
    Drop {
        at: u16,
        len: u16,
    },
    Repeat {
        at: u16,
        len: u16,
    },
    /// From another of the files.
    Graft {
        at: u16,
        from: u16,
        len: u16,
        file: usize,
    },
}

fn changes(files: usize) -> impl Strategy<Value = Vec<Change>> {
    let place = any::<u16>;
    let word = prop_oneof![
        Just(0),
        Just(1),
        Just(u32::MAX),
        Just(0x7fff_ffff),
        Just(0xffff),
        Just(65_535 << 16),
        any::<u32>()
    ];
    let change = prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|(at, byte)| Change::Set { at, byte }),
        4 => (place(), 0..8u8).prop_map(|(at, bit)| Change::Flip { at, bit }),
        // Most of what decides is in the first bytes.
        4 => (0..4000u16, any::<u8>()).prop_map(|(at, byte)| Change::Set { at, byte }),
        3 => (prop_oneof![place(), 0..4000u16], word, any::<bool>()).prop_map(|(at, word, is_little)| Change::Word { at, word, is_little }),
        1 => place().prop_map(|at| Change::Cut { at }),
        1 => (place(), 0..3000u16).prop_map(|(at, len)| Change::Drop { at, len }),
        1 => (place(), 0..3000u16).prop_map(|(at, len)| Change::Repeat { at, len }),
        1 => (place(), place(), 0..9000u16, 0..files).prop_map(|(at, from, len, file)| Change::Graft { at, from, len, file }),
    ];
    prop::collection::vec(change, 1..6)
}

fn share(of: usize, at: u16) -> usize {
    of * usize::from(at) / 65_536
}

fn apply(bytes: &mut Vec<u8>, change: &Change, files: &[(String, Vec<u8>)]) {
    let place = |at: u16| share(bytes.len(), at);
    let stretch = |at: u16, len: u16| place(at)..(place(at) + share(bytes.len(), len) + 1).min(bytes.len());
    match *change {
        _ if bytes.is_empty() => {}
        Change::Set { at, byte } => {
            let at = place(at);
            bytes[at] = byte;
        }
        Change::Flip { at, bit } => {
            let at = place(at);
            bytes[at] ^= 1 << bit;
        }
        Change::Word { at, word, is_little } => {
            let word = if is_little { word.to_le_bytes() } else { word.to_be_bytes() };
            let at = place(at);
            bytes.iter_mut().skip(at).zip(word).for_each(|(byte, new)| *byte = new);
        }
        Change::Cut { at } => bytes.truncate(place(at)),
        Change::Drop { at, len } => drop(bytes.drain(stretch(at, len))),
        Change::Repeat { at, len } => {
            let (at, copy) = (place(at), bytes[stretch(at, len)].to_vec());
            drop(bytes.splice(at..at, copy));
        }
        Change::Graft { at, from, len, file } => {
            let other = &files[file].1;
            let from = share(other.len(), from);
            let piece = &other[from..(from + share(other.len(), len)).min(other.len())];
            let at = place(at);
            drop(bytes.splice(at..at, piece.iter().copied()));
        }
    }
}

/// Makes a PNG's checksums right again, so that what was changed is read.
fn mend(bytes: &mut [u8]) {
    let mut at = 8;
    while let Some(len) = bytes.get(at..at + 4) {
        let len = u32::from_be_bytes([len[0], len[1], len[2], len[3]]) as usize;
        let Some(chunk) = bytes.get(at + 4..(at + 8).saturating_add(len)) else { return };
        let crc = crate::golden::crc32(chunk).to_be_bytes();
        let end = at + 8 + len;
        match bytes.get_mut(end..end + 4) {
            Some(slot) => slot.copy_from_slice(&crc),
            None => return,
        }
        at = end + 4;
    }
}

fn files() -> Vec<(String, Vec<u8>)> {
    let folder = std::fs::read_dir(fixtures().join("images/files")).unwrap();
    let mut files: Vec<(String, Vec<u8>)> = folder
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() > 25, "the fixtures are not there");
    files
}

#[test]
fn a_mutated_picture_is_read_or_refused_in_bounded_memory() {
    // The largest picture allowed takes 16 bits a channel, and once more while it is made plain.
    within_memory("fuzz::images::a_mutated_picture_is_read_or_refused_in_bounded_memory", 1200, || {
        let files = files();
        let limits = InputLimits::default();
        let strategy = (0..files.len(), changes(files.len()), any::<bool>());
        let (read, refused) = (Cell::new(0u32), Cell::new(0u32));
        runner(3000)
            .run(&strategy, |(file, changes, is_mended)| {
                let mut bytes = files[file].1.clone();
                changes.iter().for_each(|change| apply(&mut bytes, change, &files));
                if is_mended && bytes.starts_with(b"\x89PNG") {
                    mend(&mut bytes);
                }
                match (read_rgb(&bytes, limits), read_mask(&bytes, limits)) {
                    (Ok(rgb), Ok(mask)) => {
                        prop_assert_eq!(rgb.size(), mask.size());
                        prop_assert!(u64::from(rgb.width()) * u64::from(rgb.height()) <= limits.max_pixels);
                        read.set(read.get() + 1);
                    }
                    (Err(rgb), Err(mask)) => {
                        prop_assert_eq!(rgb, mask);
                        refused.set(refused.get() + 1);
                    }
                    (rgb, mask) => prop_assert!(false, "{rgb:?} but {mask:?}"),
                }
                Ok(())
            })
            .unwrap();
        let (read, refused) = (read.get(), refused.get());
        println!("{read} read, {refused} refused");
        assert!(read > 0 && refused > 0, "{read} read, {refused} refused: the changes are of one kind only");
    });
}
