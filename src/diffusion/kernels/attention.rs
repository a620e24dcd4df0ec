//! Scaled dot-product attention, some queries of one head at a time: their scores are all that is ever in memory.

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::exp::exp;
use super::sums::{PANEL, add_product, side_by_side};
use super::{ALONE, values, widened};

/// Scores of one task, about: they stay in a second-level cache.
const SCORES: usize = 1 << 16;
/// Scores that the tensor library's operations hold at a time (1 GiB).
const PLAIN_SCORES: usize = 1 << 28;
/// Queries of one task; at least so many share the way through keys and values.
const QUERIES: (usize, usize) = (8, 64);

/// q: (N, Lq, heads*d), k and v: (N, Lk, heads*d), mask: additive, broadcast to (N, heads, Lq, Lk) -> (N, Lq, heads*d).
/// Without a mask, in f32 on a CPU, every thread holds max(2^16, 8 Lk) scores at most; in half precision on a GPU, none are in its
/// memory where d is a multiple of 8 up to 160; else 2^28 are held at a time. With a mask all N*heads*Lq*Lk are.
pub fn scaled_dot_product(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if mask.is_none() && super::cuda::takes_attention(q, heads) {
        return super::cuda::attention(q, k, v, heads);
    }
    if mask.is_some() || !matches!(q.device(), Device::Cpu) || q.dtype() != DType::F32 {
        return scaled_dot_product_plain(q, k, v, heads, mask);
    }
    let op = AttentionOp { heads, arch: Arch::new() };
    q.contiguous()?.apply_op3_no_bwd(&k.contiguous()?, &v.contiguous()?, &op)
}

/// The same by the tensor library's own operations.
pub fn scaled_dot_product_plain(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    match mask {
        Some(_) => plain(q, k, v, heads, mask),
        None => plain_in_blocks(q, k, v, heads, PLAIN_SCORES),
    }
}

/// Blocks of queries, of so many scores each.
fn plain_in_blocks(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, scores: usize) -> Result<Tensor> {
    let (n, queries, _) = q.dims3()?;
    let block = (scores / (n * heads * k.dim(1)?).max(1)).max(1);
    if block >= queries {
        return plain(q, k, v, heads, None);
    }
    let blocks = (0..queries).step_by(block).map(|from| {
        let block = q.narrow(1, from, block.min(queries - from))?;
        plain(&block, k, v, heads, None)
    });
    Tensor::cat(&blocks.collect::<Result<Vec<_>>>()?, 1)
}

fn plain(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let (n, queries, width) = q.dims3()?;
    let split = |x: &Tensor| {
        let tokens = x.dim(1)?;
        x.reshape((n, tokens, heads, width / heads))?.transpose(1, 2)?.contiguous()
    };
    let scale = 1.0 / ((width / heads) as f64).sqrt();
    let dtype = q.dtype();
    let (q, k, v) = (widened(&split(q)?)?, widened(&split(k)?)?, widened(&split(v)?)?);
    let scores = (q * scale)?.matmul(&k.transpose(2, 3)?)?;
    let scores = match mask {
        Some(mask) => scores.broadcast_add(&mask.to_dtype(scores.dtype())?)?,
        None => scores,
    };
    let weights = candle_nn::ops::softmax_last_dim(&scores)?;
    weights.matmul(&v)?.to_dtype(dtype)?.transpose(1, 2)?.reshape((n, queries, width))
}

struct AttentionOp {
    heads: usize,
    arch: Arch,
}

impl CustomOp3 for AttentionOp {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (samples, queries, width) = q_layout.shape().dims3()?;
        let (_, keys, _) = k_layout.shape().dims3()?;
        let size = width / self.heads.max(1);
        if [k_layout, v_layout].iter().any(|layout| layout.dims() != [samples, keys, width])
            || size * self.heads != width
            || q_layout.shape().elem_count() == 0
            || keys == 0
        {
            let (q, k, v) = (q_layout.dims(), k_layout.dims(), v_layout.dims());
            bail!("attention of {} heads, queries {q:?}, keys {k:?}, values {v:?}", self.heads);
        }
        let (q, k, v) = (values(q, q_layout)?, values(k, k_layout)?, values(v, v_layout)?);
        let mut out = vec![0f32; q.len()];
        let head = |number: usize| Head::new((k, v), number, (self.heads, keys, size));
        let mut tasks = tasks((q, &mut out), (self.heads, queries, size), queries_a_task(keys));
        if samples * self.heads * queries * keys * size <= ALONE {
            let heads: Vec<Head> = (0..samples * self.heads).map(head).collect();
            tasks.iter_mut().for_each(|task| self.run(task, &heads, &mut Vec::new()));
        } else {
            let heads: Vec<Head> = (0..samples * self.heads).into_par_iter().map(head).collect();
            tasks.par_iter_mut().for_each_init(Vec::new, |scores, task| self.run(task, &heads, scores));
        }
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }
}

