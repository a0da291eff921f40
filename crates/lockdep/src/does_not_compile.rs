//! What does not compile, each beside its nearest relative that does, so that it fails for its own
//! reason. Built by `cargo test --doc` only. The error codes are checked by nightly compilers
//! only; the relatives hold on all.
//!
//! A lock that stands before what is held cannot be taken:
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
//! Nor can one by the token of before, while the lock is held:
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
//! Nothing is taken while a leaf lock is held:
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
//! In an atomic context no lock that can block is taken:
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
//! And nothing waits there:
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
//! Or starts a thread there:
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
//! A token outlives neither its thread nor the guard it came with:
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
//! An order with a cycle is no order:
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
