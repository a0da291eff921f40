//! Instructions of the small eBPF programs that are filters of the card.

use crate::sys::Instruction;

/// One instruction of eBPF. `to` and `from`: registers.
const fn op(code: u8, to: u8, from: u8, offset: i16, value: u32) -> Instruction {
    let registers = if cfg!(target_endian = "little") { to | from << 4 } else { to << 4 | from };
    Instruction { code, registers, offset, value }
}

/// Loads a number of the frame's `struct __sk_buff` into a register. Register 1 has the frame.
pub(crate) const fn load(to: u8, offset: i16) -> Instruction {
    op(0x61, to, 1, offset, 0)
}

/// Sets a register.
pub(crate) const fn set(to: u8, value: u32) -> Instruction {
    op(0xb7, to, 0, 0, value)
}

/// Clears all bits of a register but these.
pub(crate) const fn keep_bits(register: u8, bits: u32) -> Instruction {
    op(0x57, register, 0, 0, bits)
}

/// Sets these bits of a register.
pub(crate) const fn set_bits(register: u8, bits: u32) -> Instruction {
    op(0x47, register, 0, 0, bits)
}

/// Flips these bits of a register.
pub(crate) const fn flip_bits(register: u8, bits: u32) -> Instruction {
    op(0xa7, register, 0, 0, bits)
}

/// Goes on that many instructions later, if a register has a value.
pub(crate) const fn skip_if(register: u8, value: u32, skipped: i16) -> Instruction {
    op(0x15, register, 0, skipped, value)
}

/// The same if it has another value.
pub(crate) const fn skip_unless(register: u8, value: u32, skipped: i16) -> Instruction {
    op(0x55, register, 0, skipped, value)
}

/// Calls a function of the kernel with registers 1 to 5. Register 0 has its result.
pub(crate) const fn call(function: u32) -> Instruction {
    op(0x85, 0, 0, 0, function)
}

/// Returns register 0.
pub(crate) const EXIT: Instruction = op(0x95, 0, 0, 0, 0);
