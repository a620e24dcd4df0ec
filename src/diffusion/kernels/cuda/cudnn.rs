//! Convolutions by cuDNN. The tensor library's own call asks for the algorithm anew each time, clears the room that it works in, and
//! adds up f16 in f16.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    cudnnConvolutionFwdAlgo_t, cudnnConvolutionMode_t, cudnnMathType_t, cudnnTensorFormat_t,
};
use candle_core::cuda_backend::cudarc::cudnn::{
    ConvDescriptor, ConvForward, Cudnn, FilterDescriptor, TensorDescriptor,
};
use candle_core::cuda_backend::cudarc::cudnn::{CudnnDataType, CudnnError};
use candle_core::cuda_backend::{CudaStorage, DeviceId, WrapErr};
use candle_core::{CpuStorage, CustomOp2, DType, Error, Layout, Result, Shape, Tensor};

use super::{Number, by_type, numbers, only_on_a_gpu};

/// x: (N, inputs, H, W), weight: (outputs, inputs, k, k) -> (N, outputs, H', W'), without a bias.
pub(super) fn conv2d(x: &Tensor, weight: &Tensor, op: &Conv2d) -> Result<Tensor> {
    x.contiguous()?.apply_op2_no_bwd(weight, op)
}

/// What a convolution does. Sides were checked.
pub(super) struct Conv2d {
    pub stride: usize,
    pub padding: usize,
    /// (H', W').
    pub out: (usize, usize),
    /// f32 factors may be rounded to TF32.
    pub tf32: bool,
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

/// All that the choice of an algorithm depends on: the type, the shapes of input, weights and output, stride and padding, whether TF32 may be taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    dtype: DType,
    x: [i32; 4],
    weight: [i32; 4],
    y: [i32; 4],
    stride: i32,
    padding: i32,
    tf32: bool,
}

/// A convolution as cuDNN has it: described, with an algorithm and the bytes that it works in.
struct Described<T: CudnnDataType> {
    conv: ConvDescriptor<f32>,
    x: TensorDescriptor<T>,
    weight: FilterDescriptor<T>,
    y: TensorDescriptor<T>,
    algorithm: cudnnConvolutionFwdAlgo_t,
    bytes: usize,
}

impl<T: CudnnDataType> Described<T> {
    fn of(cudnn: &Arc<Cudnn>, key: &Key) -> std::result::Result<Self, CudnnError> {
        let (nchw, mode) = (cudnnTensorFormat_t::CUDNN_TENSOR_NCHW, cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION);
        // Sums are f32 whatever the type.
        let mut conv = cudnn.create_conv2d::<f32>([key.padding; 2], [key.stride; 2], [1; 2], mode)?;
        conv.set_math_type(math_of(key))?;
        let (x, y) = (cudnn.create_4d_tensor::<T>(nchw, key.x)?, cudnn.create_4d_tensor::<T>(nchw, key.y)?);
        let weight = cudnn.create_4d_filter::<T>(nchw, key.weight)?;
        let forward = ConvForward { conv: &conv, x: &x, w: &weight, y: &y };
        let algorithm = forward.pick_algorithm()?;
        let bytes = forward.get_workspace_size(algorithm)?;
        Ok(Self { conv, x, weight, y, algorithm, bytes })
    }

    fn forward(&self) -> ConvForward<'_, T, f32, T> {
        ConvForward { conv: &self.conv, x: &self.x, w: &self.weight, y: &self.y }
    }
}

/// cuDNN's handle for a device, and what was described to it; both belong to a thread. Each is a `Described` of its key's type.
struct Handle {
    cudnn: Arc<Cudnn>,
    described: HashMap<Key, Box<dyn Any>>,
}

thread_local! {
    /// Never let go of: where a device has failed, cudarc panics when it cannot, and in a thread's end that would end the process.
    static HANDLES: ManuallyDrop<RefCell<HashMap<DeviceId, Handle>>> = ManuallyDrop::default();
}

/// Shapes that are remembered: pictures come in few sizes, batches in as many as there are places.
const REMEMBERED: usize = 4096;

impl Handle {
    fn described<T: CudnnDataType + 'static>(&mut self, key: &Key) -> Result<&Described<T>> {
        if !self.described.contains_key(key) {
            if self.described.len() >= REMEMBERED {
                self.described.clear();
            }
            let described = Described::<T>::of(&self.cudnn, key).map_err(Error::wrap)?;
            self.described.insert(*key, Box::new(described));
        }
        let found = self.described.get(key).and_then(|any| any.downcast_ref());
        Ok(found.expect("it was put there. This is a bug in kernels."))
    }
}

fn run<T: Number + CudnnDataType + 'static>(
    x: &CudaStorage,
    x_layout: &Layout,
    weight: &CudaStorage,
    weight_layout: &Layout,
    op: &Conv2d,
) -> Result<(CudaStorage, Shape)> {
    let (n, c, h, w) = x_layout.shape().dims4()?;
    let (outputs, inputs, k, _) = weight_layout.shape().dims4()?;
    let (out_h, out_w) = op.out;
    let shape = Shape::from((n, outputs, out_h, out_w));
    let whole = |sides: [usize; 4]| sides.map(|side| side as i32);
    let key = Key {
        dtype: x.dtype(),
        x: whole([n, c, h, w]),
        weight: whole([outputs, inputs, k, k]),
        y: whole([n, outputs, out_h, out_w]),
        stride: op.stride as i32,
        padding: op.padding as i32,
        tf32: op.tf32,
    };
    let device = x.device.clone();
    let (numbers_x, numbers_w) = (numbers::<T>(x, x_layout)?, numbers::<T>(weight, weight_layout)?);
    #[expect(unsafe_code, reason = "memory that is not written yet")]
    // SAFETY: the convolution writes every number.
    let mut out = unsafe { device.alloc::<T>(shape.elem_count())? };
    HANDLES.with(|handles| {
        let mut handles = handles.borrow_mut();
        let handle = match handles.entry(device.id()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let cudnn = Cudnn::new(device.cuda_stream()).map_err(Error::wrap)?;
                place.insert(Handle { cudnn, described: HashMap::new() })
            }
        };
        let described = handle.described::<T>(&key)?;
        #[expect(unsafe_code, reason = "memory that is not written yet")]
        // SAFETY: the algorithm's own room, which it does not read before it wrote there.
        let mut room = unsafe { device.cuda_stream().alloc::<u8>(described.bytes.max(1)) }.w()?;
        let scales = (T::from_f64(1.0), T::from_f64(0.0));
        let forward = described.forward();
        #[expect(unsafe_code, reason = "a library is called")]
        // SAFETY: the tensors are of the types and shapes that were described.
        unsafe { forward.launch(described.algorithm, Some(&mut room), scales, &numbers_x, &numbers_w, &mut out) }
            .map_err(Error::wrap)
    })?;
    Ok((CudaStorage::wrap_cuda_slice(out, device), shape))
}

/// Half precision takes the matrix units. f32 can take them only where its factors are rounded to TF32.
fn math_of(key: &Key) -> cudnnMathType_t {
    match (key.dtype, key.tf32) {
        (DType::F32, true) => cudnnMathType_t::CUDNN_DEFAULT_MATH,
        (DType::F32, false) => cudnnMathType_t::CUDNN_FMA_MATH,
        _ => cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
    }
}
