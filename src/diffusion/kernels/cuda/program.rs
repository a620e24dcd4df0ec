//! From a kernel's source to what can be called.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, CudaStream, LaunchArgs, LaunchConfig};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::{Error, Result};

use super::Number;

/// A file of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Attention,
    GroupNorm,
    Maps,
}

impl Source {
    fn text(self) -> &'static str {
        match self {
            Self::Attention => include_str!("attention.cu"),
            Self::GroupNorm => include_str!("group_norm.cu"),
            Self::Maps => include_str!("maps.cu"),
        }
    }
}

/// What decides about a program's machine code: the GPU by its number, the file, the type and the numbers of a head (0: no matter).
type Key = (usize, Source, &'static str, usize);

/// A program's name among the device's, and its assembly.
type Compiled = Arc<(String, String)>;

static COMPILED: LazyLock<Mutex<HashMap<Key, Compiled>>> = LazyLock::new(Mutex::default);

/// A kernel, and the stream that it is called on.
pub(super) struct Kernel {
    function: CudaFunction,
    stream: Arc<CudaStream>,
}

impl Kernel {
    /// A call, to be given its arguments.
    pub(super) fn builder(&self) -> LaunchArgs<'_> {
        self.stream.launch_builder(&self.function)
    }
}

/// A kernel for numbers of type `T`, in heads of `head` numbers where that matters to it.
///
/// # Errors
/// It does not compile for this GPU, or the driver does not take it.
pub(super) fn function<T: Number>(device: &CudaDevice, source: Source, name: &str, head: usize) -> Result<Kernel> {
    let stream = device.cuda_stream();
    let key = (stream.context().ordinal(), source, T::NUMBER, head);
    // Held while it compiles: whoever wants the same waits for it.
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let program = match compiled.get(&key) {
        Some(program) => program.clone(),
        None => {
            let (major, minor) = stream.context().compute_capability().map_err(Error::wrap)?;
            let options = vec![
                format!("--gpu-architecture=compute_{major}{minor}"),
                format!("-DNUMBER={}", T::NUMBER),
                format!("-DHEAD={head}"),
            ];
            let options = CompileOptions { options, ..CompileOptions::default() };
            let text = format!("{}{}", include_str!("numbers.cuh"), source.text());
            let assembly = compile_ptx_with_opts(text, options).map_err(Error::wrap)?.to_src();
            let program: Compiled = Arc::new((format!("darkroom-{key:?}"), assembly));
            compiled.insert(key, program.clone());
            program
        }
    };
    drop(compiled);
    let function = device.get_or_load_custom_func(name, &program.0, &program.1)?.into_cuda_function();
    Ok(Kernel { function, stream })
}

/// So many threads in blocks of 256.
pub(super) fn in_line(threads: usize) -> LaunchConfig {
    LaunchConfig { grid_dim: (threads.div_ceil(256) as u32, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 }
}
