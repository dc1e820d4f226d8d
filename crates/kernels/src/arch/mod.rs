//! One folder per instruction set; the same file name in each holds the same operation.
