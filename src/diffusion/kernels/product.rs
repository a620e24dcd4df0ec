//! Matrix products on one thread, safely.

use gemm::Parallelism;

/// A matrix in memory: element (row, col) stands at `row * row_stride + col * col_stride`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub values: &'a [f32],
    pub row_stride: usize,
    pub col_stride: usize,
}

impl Matrix<'_> {
    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row_stride + (cols - 1) * self.col_stride < self.values.len()
    }
}

/// `dst += lhs * rhs` for `dst` (rows, cols) whose rows lie `row_stride` apart, `lhs` (rows, inner), `rhs` (inner, cols).
pub(super) fn add_product(
    (dst, row_stride): (&mut [f32], usize),
    (rows, inner, cols): (usize, usize, usize),
    lhs: Matrix<'_>,
    rhs: Matrix<'_>,
) {
    assert!(
        lhs.holds(rows, inner) && rhs.holds(inner, cols),
        "operands are smaller than said. This is a bug in kernels."
    );
    let target = Matrix { values: dst, row_stride, col_stride: 1 };
    assert!(target.holds(rows, cols), "the result is smaller than said. This is a bug in kernels.");
    assert!(row_stride >= cols, "rows of the result overlap. This is a bug in kernels.");
    #[expect(unsafe_code, reason = "gemm takes pointers")]
    // SAFETY: the asserts above keep every access to the three slices in bounds, `dst` is borrowed mutably and its
    // elements are distinct (rows do not overlap), and the operands are only read.
    unsafe {
        gemm::gemm(
            rows,
            cols,
            inner,
            dst.as_mut_ptr(),
            1,
            row_stride as isize,
            true,
            lhs.values.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.values.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
