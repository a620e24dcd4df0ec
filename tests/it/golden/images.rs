//! Pictures that clients send, against Pillow and diffusers' image processor: tests/fixtures/images/make_images.py.

use std::collections::{BTreeSet, HashMap};

use candle_core::{Device, Tensor};
use darkroom::images::{Canvas, Filter, Framing, GrayImage, InputFault, InputLimits, Pixels, RgbImage};
use darkroom::images::{read_mask, read_rgb};

use super::networks::fixtures;

/// Largest difference of a byte of a JPEG, and share of those that are the same: Pillow's decoder (libjpeg-turbo) rounds
/// its cosine transform and spreads halved colours in another way than ours. Measured over the files here: 4 and 0.70 where
/// colours are halved, 2 and 0.99 where they are not. PNG and WebP, lossy too, are the same bytes.
const JPEG: (u8, f64) = (5, 0.68);

fn goldens() -> HashMap<String, Tensor> {
    let file = fixtures().join("images/images.safetensors");
    candle_core::safetensors::load(file, &Device::Cpu).expect("goldens: see tests/fixtures/README.md")
}

fn pixels<const N: usize>(tensor: &Tensor) -> Pixels<N> {
    let (height, width) = (tensor.dims()[0], tensor.dims()[1]);
    let bytes = tensor.flatten_all().unwrap().to_vec1().unwrap();
    Pixels::from_pixels(width as u32, height as u32, bytes).unwrap()
}

/// The numbers `N` of keys `stem.N.what`.
fn cases(goldens: &HashMap<String, Tensor>, stem: &str) -> BTreeSet<String> {
    let rest = goldens.keys().filter_map(|key| key.strip_prefix(stem)?.strip_prefix('.'));
    rest.filter_map(|rest| Some(rest.rsplit_once('.')?.0.to_owned())).collect()
}

#[test]
fn resizing_gives_pillows_bytes() {
    let goldens = goldens();
    for (name, filter) in [("lanczos", Filter::Lanczos), ("bicubic", Filter::Bicubic)] {
        let cases = cases(&goldens, &format!("resize.{name}"));
        assert_eq!(cases.len(), 10);
        for case in cases {
            let [given, wanted] = ["in", "out"].map(|end| &goldens[&format!("resize.{name}.{case}.{end}")]);
            let (width, height) = (wanted.dims()[1] as u32, wanted.dims()[0] as u32);
            if given.rank() == 3 {
                assert!(pixels::<3>(given).resized(width, height, filter) == pixels::<3>(wanted), "{name} {case}");
            } else {
                assert!(pixels::<1>(given).resized(width, height, filter) == pixels::<1>(wanted), "{name} {case}");
            }
        }
    }
}

#[test]
fn blurring_gives_pillows_bytes() {
    let goldens = goldens();
    let radii = cases(&goldens, "blur");
    assert_eq!(radii.len(), 6);
    for radius in radii {
        let [given, wanted] = ["in", "out"].map(|end| pixels::<1>(&goldens[&format!("blur.{radius}.{end}")]));
        assert!(given.blurred(radius.parse().unwrap()) == wanted, "radius {radius}");
    }
}

#[test]
fn a_canvas_is_the_inpainting_pipelines_and_so_is_the_way_back() {
    let goldens = goldens();
    let cases = cases(&goldens, "canvas");
    assert_eq!(cases.len(), 10);
    for case in cases {
        let of = |name: &str| &goldens[&format!("canvas.{case}.{name}")];
        let options: Vec<f32> = of("options").to_vec1().unwrap();
        let framing = Framing {
            width: options[0] as u32,
            height: options[1] as u32,
            only_masked: (options[2] >= 0.0).then_some(options[2] as u32),
            invert_mask: options[3] != 0.0,
            mask_blur: options[4],
            preserve_unmasked: true,
        };
        let canvas = Canvas::new(pixels(of("picture")), Some(pixels(of("mask"))), &framing);
        assert!(canvas.picture == pixels::<3>(of("prepared")), "{case}: the picture");
        assert!(canvas.mask == Some(pixels(of("binary"))), "{case}: the mask");
        assert!(canvas.finish(pixels(of("drawn"))) == pixels::<3>(of("finished")), "{case}: the way back");
    }
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join("images/files").join(name)).unwrap()
}

