//! Each kernel against its plain twin on a CPU in f32. They say so, and pass, where the driver finds no GPU.

use super::super::*;
use candle_core::{DType, Device, Result, Tensor};

fn gpu() -> Option<Device> {
    let device = Device::new_cuda_with_stream(0).ok();
    if device.is_none() {
        assert!(std::env::var_os("DARKROOM_FORBID_SKIPS").is_none(), "no GPU");
        eprintln!("skipped: no GPU");
    }
    device
}

fn random(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu)
}

/// What a type's rounding of inputs and results allows, relative to the largest number. Measured on an H200 against PyTorch in double
/// precision, relative to the norm: 7e-8, 3e-4, 2.3e-3; single numbers are off by twice of that.
const TYPES: [(DType, f32); 3] = [(DType::F32, 1e-5), (DType::F16, 2e-3), (DType::BF16, 1.6e-2)];

/// Runs the same on both: on the GPU in `dtype`, on the CPU in f32 with inputs that were rounded to it.
fn compare(what: &str, inputs: &[Tensor], run: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (dtype, tolerance) in TYPES {
        let rounded: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(dtype)).collect::<Result<_>>()?;
        let wide: Vec<Tensor> = rounded.iter().map(|x| x.to_dtype(DType::F32)).collect::<Result<_>>()?;
        let there: Vec<Tensor> = rounded.iter().map(|x| x.to_device(&gpu)).collect::<Result<_>>()?;
        let expected = run(&wide)?;
        let found = run(&there)?;
        assert_eq!((found.dims(), found.dtype()), (expected.dims(), dtype), "{what}");
        let found = found.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let worst = (&found - &expected)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        let range = expected.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        eprintln!("{what} {dtype:?}: {:.2e} of the largest", worst / range);
        assert!(worst <= tolerance * range, "{what} {dtype:?}: {worst} of {range}");
    }
    Ok(())
}

#[test]
fn attention_agrees_with_its_plain_twin() -> Result<()> {
    for (n, queries, keys, heads, size) in [
        (2, 64, 64, 2, 64),
        (1, 100, 77, 8, 40),
        (3, 33, 1, 1, 8),
        (2, 256, 256, 8, 80),
        (1, 1, 130, 3, 16),
        (2, 70, 65, 8, 160),
        (1, 64, 64, 2, 28),
        (1, 4096, 4096, 8, 40),
    ] {
        let inputs = [queries, keys, keys].map(|length| random(&[n, length, heads * size]));
        let inputs: Vec<Tensor> = inputs.into_iter().collect::<Result<_>>()?;
        let what = format!("attention {n}x{heads}x{size} {queries}-{keys}");
        compare(&what, &inputs, |x| scaled_dot_product(&x[0], &x[1], &x[2], heads, None))?;
    }
    Ok(())
}

#[test]
fn attention_takes_large_scores_and_parts_of_tensors() -> Result<()> {
    let x = (random(&[2, 90, 3 * 64])? * 6.0)?;
    compare("attention of large scores", &[x], |x| {
        let part = |k: usize| x[0].narrow(2, 64 * k, 64);
        scaled_dot_product(&part(0)?.contiguous()?, &part(1)?, &part(2)?, 2, None)
    })
}

#[test]
fn group_norm_agrees_with_its_plain_twin() -> Result<()> {
    for (shape, groups) in [
        (vec![2, 32, 17, 15], 8),
        (vec![1, 16, 8, 8], 4),
        (vec![3, 48, 5, 1], 16),
        (vec![2, 320, 64, 64], 32),
        (vec![1, 64, 9], 32),
    ] {
        let x = ((random(&shape)? * 3.0)? + 1.5)?;
        let inputs = [x, random(&[shape[1]])?, random(&[shape[1]])?];
        for after in [After::Nothing, After::Silu] {
            compare(&format!("group norm {shape:?}"), &inputs, |x| {
                group_norm(&x[0], &x[1], &x[2], groups, 1e-5, after)
            })?;
        }
    }
    Ok(())
}

#[test]
fn gates_and_transposes_agree_with_their_plain_twins() -> Result<()> {
    for shape in [vec![2], vec![3, 14], vec![2, 5, 100], vec![1, 300, 256], vec![2, 4096, 2560]] {
        compare(&format!("geglu {shape:?}"), &[(random(&shape)? * 2.0)?], |x| geglu(&x[0]))?;
    }
    for shape in [[1, 1, 1], [2, 31, 33], [3, 320, 4096], [2, 64, 64]] {
        compare(&format!("transposed {shape:?}"), &[random(&shape)?], |x| transposed(&x[0]))?;
    }
    Ok(())
}

