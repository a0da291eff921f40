//! Stories: what to run, on which threads, and what must hold.
