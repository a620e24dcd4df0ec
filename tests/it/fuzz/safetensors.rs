//! The safetensors reader: valid files with a few bytes spoilt, headers made of plausible and absurd parts, and noise.
//!
//! The format's own reader (the `safetensors` crate) is the second opinion: what it refuses we refuse, and what we accept it
//! accepts, with the same tensors.

use std::collections::BTreeMap;

use candle_core::Device;
use darkroom::diffusion::weights::{Checkpoint, Header};
use proptest::collection::vec;
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::runner;

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// Names, dtypes with their bytes a number, and shapes of tensors that a file may hold.
fn tensors() -> impl Strategy<Value = BTreeMap<String, (&'static str, usize, Vec<usize>)>> {
    let dtype = prop::sample::select(vec![("F32", 4), ("F16", 2), ("BF16", 2), ("I64", 8), ("U8", 1), ("F8_E4M3", 1)]);
    let tensor = (dtype, vec(0usize..5, 0..4)).prop_map(|((dtype, bytes), shape)| (dtype, bytes, shape));
    prop::collection::btree_map("[a-z]{1,3}(\\.[a-z]{1,3}){0,2}", tensor, 0..6)
}

/// A whole file of these tensors, in the order of their names, and its header.
fn written(tensors: &BTreeMap<String, (&'static str, usize, Vec<usize>)>) -> (String, Vec<u8>) {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, (dtype, bytes, shape)) in tensors {
        let from = end;
        end += bytes * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [from, end]}));
    }
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let header = Value::Object(header).to_string();
    let bytes = file(&header, &vec![0x3c; end]);
    (header, bytes)
}

/// Whatever the bytes: an answer, the same as the format's own reader's.
fn compare(bytes: &[u8]) -> Result<(), TestCaseError> {
    match (Header::parse(bytes), SafeTensors::deserialize(bytes)) {
        (Ok(ours), Ok(theirs)) => {
            prop_assert_eq!(ours.tensors.len(), theirs.len());
            for tensor in &ours.tensors {
                let view = theirs.tensor(&tensor.name).unwrap();
                prop_assert_eq!(view.shape(), &tensor.shape[..]);
                prop_assert_eq!(format!("{:?}", view.dtype()), format!("{:?}", tensor.dtype));
                prop_assert_eq!(view.data(), &bytes[tensor.bytes.clone()]);
            }
        }
        (Ok(_), Err(theirs)) => prop_assert!(false, "accepted what the format's reader refuses: {theirs}"),
        (Err(ours), Ok(_)) => {
            // Where we are stricter.
            let known = ["is there twice", "does not begin with `{`", "a shape of at most 8"];
            prop_assert!(known.iter().any(|reason| ours.contains(reason)), "refused a good file: {ours}");
        }
        (Err(ours), Err(_)) => {
            prop_assert!(!ours.is_empty() && ours.len() < 2000 && !ours.contains('\n'), "no sentence: {ours:?}");
        }
    }
    Ok(())
}

#[test]
fn a_file_is_read_as_it_was_written() {
    runner(2_000)
        .run(&tensors(), |tensors| {
            let (_, bytes) = written(&tensors);
            let header = Header::parse(&bytes).map_err(TestCaseError::fail)?;
            let read: BTreeMap<_, _> = header.tensors.iter().map(|tensor| (&tensor.name, &tensor.shape)).collect();
            prop_assert_eq!(read, tensors.iter().map(|(name, (_, _, shape))| (name, shape)).collect());
            prop_assert_eq!(&header.metadata["format"], "pt");
            compare(&bytes)
        })
        .unwrap();
}