impl AttentionOp {
    /// `scores` is room to work in.
    fn run(&self, task: &mut Task<'_>, heads: &[Head], scores: &mut Vec<f32>) {
        let head = &heads[task.head];
        scores.clear();
        scores.resize(task.q.len() * head.keys, 0.0);
        self.arch.dispatch(Block { q: &task.q, head, scores, out: &mut task.out });
    }
}

fn queries_a_task(keys: usize) -> usize {
    (SCORES / keys).clamp(QUERIES.0, QUERIES.1)
}

/// Keys and values of one head of one sample, in panels.
struct Head {
    keys: usize,
    size: usize,
    /// (keys / 16 rounded up, size, 16).
    k: Vec<f32>,
    /// (size / 16 rounded up, keys, 16).
    v: Vec<f32>,
}

impl Head {
    fn new((k, v): (&[f32], &[f32]), number: usize, (heads, keys, size): (usize, usize, usize)) -> Self {
        let width = heads * size;
        let first = number / heads * keys * width + number % heads * size;
        let rows =
            |x: &[f32]| -> Vec<f32> { (0..keys).flat_map(|key| &x[first + key * width..][..size]).copied().collect() };
        let k = side_by_side::<PANEL>(&rows(k), size);
        let mut packed = vec![0f32; size.div_ceil(PANEL) * keys * PANEL];
        for (panel, packed) in packed.chunks_exact_mut(keys * PANEL).enumerate() {
            let columns = PANEL.min(size - panel * PANEL);
            for (key, packed) in packed.chunks_exact_mut(PANEL).enumerate() {
                packed[..columns].copy_from_slice(&v[first + key * width + panel * PANEL..][..columns]);
            }
        }
        Self { keys, size, k, v: packed }
    }
}

/// Some queries of one head and what they get.
struct Task<'a> {
    head: usize,
    q: Vec<&'a [f32]>,
    out: Vec<&'a mut [f32]>,
}

fn tasks<'a>(
    (q, out): (&'a [f32], &'a mut [f32]),
    (heads, queries, size): (usize, usize, usize),
    at_once: usize,
) -> Vec<Task<'a>> {
    let mut tasks = Vec::new();
    let samples = q.chunks_exact(queries * heads * size).zip(out.chunks_exact_mut(queries * heads * size));
    for (sample, (q, out)) in samples.enumerate() {
        for (q, out) in q.chunks(at_once * heads * size).zip(out.chunks_mut(at_once * heads * size)) {
            let first = tasks.len();
            let room = || Vec::with_capacity(at_once);
            tasks.extend((0..heads).map(|head| Task { head: sample * heads + head, q: Vec::new(), out: room() }));
            for (k, (q, out)) in q.chunks_exact(size).zip(out.chunks_exact_mut(size)).enumerate() {
                let task = &mut tasks[first + k % heads];
                task.q.push(q);
                task.out.push(out);
            }
        }
    }
    tasks
}

struct Block<'a, 'b> {
    q: &'b [&'a [f32]],
    head: &'b Head,
    /// (queries, keys), zeros.
    scores: &'b mut [f32],
    out: &'b mut [&'a mut [f32]],
}

impl WithSimd for Block<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Head { keys, size, k, v } = self.head;
        let k: Vec<&[[f32; PANEL]]> = k.chunks_exact(size * PANEL).map(|panel| panel.as_chunks().0).collect();
        let v: Vec<&[[f32; PANEL]]> = v.chunks_exact(keys * PANEL).map(|panel| panel.as_chunks().0).collect();
        let mut scores: Vec<&mut [f32]> = self.scores.chunks_exact_mut(*keys).collect();
        add_product(simd, self.q, &k, &mut scores);
        let scale = 1.0 / (*size as f32).sqrt();
        let mut factors = Vec::with_capacity(scores.len());
        for scores in &mut scores {
            factors.push(1.0 / exponentials(scores, scale));
        }
        let weights: Vec<&[f32]> = scores.iter().map(|scores| &**scores).collect();
        add_product(simd, &weights, &v, self.out);
        for (out, factor) in self.out.iter_mut().zip(factors) {
            for out in out.iter_mut() {
                *out *= factor;
            }
        }
    }
}