/// (largest difference, share of the same bytes)
fn apart<const N: usize>(ours: &Pixels<N>, theirs: &Pixels<N>) -> (u8, f64) {
    assert_eq!(ours.size(), theirs.size());
    let apart: Vec<u8> = ours.pixels().iter().zip(theirs.pixels()).map(|(a, b)| a.abs_diff(*b)).collect();
    let same = apart.iter().filter(|d| **d == 0).count();
    (apart.iter().copied().max().unwrap(), same as f64 / apart.len() as f64)
}

#[test]
fn files_of_every_kind_are_read_as_pillow_reads_them() {
    let goldens = goldens();
    let names = cases(&goldens, "file");
    assert_eq!(names.len(), 29);
    for name in names {
        let (bytes, limits) = (file(&name), InputLimits::default());
        let of = |what: &str| &goldens[&format!("file.{name}.{what}")];
        let rgb: RgbImage = read_rgb(&bytes, limits).unwrap_or_else(|fault| panic!("{name} {fault}"));
        let mask: GrayImage = read_mask(&bytes, limits).unwrap();
        let (rgb, mask) = (apart(&rgb, &pixels(of("rgb"))), apart(&mask, &pixels(of("mask"))));
        println!("{name}: rgb {rgb:?}, mask {mask:?}");
        let (most, least) = if name.ends_with("jpg") { JPEG } else { (0, 1.0) };
        for (worst, same) in [rgb, mask] {
            assert!(worst <= most && same >= least, "{name}: worst {worst}, identical {same}");
        }
    }
}

#[test]
fn what_is_no_picture_is_refused_with_its_fault() {
    let limits = InputLimits::default();
    let told = |bytes: &[u8]| read_rgb(bytes, limits).unwrap_err().to_string();
    assert_eq!(told(b""), "is empty; send a PNG, JPEG or WebP picture");
    assert_eq!(told(b"GIF89a and so on"), "is no PNG, JPEG or WebP picture");
    assert_eq!(told(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "is no PNG, JPEG or WebP picture");
    assert_eq!(read_rgb(&file("animation.webp"), limits), Err(InputFault::Animation));
    for name in ["rgb.png", "444.jpg", "progressive.jpg", "lossy.webp", "lossless.webp"] {
        let bytes = file(name);
        for share in [3, 5, 8, 9] {
            let cut = &bytes[..bytes.len() * share / 10];
            assert!(told(cut).contains("that cannot be read"), "{name} {share}: {}", told(cut));
        }
    }
    let few = InputLimits { max_pixels: 519, ..limits };
    let fault = read_rgb(&file("rgb.png"), few).unwrap_err();
    assert_eq!(fault.to_string(), "is 26x20; at most 519 pixels are allowed, and no side above 16384");
    let short = InputLimits { max_bytes: 100, ..limits };
    assert_eq!(read_mask(&file("lossy.webp"), short).unwrap_err(), InputFault::Bytes { bytes: 352, most: 100 });
}

/// Headers that claim what the bytes cannot hold: refused by their claim, nothing is allocated for it.
#[test]
fn a_bomb_is_refused_by_its_claim() {
    let mut png = file("rgb.png");
    png[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    // The header's own checksum, so that the claim is believed.
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    let mut jpeg = file("444.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    let mut webp = file("lossless.webp");
    let begin = webp.windows(4).position(|four| four == b"VP8L").unwrap() + 9;
    // 16383 each way, in 14 bits each.
    webp[begin..begin + 3].copy_from_slice(&[0xfe, 0xbf, 0xff]);
    webp[begin + 3] |= 0x0f;
    for (name, bytes) in [("png", png), ("jpeg", jpeg), ("webp", webp)] {
        let fault = read_rgb(&bytes, InputLimits::default()).unwrap_err();
        assert!(matches!(fault, InputFault::Pixels { .. }), "{name} {fault}");
    }
    // A chunk of metadata that claims 2.8 GB, which the decoder would make room for.
    let mut webp = file("turned.webp");
    let begin = webp.windows(4).position(|four| four == b"EXIF").unwrap() + 4;
    webp[begin..begin + 4].copy_from_slice(&2_801_795_098u32.to_le_bytes());
    let fault = read_rgb(&webp, InputLimits::default()).unwrap_err();
    assert!(matches!(fault, InputFault::Broken { .. }), "{fault}");
}

pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