#[derive(Clone, Debug)]
enum Damage {
    Byte(prop::sample::Index, u8),
    Bit(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Truncate(prop::sample::Index),
    Append(Vec<u8>),
    Length(u64),
    Digit(prop::sample::Index, u8),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let place = |at: &prop::sample::Index| at.index(bytes.len());
        match self {
            Self::Byte(at, value) => {
                let at = place(at);
                bytes[at] = *value;
            }
            Self::Bit(at, bit) => {
                let at = place(at);
                bytes[at] ^= 1 << (bit % 8);
            }
            Self::Insert(at, more) => {
                let at = place(at);
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Remove(at, count) => {
                let at = place(at);
                bytes.drain(at..(at + count).min(bytes.len()));
            }
            Self::Truncate(at) => {
                let at = place(at);
                bytes.truncate(at);
            }
            Self::Append(more) => bytes.extend_from_slice(more),
            Self::Length(length) => {
                let whole = bytes.len().min(8);
                bytes[..whole].copy_from_slice(&length.to_le_bytes()[..whole]);
            }
            Self::Digit(at, digit) => {
                let digits: Vec<usize> = (8..bytes.len()).filter(|at| bytes[*at].is_ascii_digit()).collect();
                if !digits.is_empty() {
                    bytes[digits[at.index(digits.len())]] = b'0' + digit % 10;
                }
            }
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    let lengths = prop_oneof![
        any::<u64>(),
        prop::sample::select(vec![
            0,
            1,
            2,
            7,
            8,
            100_000_000,
            100_000_001,
            1 << 31,
            1 << 32,
            1 << 63,
            u64::MAX - 7,
            u64::MAX
        ]),
    ];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, value)| Damage::Byte(at, value)),
        (at(), any::<u8>()).prop_map(|(at, bit)| Damage::Bit(at, bit)),
        (at(), vec(any::<u8>(), 1..9)).prop_map(|(at, more)| Damage::Insert(at, more)),
        (at(), 1usize..40).prop_map(|(at, count)| Damage::Remove(at, count)),
        at().prop_map(Damage::Truncate),
        vec(any::<u8>(), 1..20).prop_map(Damage::Append),
        lengths.prop_map(Damage::Length),
        (at(), any::<u8>()).prop_map(|(at, digit)| Damage::Digit(at, digit)),
        (at(), any::<u8>()).prop_map(|(at, digit)| Damage::Digit(at, digit)),
    ]
}

#[test]
fn a_damaged_file_is_refused_or_read_as_the_formats_own_reader_does() {
    let cases = (tensors(), vec(damage(), 1..4));
    runner(4_000)
        .run(&cases, |(tensors, damages)| {
            let (_, mut bytes) = written(&tensors);
            damages.iter().for_each(|damage| damage.apply(&mut bytes));
            compare(&bytes)
        })
        .unwrap();
}

/// Numbers at the edges of what fits, and what is no number.
fn number() -> impl Strategy<Value = String> {
    let edges = [
        "0",
        "1",
        "2",
        "3",
        "4",
        "8",
        "16",
        "-1",
        "1.5",
        "1e3",
        "1e400",
        "NaN",
        "null",
        "\"4\"",
        "[]",
        "{}",
        "2147483648",
        "4294967296",
        "4611686018427387904",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "340282366920938463463374607431768211456",
    ];
    prop_oneof![3 => (0u64..20).prop_map(|n| n.to_string()), 1 => prop::sample::select(edges.to_vec()).prop_map(str::to_owned)]
}

/// Headers as text, right in their grammar more often than in their numbers.
fn absurd_header() -> impl Strategy<Value = String> {
    let dtype = prop::sample::select(vec!["F32", "F16", "BF16", "F64", "BOOL", "F4", "F6_E2M3", "F17", ""]);
    let list = |most| vec(number(), 0..most).prop_map(|numbers| format!("[{}]", numbers.join(",")));
    let name = prop::sample::select(vec!["a", "b", "c.weight", "", "\\u0000", "\\n", "\\ud800", "__metadata__", "🌇"]);
    let offsets = prop_oneof![4 => (number(), number()).prop_map(|(a, b)| format!("[{a},{b}]")), 1 => list(4)];
    let tensor = (dtype, list(11), offsets, 0u8..20).prop_map(|(dtype, shape, offsets, odd)| match odd {
        0 => format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape}}}"),
        1 => format!("{{\"dtype\":\"{dtype}\",\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":{offsets}}}"),
        2 => format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets},\"more\":[[[[]]]]}}"),
        3 => "null".to_owned(),
        _ => format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}"),
    });
    let frame = prop::sample::select(vec![("{", "}"), ("{", "}   "), (" {", "}"), ("[", "]"), ("{", ""), ("{", "}x")]);
    (frame, vec((name, tensor), 0..4)).prop_map(|((open, close), tensors)| {
        let tensors: Vec<String> = tensors.into_iter().map(|(name, tensor)| format!("\"{name}\":{tensor}")).collect();
        format!("{open}{}{close}", tensors.join(","))
    })
}

#[test]
fn an_absurd_header_is_refused_or_read_as_the_formats_own_reader_does() {
    runner(4_000)
        .run(&(absurd_header(), vec(any::<u8>(), 0..40)), |(header, data)| compare(&file(&header, &data)))
        .unwrap();
}

#[test]
fn noise_is_refused() {
    let noise = (prop_oneof![Just(false), Just(true)], vec(any::<u8>(), 0..200));
    runner(2_000)
        .run(&noise, |(short, mut bytes)| {
            if short && bytes.len() > 8 {
                bytes[1..8].fill(0);
            }
            compare(&bytes)
        })
        .unwrap();
}