/// e^(scale * (x - the greatest x)) in place; their sum. Sixteen running numbers, as vectors have places.
#[inline(always)]
fn exponentials(x: &mut [f32], scale: f32) -> f32 {
    let (whole, rest) = x.as_chunks_mut::<16>();
    let mut greatest = [f32::NEG_INFINITY; 16];
    for values in whole.iter() {
        for (greatest, value) in greatest.iter_mut().zip(values) {
            *greatest = if *value > *greatest { *value } else { *greatest };
        }
    }
    let greatest = greatest.iter().chain(rest.iter()).fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    let mut sums = [0f32; 16];
    for values in whole {
        for (sum, value) in sums.iter_mut().zip(values) {
            *value = exp((*value - greatest) * scale);
            *sum += *value;
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for value in rest {
        *value = exp((*value - greatest) * scale);
        sum += *value;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(shape: (usize, usize, usize), spread: f32) -> Result<Tensor> {
        Tensor::randn(0f32, spread, shape, &Device::Cpu)
    }

    #[test]
    fn agrees_with_its_plain_twin() -> Result<()> {
        let cases = [
            (2, 3, 5, 7, 20),
            (1, 1, 1, 1, 1),
            (3, 4, 16, 77, 16),
            (1, 2, 100, 33, 40),
            (1, 1, 70, 1300, 130),
            (2, 8, 9, 16, 64),
        ];
        for (samples, heads, queries, keys, size) in cases {
            // Spread 4: some queries look at hardly more than one key.
            for spread in [0.5, 4.0] {
                let q = normal((samples, queries, heads * size), spread)?;
                let (k, v) = (normal((samples, keys, heads * size), 1.0)?, normal((samples, keys, heads * size), 1.0)?);
                let plain = scaled_dot_product_plain(&q, &k, &v, heads, None)?;
                for arch in super::super::levels() {
                    let fast = q.apply_op3_no_bwd(&k, &v, &AttentionOp { heads, arch })?;
                    assert_eq!(fast.dims(), plain.dims());
                    let what = format!("{arch:?}, {heads} heads of {size}, {queries} queries of {keys}");
                    super::super::assert_close(&what, &fast, &plain, 4e-6);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn the_plain_twin_agrees_in_blocks() -> Result<()> {
        let (q, k, v) = (normal((2, 50, 12), 1.0)?, normal((2, 31, 12), 1.0)?, normal((2, 31, 12), 1.0)?);
        let whole = scaled_dot_product_plain(&q, &k, &v, 3, None)?;
        for scores in [1, 3 * 2 * 31 * 7, 3 * 2 * 31 * 49] {
            super::super::assert_close("blocks", &plain_in_blocks(&q, &k, &v, 3, scores)?, &whole, 2e-6);
        }
        Ok(())
    }

    #[test]
    fn great_scores_stay_finite() -> Result<()> {
        let (q, k, v) = (normal((1, 9, 32), 1e4)?, normal((1, 40, 32), 1e4)?, normal((1, 40, 32), 1.0)?);
        let greatest = scaled_dot_product(&q, &k, &v, 2, None)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(greatest.is_finite() && greatest > 0.0, "{greatest}");
        Ok(())
    }

    #[test]
    fn a_sample_is_the_same_alone() -> Result<()> {
        let x = normal((5, 300, 60), 1.0)?;
        let together = scaled_dot_product(&x, &x, &x, 3, None)?;
        for sample in [0, 2, 4] {
            let x = x.narrow(0, sample, 1)?;
            let numbers = |x: Tensor| x.flatten_all()?.to_vec1::<f32>();
            assert_eq!(numbers(scaled_dot_product(&x, &x, &x, 3, None)?)?, numbers(together.narrow(0, sample, 1)?)?);
        }
        Ok(())
    }
}
