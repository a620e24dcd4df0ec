//! Convolutions by cuDNN. The tensor library's own call asks for the algorithm anew each time, clears the room that it works in, and
//! adds up f16 in f16.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cudnn::safe::{ConvForward, Cudnn};
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    cudnnConvolutionFwdAlgo_t, cudnnConvolutionMode_t, cudnnMathType_t, cudnnTensorFormat_t,
};
use candle_core::cuda_backend::cudarc::cudnn::{CudnnDataType, CudnnError};
use candle_core::cuda_backend::{CudaDevice, CudaStorage, DeviceId, WrapErr};
use candle_core::{CpuStorage, CustomOp2, DType, Error, Layout, Result, Shape, Tensor, bail};

use super::{Number, by_type, numbers, only_on_a_gpu};

/// x: (N, inputs, H, W), weight: (outputs, inputs, k, k) -> (N, outputs, H', W'), without a bias.
pub(in crate::diffusion::kernels) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    x.contiguous()?.apply_op2_no_bwd(weight, &Conv2d { stride, padding })
}

struct Conv2d {
    stride: usize,
    padding: usize,
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        only_on_a_gpu(self.name())
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_type!(x, run(x, x_layout, weight, weight_layout, self))
    }
}

/// All that the choice of an algorithm depends on: the type, the shapes of input and weights, stride and padding.
type Key = (DType, [i32; 4], [i32; 4], i32, i32);

/// An algorithm and the bytes that it works in.
type Chosen = (cudnnConvolutionFwdAlgo_t, usize);

/// cuDNN's handles belong to a thread.
#[derive(Default)]
struct Handles(HashMap<DeviceId, (Arc<Cudnn>, HashMap<Key, Chosen>)>);

thread_local! {
    static HANDLES: RefCell<Handles> = RefCell::default();
}

impl Handles {
    fn of(&mut self, device: &CudaDevice) -> Result<&mut (Arc<Cudnn>, HashMap<Key, Chosen>)> {
        if !self.0.contains_key(&device.id()) {
            let handle = Cudnn::new(device.cuda_stream()).map_err(Error::wrap)?;
            self.0.insert(device.id(), (handle, HashMap::new()));
        }
        Ok(self.0.get_mut(&device.id()).expect("it was put there. This is a bug in kernels."))
    }
}

fn run<T: Number + CudnnDataType>(
    x: &CudaStorage,
    x_layout: &Layout,
    weight: &CudaStorage,
    weight_layout: &Layout,
    op: &Conv2d,
) -> Result<(CudaStorage, Shape)> {
    let (n, c, h, w) = x_layout.shape().dims4()?;
    let (outputs, inputs, k, k_w) = weight_layout.shape().dims4()?;
    let side = |length: usize| (length + 2 * op.padding).checked_sub(k).map(|room| room / op.stride + 1);
    let (Some(out_h), Some(out_w)) = (side(h), side(w)) else { bail!("a convolution of {k} over {h}x{w}") };
    if c != inputs || k != k_w {
        bail!("a convolution of {:?} over {:?}", weight_layout.dims(), x_layout.dims());
    }
    let shape = Shape::from((n, outputs, out_h, out_w));
    let whole = |sides: [usize; 4]| sides.map(|side| side as i32);
    let (x_sides, w_sides, y_sides) =
        (whole([n, c, h, w]), whole([outputs, inputs, k, k]), whole([n, outputs, out_h, out_w]));
    let (stride, padding) = (op.stride as i32, op.padding as i32);
    let key = (x.dtype(), x_sides, w_sides, stride, padding);
    let device = x.device.clone();
    let (numbers_x, numbers_w) = (numbers::<T>(x, x_layout)?, numbers::<T>(weight, weight_layout)?);
    #[expect(unsafe_code, reason = "memory that is not written yet")]
    // SAFETY: the convolution writes every number.
    let mut out = unsafe { device.alloc::<T>(shape.elem_count())? };
    HANDLES.with_borrow_mut(|handles| {
        let (cudnn, chosen) = handles.of(&device)?;
        let nchw = cudnnTensorFormat_t::CUDNN_TENSOR_NCHW;
        let described = || -> std::result::Result<_, CudnnError> {
            let mode = cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
            // Sums are f32 whatever the type.
            let mut conv = cudnn.create_conv2d::<f32>([padding; 2], [stride; 2], [1; 2], mode)?;
            conv.set_math_type(math_of(x.dtype()))?;
            let (x, y) = (cudnn.create_4d_tensor::<T>(nchw, x_sides)?, cudnn.create_4d_tensor::<T>(nchw, y_sides)?);
            Ok((conv, x, cudnn.create_4d_filter::<T>(nchw, w_sides)?, y))
        };
        let (conv, x, w, y) = described().map_err(Error::wrap)?;
        let forward = ConvForward { conv: &conv, x: &x, w: &w, y: &y };
        let (algorithm, bytes) = match chosen.get(&key) {
            Some(known) => *known,
            None => {
                let algorithm = forward.pick_algorithm().map_err(Error::wrap)?;
                let bytes = forward.get_workspace_size(algorithm).map_err(Error::wrap)?;
                *chosen.entry(key).insert_entry((algorithm, bytes)).get()
            }
        };
        #[expect(unsafe_code, reason = "memory that is not written yet")]
        // SAFETY: the algorithm's own room, which it does not read before it wrote there.
        let mut room = unsafe { device.cuda_stream().alloc::<u8>(bytes.max(1)) }.w()?;
        let (one, zero) = (T::from_f64(1.0), T::from_f64(0.0));
        #[expect(unsafe_code, reason = "a library is called")]
        // SAFETY: the tensors are of the types and shapes that the descriptors say.
        unsafe { forward.launch(algorithm, Some(&mut room), (one, zero), &numbers_x, &numbers_w, &mut out) }
            .map_err(Error::wrap)
    })?;
    Ok((CudaStorage::wrap_cuda_slice(out, device), shape))
}

/// Half precision takes the matrix units; f32 takes them where they round its factors to TF32 (10 bits), as PyTorch does too.
fn math_of(dtype: DType) -> cudnnMathType_t {
    match dtype {
        DType::F32 => cudnnMathType_t::CUDNN_DEFAULT_MATH,
        _ => cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
    }
}