/// Every tensor an accepted file names can be asked for: numbers or an error, by the tensor's name.
#[test]
fn every_tensor_of_a_damaged_file_is_given_or_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("unet")).unwrap();
    let (path, checkpoint) =
        (folder.path().join("unet/diffusion_pytorch_model.safetensors"), Checkpoint::Folder(folder.path().to_owned()));
    runner(1_000)
        .run(&(tensors(), vec(damage(), 0..3)), |(tensors, damages)| {
            let (_, mut bytes) = written(&tensors);
            damages.iter().for_each(|damage| damage.apply(&mut bytes));
            std::fs::write(&path, &bytes).unwrap();
            let weights = match checkpoint.weights("unet", &Device::Cpu) {
                Ok(weights) => weights,
                Err(error) => {
                    prop_assert!(error.to_string().contains("diffusion_pytorch_model.safetensors"), "{error}");
                    return Ok(());
                }
            };
            for tensor in Header::parse(&bytes).map_err(TestCaseError::fail)?.tensors {
                match weights.get(&tensor.name, tensor.shape.clone()) {
                    Ok(read) => prop_assert_eq!(read.dims(), &tensor.shape[..]),
                    Err(error) => prop_assert!(error.to_string().contains(&tensor.name), "{error}"),
                }
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn each_fault_is_told_with_its_tensor() {
    let tensor =
        |shape: &str, offsets: &str| format!("{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":{offsets}}}");
    let one = |shape: &str, offsets: &str| file(&format!("{{\"a.weight\":{}}}", tensor(shape, offsets)), &[0; 8]);
    let two = |first: &str, second: &str, data: usize| {
        let header = format!("{{\"a\":{},\"b\":{}}}", tensor("[2]", first), tensor("[2]", second));
        file(&header, &vec![0; data])
    };
    let mut endless = one("[2]", "[0,8]");
    endless[..8].copy_from_slice(&(1u64 << 63).to_le_bytes());
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (vec![1, 2, 3], &["3 bytes"]),
        (endless, &["9223372036854775808"]),
        (one("[2]", "[0,8]")[..20].to_vec(), &["claims", "12 are left"]),
        (file("[]", &[]), &["no JSON object"]),
        (file("{\"a\":", &[]), &["EOF"]),
        (file("{\"a\":NaN}", &[]), &["tensor `a`"]),
        (file("\u{7f}", &[]), &["no JSON object"]),
        (one("[3]", "[0,8]"), &["`a.weight`", "8 bytes", "[3] of F32 has 12"]),
        (one("[2]", "[0,16]"), &["`a.weight`", "[0, 16]", "8 bytes of data"]),
        (one("[2]", "[8,0]"), &["`a.weight`", "backwards"]),
        (one("[9223372036854775808, 2]", "[0,8]"), &["`a.weight`", "overflows"]),
        (one("[-2]", "[0,8]"), &["`a.weight`", "-2"]),
        (one("[2.0]", "[0,8]"), &["`a.weight`", "2.0"]),
        (one("[1,1,1,1,1,1,1,1,2]", "[0,8]"), &["`a.weight`", "at most 8"]),
        (one("[0]", "[0,0]"), &["0 bytes of data", "has 8"]),
        (two("[0,8]", "[4,12]", 12), &["`b`", "overlap", "`a`"]),
        (two("[0,8]", "[12,20]", 20), &["`b`", "from 8 on belong to no tensor"]),
        (two("[8,16]", "[8,16]", 16), &["`a`", "from 0 on"]),
        (two("[0,8]", "[8,16]", 20), &["16 bytes of data", "has 20"]),
        (file(&format!("{{\"a\":{0},\"a\":{0}}}", tensor("[2]", "[0,8]")), &[0; 8]), &["`a`", "twice"]),
        (file(r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#, &[0]), &["`a`", "whole number of bytes"]),
        (file(r#"{"a":{"dtype":"F17","shape":[3],"data_offsets":[0,1]}}"#, &[0]), &["`a`", "F17"]),
        (file(r#"{"__metadata__":{"a":1}}"#, &[]), &["integer `1`"]),
    ];
    for (bytes, parts) in cases {
        let told = Header::parse(&bytes).unwrap_err();
        for part in parts {
            assert!(told.contains(part), "`{part}` in: {told}");
        }
    }
    assert_eq!(Header::parse(&file("{}", &[])).unwrap(), Header::default());
}
