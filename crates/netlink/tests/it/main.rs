//! The tests of the codec, in one program: linked once, and its tests run beside each other.

mod hostile;
mod round_trip;
