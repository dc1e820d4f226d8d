//! Flash: brings experts from files into memory by explicit, parallel reads.
//!
//! Data flow: [`Files`] are opened, directly where that is sound. An [`Arena`] is reserved once and cut into slots. A
//! [`Fetcher`] takes requests (slices of files into a slot), cuts them into reads for its device, and lands each slice in
//! the arena, where a [`Pin`] reads it, or puts it into kernel order in place.
//!
//! What is fetched, and which slot is given up for it, is decided above. In reading order: [`Memory`], `slot` (the protocol
//! of one slot), `arena`, `window` (block arithmetic), `file`, `fetcher`, `tuning` (the probe), `backend` (which device),
//! `device` (io_uring, pread pool, simulated, faulty).
//!
//! `unsafe` zone 1 (SAFETY.md).

mod arena;
mod backend;
mod device;
mod error;
mod fetcher;
mod file;
mod memory;
mod slot;
mod sync;
mod tuning;
mod window;

pub use arena::{Arena, Pin, SliceMut, SlotClass, SlotId};
pub use backend::{Backend, Options};
pub use device::faulty::{Fault, Faults, POISON};
pub use device::simulated::{Clock, Simulation};
pub use error::Error;
pub use fetcher::{Check, Fetcher, Stats, Urgency};
pub use file::{Direct, Files, Identity, Mode, ModelFile};
pub use memory::Memory;
pub use slot::{MAX_SLICES, SlotState};
pub use tuning::{Probe, Profile, Tuning};
pub use window::{Slice, slot_bytes};

pub(crate) use file::Via;
