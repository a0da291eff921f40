//! Examples that do not compile. Each is followed by a similar one that does, so that the first fails for the intended
//! reason. They are built by `cargo test --doc` only. Only nightly compilers check the error codes; the examples that
//! compile are checked by all.
//!
//! A lock that comes before a held one cannot be taken:
//!
//! ```compile_fail,E0277
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(cx: &mut Locked<'_, Unlocked>, outer: &Mutex<Outer, ()>, inner: &Mutex<Inner, ()>) {
//!     let (_inner, mut cx) = inner.lock(cx);
//!     let (_outer, _cx) = outer.lock(&mut cx);
//! }
//! ```
//!
//! This does:
//!
//! ```
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(cx: &mut Locked<'_, Unlocked>, outer: &Mutex<Outer, ()>, inner: &Mutex<Inner, ()>) {
//!     let (_outer, mut cx) = outer.lock(cx);
//!     let (_inner, _cx) = inner.lock(&mut cx);
//! }
//! ```
//!
//! The outer token cannot be used while the lock is held:
//!
//! ```compile_fail,E0499
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(cx: &mut Locked<'_, Unlocked>, outer: &Mutex<Outer, ()>, inner: &Mutex<Inner, ()>) {
//!     let (held, _cx) = inner.lock(cx);
//!     let _ = outer.lock(cx);
//!     drop(held);
//! }
//! ```
//!
//! This does:
//!
//! ```
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(cx: &mut Locked<'_, Unlocked>, outer: &Mutex<Outer, ()>, inner: &Mutex<Inner, ()>) {
//!     let (held, _cx) = inner.lock(cx);
//!     drop((held, _cx));
//!     let _ = outer.lock(cx);
//! }
//! ```
//!
//! No lock can be taken while a leaf lock is held:
//!
//! ```compile_fail,E0499
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(cx: &mut Locked<'_, Unlocked>, leaf: &Mutex<Leaf, u8>, inner: &Mutex<Inner, ()>) {
//!     let count = leaf.lock_leaf(cx);
//!     let _ = inner.lock(cx);
//!     drop(count);
//! }
//! ```
//!
//! This does:
//!
//! ```
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(cx: &mut Locked<'_, Unlocked>, leaf: &Mutex<Leaf, u8>, inner: &Mutex<Inner, ()>) {
//!     let count = *leaf.lock_leaf(cx);
//!     let _ = inner.lock(cx);
//!     drop(count);
//! }
//! ```
//!
//! In an atomic context no lock that can block can be taken:
//!
//! ```compile_fail,E0277
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(cx: &mut Locked<'_, AtomicContext>, lock: &Mutex<Outer, ()>) {
//!     let _held = lock.lock(cx);
//! }
//! ```
//!
//! This does:
//!
//! ```
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(cx: &mut Locked<'_, AtomicContext>, lock: &Mutex<Leaf, ()>) {
//!     let _held = lock.lock_leaf(cx);
//! }
//! ```
//!
//! No thread can wait there:
//!
//! ```compile_fail,E0277
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(cx: &mut Locked<'_, AtomicContext>, count: &EventCount<Leaf>) {
//!     let seen = count.seen(cx);
//!     count.wait_past(cx, seen);
//! }
//! ```
//!
//! This does:
//!
//! ```
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(cx: &mut Locked<'_, Inner>, count: &EventCount<Leaf>) {
//!     let seen = count.seen(cx);
//!     count.wait_past(cx, seen);
//! }
//! fn g(cx: &mut Locked<'_, AtomicContext>, count: &EventCount<Leaf>) {
//!     count.advance(cx);
//! }
//! ```
//!
//! No thread can be started there:
//!
//! ```compile_fail,E0599
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(cx: &mut Locked<'_, AtomicContext>) {
//!     drop(cx.spawn("t", |_| ()));
//! }
//! ```
//!
//! This does:
//!
//! ```
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(cx: &mut Locked<'_, Unlocked>) {
//!     drop(cx.spawn("t", |_| ()));
//! }
//! ```
//!
//! A token stays on its thread:
//!
//! ```compile_fail,E0277
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(mut cx: Locked<'_, Unlocked>, lock: &Mutex<Outer, ()>) {
//!     std::thread::scope(|s| {
//!         s.spawn(move || drop(lock.lock(&mut cx)));
//!     });
//! }
//! ```
//!
//! This does:
//!
//! ```
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(mut cx: Locked<'_, Unlocked>, lock: &Mutex<Outer, ()>) {
//!     std::thread::scope(|s| {
//!         s.spawn(move || drop(lock));
//!     });
//!     drop(lock.lock(&mut cx));
//! }
//! ```
//!
//! A guard stays on its thread too:
//!
//! ```compile_fail,E0277
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(mut cx: Locked<'_, Unlocked>, lock: &Mutex<Outer, u8>) {
//!     let (guard, _cx) = lock.lock(&mut cx);
//!     std::thread::scope(|s| {
//!         s.spawn(move || drop(guard));
//!     });
//! }
//! ```
//!
//! This does:
//!
//! ```
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(mut cx: Locked<'_, Unlocked>, lock: &Mutex<Outer, u8>) {
//!     let (guard, _cx) = lock.lock(&mut cx);
//!     let copy = *guard;
//!     std::thread::scope(|s| {
//!         s.spawn(move || drop(copy));
//!     });
//! }
//! ```
//!
//! A token outlives neither its thread nor the guard that was returned with it:
//!
//! ```compile_fail,E0521
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(domain: &std::sync::Arc<lockdep::Domain>) {
//!     let mut kept = None;
//!     lockdep::enter(domain, "t", |cx| kept = Some(cx.leaf_only()));
//! }
//! ```
//!
//! This does:
//!
//! ```
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! fn f(domain: &std::sync::Arc<lockdep::Domain>) {
//!     lockdep::enter(domain, "t", |cx| drop(Some(cx.leaf_only())));
//! }
//! ```
//!
//! An order with a cycle does not compile:
//!
//! ```compile_fail,E0119
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! lockdep::lock_classes! { class A = "a"; class B = "b"; class C = "c"; }
//! lockdep::lock_order! { root A; A => B; B => C; C => A; }
//! ```
//!
//! This does:
//!
//! ```
//! # use lockdep::{AtomicContext, EventCount, Locked, Mutex, Unlocked};
//! # lockdep::lock_classes! {
//! #     class Outer = "outer";
//! #     class Inner = "inner";
//! #     leaf Leaf = "leaf";
//! # }
//! # lockdep::lock_order! { root Outer; Outer => Inner; }
//! lockdep::lock_classes! { class A = "a"; class B = "b"; class C = "c"; }
//! lockdep::lock_order! { root A; A => B; B => C; }
//! ```
