//! From a kernel's source to what can be called.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaFunction, CudaStream, LaunchArgs, LaunchConfig};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::{Error, Result};

use super::Number;

/// A file of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Attention,
    GroupNorm,
    LayerNorm,
    Maps,
}

impl Source {
    fn text(self) -> &'static str {
        match self {
            Self::Attention => include_str!("attention.cu"),
            Self::GroupNorm => include_str!("group_norm.cu"),
            Self::LayerNorm => include_str!("layer_norm.cu"),
            Self::Maps => include_str!("maps.cu"),
        }
    }
}

/// What decides about a program's machine code: the GPU by its number, the file, the type, and a size that the file is compiled for.
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

/// A kernel for numbers of type `T` and one size: attention's numbers of a head, group norm's threads of a block; 0 for others.
///
/// # Errors
/// It does not compile for this GPU, or the driver does not take it.
pub(super) fn function<T: Number>(device: &CudaDevice, source: Source, name: &str, size: usize) -> Result<Kernel> {
    let stream = device.cuda_stream();
    let key = (stream.context().ordinal(), source, T::NUMBER, size);
    // Held while it compiles: who wants another one meanwhile waits too, once in the life of a process.
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let program = match compiled.get(&key) {
        Some(program) => program.clone(),
        None => {
            let assembly = compiled_for(stream.context(), source, T::NUMBER, size)?;
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

/// What GPUs are compiled for whose own architecture the compiler does not know yet: they run what was made for older ones.
const OLDER: &str = "compute_80";

fn compiled_for(context: &CudaContext, source: Source, number: &str, size: usize) -> Result<String> {
    let (major, minor) = context.compute_capability().map_err(Error::wrap)?;
    let text = format!("{}{}", include_str!("numbers.cuh"), source.text());
    let compile = |architecture: &str| {
        let options =
            vec![format!("--gpu-architecture={architecture}"), format!("-DNUMBER={number}"), format!("-DSIZE={size}")];
        compile_ptx_with_opts(&text, CompileOptions { options, ..CompileOptions::default() })
    };
    let compiled = match compile(&format!("compute_{major}{minor}")) {
        Err(_) if major > 8 => compile(OLDER),
        compiled => compiled,
    };
    Ok(compiled.map_err(Error::wrap)?.to_src())
}