#[test]
fn layers_agree_with_their_plain_twins() -> Result<()> {
    for (rows, inputs, outputs, has_bias) in
        [(5, 7, 11, true), (130, 64, 48, false), (1000, 320, 1280, true), (77, 768, 320, false)]
    {
        let weight = (random(&[outputs, inputs])? / (inputs as f64).sqrt())?;
        let tensors = [random(&[2, rows, inputs])?, weight, random(&[outputs])?];
        compare(&format!("linear {rows}x{inputs}-{outputs}"), &tensors, |x| {
            PackedLinear::new(x[1].clone(), has_bias.then(|| x[2].clone()))?.forward(&x[0])
        })?;
    }
    for (shape, outputs, kernel, stride, has_bias) in [
        ([2, 4, 16, 16], 32, 3, 1, true),
        ([1, 32, 15, 17], 20, 3, 2, true),
        ([3, 64, 16, 16], 64, 1, 1, false),
        ([2, 320, 64, 64], 320, 3, 1, true),
        // Too many patches: cuDNN's, where there is cuDNN.
        ([4, 320, 64, 64], 320, 3, 1, true),
        ([4, 320, 64, 64], 64, 3, 2, true),
        ([2, 320, 64, 64], 4, 3, 1, true),
        ([1, 2560, 8, 8], 1280, 3, 1, true),
    ] {
        let weight = (random(&[outputs, shape[1], kernel, kernel])? / ((shape[1] * kernel * kernel) as f64).sqrt())?;
        let tensors = [random(&shape)?, weight, random(&[outputs])?];
        compare(&format!("convolution {shape:?}-{outputs} {kernel}/{stride}"), &tensors, |x| {
            PackedConv2d::new(x[1].clone(), has_bias.then(|| x[2].clone()), stride, kernel / 2)?.forward(&x[0])
        })?;
    }
    compare("offsets", &[random(&[3, 5, 8, 8])?, random(&[3, 5])?], |x| with_offsets(x[0].copy()?, &x[1]))?;
    compare("offsets of odd maps", &[random(&[3, 5, 3, 7])?, random(&[3, 5])?], |x| with_offsets(x[0].copy()?, &x[1]))
}

#[test]
fn what_is_added_besides_is_added_once() -> Result<()> {
    for has_bias in [true, false] {
        let tensors = [random(&[2, 9, 64])?, (random(&[48, 64])? / 8.0)?, random(&[48])?, random(&[2, 9, 48])?];
        compare("linear and another", &tensors, |x| {
            PackedLinear::new(x[1].clone(), has_bias.then(|| x[2].clone()))?.forward_added(&x[0], &x[3])
        })?;
        let tensors =
            [random(&[2, 16, 9, 7])?, (random(&[5, 16, 3, 3])? / 12.0)?, random(&[5])?, random(&[2, 5, 9, 7])?];
        compare("convolution and another", &tensors, |x| {
            PackedConv2d::new(x[1].clone(), has_bias.then(|| x[2].clone()), 1, 1)?.forward_added(&x[0], &x[3])
        })?;
    }
    Ok(())
}

#[test]
fn rows_are_normalised() -> Result<()> {
    for shape in [vec![7, 320], vec![2, 5, 1280], vec![3, 10]] {
        let width = shape[shape.len() - 1];
        let tensors = [((random(&shape)? * 3.0)? + 1.5)?, random(&[width])?, random(&[width])?];
        compare(&format!("layer norm {shape:?}"), &tensors, |x| layer_norm(&x[0], &x[1], &x[2], 1e-5))?;
    }
    Ok(())
}

/// A map in one band may be normalised in one piece or in several; in f32, as autoencoders are.
#[test]
fn bands_are_normalised_as_the_whole_map_is() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let x = ((random(&[1, 32, 40, 33])? * 3.0)? + 1.5)?.to_device(&gpu)?;
    let (weight, bias) = (random(&[32])?.to_device(&gpu)?, random(&[32])?.to_device(&gpu)?);
    let whole = group_norm(&x, &weight, &bias, 8, 1e-6, After::Silu)?;
    let rows = |from: usize, count: usize| x.narrow(2, from, count)?.contiguous();
    let close = |found: Tensor| -> Result<()> {
        let off = (found - &whole)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        assert!(off < 1e-5, "{off}");
        Ok(())
    };
    for bands in [vec![rows(0, 40)?], vec![rows(0, 13)?, rows(13, 27)?]] {
        let bands: Vec<&Tensor> = bands.iter().collect();
        let statistics = group_statistics(&bands, 8, 1e-6, false)?;
        let parts =
            [rows(0, 9)?, rows(9, 31)?].map(|part| group_normalised(&part, &statistics, &weight, &bias, After::Silu));
        close(Tensor::cat(&parts.into_iter().collect::<Result<Vec<_>>>()?, 2)?)?;
    }
    let statistics = group_statistics(&[&x], 8, 1e-6, true)?;
    close(group_normalised(&x, &statistics, &weight, &bias, After::Silu)?)?;
    assert!(group_normalised(&rows(0, 9)?, &statistics, &weight, &bias, After::Silu).is_err());
    Ok(())
}

/// A sample's numbers do not depend on its batch where we add them up ourselves.
#[test]
fn a_sample_is_the_same_alone() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let half = |shape: &[usize]| random(shape)?.to_dtype(DType::F16)?.to_device(&gpu);
    let (x, weight, bias) = (half(&[5, 64, 16, 16])?, half(&[64])?, half(&[64])?);
    let normed = group_norm(&x, &weight, &bias, 32, 1e-5, After::Silu)?;
    let tokens = transposed(&x.reshape((5, 64, 256))?)?;
    let attended = scaled_dot_product(&tokens, &tokens, &tokens, 2, None)?;
    let bits = |x: Tensor| x.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>();
    for row in 0..5 {
        let (one, token) = (x.narrow(0, row, 1)?, tokens.narrow(0, row, 1)?);
        assert_eq!(bits(group_norm(&one, &weight, &bias, 32, 1e-5, After::Silu)?)?, bits(normed.narrow(0, row, 1)?)?);
        assert_eq!(bits(scaled_dot_product(&token, &token, &token, 2, None)?)?, bits(attended.narrow(0, row, 1)?)?);
    }
    Ok(())
}
